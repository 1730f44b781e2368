"""Compare training and detection with an independent program in PyTorch and torchvision (extra `peers`):

    python benchmarks/parity.py [--network alexnet] [--voc VOCDEVKIT] [--weights FILE] [--images 20] [--steps 20]

Both programs start from the same weights and take the same batches of two images and 64 RoIs each, without dropout, on
a CPU. Where the two images differ in size, PyTorch runs each alone, without a canvas. Images are the first of VOC2007's
train split, resized as in the paper, with selective search's proposals; or synthetic scenes in two sizes, with a grid
of boxes. Random weights take pixels divided by 64, as the tiny network does.

Printed are the loss of every step, the gradients at the first step and the changes of the parameters in all steps
(relative differences in the Euclidean norm), and the detections in the first image, by both programs with the weights
of ours after the last step. The exit status is 1 if losses, gradients, changes or scores differ by more than 1e-10, or
boxes, whose inputs are float32, by more than 1e-4 pixels; with `--type float32`, losses or scores by more than 1e-5, a
gradient by 1e-4, a change by 1e-2 or boxes by 1e-3 pixels.

The default is float64, in which the programs agree in about fourteen digits. In float32 a maximum that is nearly tied,
or an activation near 0, may end up on the other side in one program: its gradient of a layer then differs from that in
float64, in alexnet by up to 2e-3 and PyTorch's as often as ours. The difference grows with the learning rate. With
ImageNet's convolutions, alexnet's losses on VOC differ by up to 3.3e-6 in 20 steps at 0.0003, and by up to 2.2e-5 at
the paper's 0.001.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from bench_gpu import distance
from bench_inputs import Step, chain, cpu_name, has_torch

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.data.batches import Batch, Sizes, prepare_test
from frcnn_jax.data.records import Dataset
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.data.voc import read_voc
from frcnn_jax.errors import InputError, run_main
from frcnn_jax.evaluation.predict import make_predict_step
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables
from frcnn_jax.models.networks import LAYER_NETWORKS, Network
from frcnn_jax.models.weight_files import read_weights
from frcnn_jax.models.weights import Arrays, canonical_arrays, load_pretrained
from frcnn_jax.proposals.search import selective_search
from frcnn_jax.training.batches import TrainingBatches
from frcnn_jax.training.sampling import assign, target_statistics
from frcnn_jax.training.solver import caffe_sgd, step_schedule

TOLERANCES = {
    "float64": {"loss": 1e-10, "gradient": 1e-10, "change": 1e-10, "box": 1e-4, "score": 1e-10},
    "float32": {"loss": 1e-5, "gradient": 1e-4, "change": 1e-2, "box": 1e-3, "score": 1e-5},
}
SCENE_SIZES = (Sizes(144, 192), Sizes(135, 180))  # of one canvas

Found = tuple[np.ndarray, np.ndarray]  # boxes (D, 4) and scores (D,) of a class


class Case(NamedTuple):
    """What both programs are given."""

    network: Network
    variables: Any
    batches: Sequence[Batch]  # one per step
    image: Batch  # of `prepare_test`
    rate: float


class Training(NamedTuple):
    """What a program computes in training."""

    losses: list[float]  # of every step
    gradients: Arrays  # at the first step
    changes: Arrays  # of the parameters in all steps


def make_case(
    network: Network,
    dataset: Dataset,
    proposals: Mapping[str, np.ndarray],
    sizes: Sequence[Sizes],
    *,
    steps: int,
    rate: float = 0.001,
    weights: Path | None = None,
) -> Case:
    """Return the weights, the batches, and the image to detect in: the first one at the first size."""
    if not weights:
        network = network._replace(pixels=replace(network.pixels, std=(64.0,) * 3))
    records, classes = dataset.records, len(dataset.class_names)
    targets = [assign(proposals[record.image_id], record.boxes, record.labels) for record in records]
    stats = dict(zip(("mean", "std"), target_statistics(targets, num_classes=classes), strict=True))
    params = init_variables(network.build(classes), jax.random.key(0))["params"]
    if weights:
        params = load_pretrained(params, read_weights(weights), roi_size=network.roi_size, source=str(weights))
    image = prepare_test(
        records[0].load(),
        proposals[records[0].image_id],
        sizes=sizes[:1],
        pixels=network.pixels,
        spatial_scale=network.spatial_scale,
    )
    made = TrainingBatches(records, proposals, stats, sizes, network.pixels, steps)
    batches = [made[step] for step in range(steps)]
    variables = jax.tree.map(np.asarray, {"params": params, "box_stats": stats})
    return Case(network._replace(dropout=0.0), variables, batches, image, rate)


def synthetic_case(network: Network, *, images: int = 20, steps: int = 20, rate: float = 0.001) -> Case:
    dataset = read_synthetic(split="train", images=images)
    proposals = {record.image_id: grid(record.height, record.width) for record in dataset.records}
    return make_case(network, dataset, proposals, SCENE_SIZES, steps=steps, rate=rate)


def grid(height: int, width: int) -> np.ndarray:
    """Return square boxes of 32, 48, 72 and 108 pixels, a quarter of their side apart."""
    boxes = [
        (x, y, x + side - 1, y + side - 1)
        for side in (32, 48, 72, 108)
        for y in range(0, height - side + 1, side // 4)
        for x in range(0, width - side + 1, side // 4)
    ]
    return np.array(boxes, np.float32)


def train(case: Case) -> tuple[Training, Any]:
    """Return what our training computes, and the variables after the last step."""
    start = partial(Step, build_model(case), case.variables, case.network.frozen, jax.local_devices()[:1])
    step = start(optimizer=optax.trace(0.0))  # its state is the gradient
    step(case.batches[0])
    arrays = partial(canonical_arrays, roi_size=case.network.roi_size)
    gradients, before = arrays(step.state.opt_state.trace), arrays(case.variables["params"])
    step = start(optimizer=caffe_sgd(step_schedule(case.rate, ())))
    losses = [float(step(batch)) for batch in case.batches]
    changes = {name: after - before[name] for name, after in arrays(step.state.params).items()}
    return Training(losses, gradients, changes), jax.device_get(step.state.variables)


def detect(case: Case, variables: Any) -> list[Found]:
    boxes, scores, valid = jax.device_get(make_predict_step(build_model(case))(variables, case.image))
    return [(boxes[0, k, kept], scores[0, k, kept]) for k, kept in enumerate(valid[0])]


def build_model(case: Case) -> FastRCNN:
    mean = case.variables["box_stats"]["mean"]
    return case.network.build(len(mean) - 1, dtype=mean.dtype)


def torch_train(case: Case) -> Training:
    from torch_program import TorchProgram

    program = TorchProgram(case.network, case.variables)
    trained = {name: p for name, p in program.parameters().items() if p.requires_grad}
    before = {name: p.detach().numpy().copy() for name, p in trained.items()}
    solver, losses = program.solver(case.rate), []
    gradients: Arrays = {}
    for batch in case.batches:
        losses.append(float(program.step(batch, solver)()))
        gradients = gradients or {name: p.grad.numpy().copy() for name, p in trained.items()}
    return Training(losses, gradients, {name: p.detach().numpy() - before[name] for name, p in trained.items()})


def torch_detect(case: Case, variables: Any) -> list[Found]:
    from torch_program import TorchProgram

    found = chain(TorchProgram(case.network, variables).parts(case.image))()
    return [(boxes.numpy(), scores.numpy()) for boxes, scores in found]


def largest_differences(ours: Sequence[Found], theirs: Sequence[Found]) -> tuple[float, float]:
    """Return the largest differences of boxes and of scores, infinite if a class has more detections in one program.

    Every detection is compared with the nearest of its class: two of nearly equal scores may change places.
    """
    worst = np.zeros(2)
    for (boxes, scores), (their_boxes, their_scores) in zip(ours, theirs, strict=True):
        if len(boxes) != len(their_boxes):
            return np.inf, np.inf
        if len(boxes):
            away = np.abs(boxes[:, None] - their_boxes).max(2)
            nearest = away.argmin(1)
            of_class = away.min(1).max(), np.abs(scores - their_scores[nearest]).max()
            worst = np.maximum(worst, of_class if len(set(nearest)) == len(nearest) else np.inf)
    return float(worst[0]), float(worst[1])


def compare(case: Case) -> list[str]:
    """Print the two programs' results side by side, and return a text for each that differs too much."""
    far = []

    def check(kind: str, name: str, difference: float) -> str:
        if not difference <= tolerances[kind]:
            far.append(f"{name} by {difference:.1e}, allowed {tolerances[kind]:.0e}")
        return f"{difference:.1e}"

    (ours, variables), theirs = train(case), torch_train(case)
    tolerances = TOLERANCES[str(next(iter(ours.changes.values())).dtype)]
    print(f"{'step':>4} {'our loss':>11} {'PyTorch':>11}  difference")
    for i, (loss, their_loss) in enumerate(zip(ours.losses, theirs.losses, strict=True), 1):
        print(f"{i:4} {loss:11.7f} {their_loss:11.7f}  {check('loss', f'loss {i}', abs(loss - their_loss))}")
    for kind, own, peer in (
        ("gradient", ours.gradients, theirs.gradients),
        ("change", ours.changes, theirs.changes),
    ):
        print(f"{kind:20} {'our norm':>11} {'PyTorch':>11}  relative difference")
        if alone := own.keys() ^ peer.keys():
            far.append(f"only one program trains {', '.join(sorted(alone))}")
        for name in [name for name in peer if name in own]:
            norms = f"{np.linalg.norm(own[name]):11.6g} {np.linalg.norm(peer[name]):11.6g}"
            print(f"{name:20} {norms}  {check(kind, f'{kind} of {name}', distance(own[name], peer[name]))}")
    found, their_found = detect(case, variables), torch_detect(case, variables)
    box, score = largest_differences(found, their_found)
    counts = " and ".join(str(sum(len(boxes) for boxes, _ in each)) for each in (found, their_found))
    print(f"detections: {counts}; boxes differ by at most {check('box', 'boxes', box)} pixels, ", end="")
    print(f"scores by {check('score', 'scores', score)}")
    return far


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--network", default="alexnet", choices=LAYER_NETWORKS, help="default %(default)s")
    parser.add_argument("--voc", type=Path, help="a VOCdevkit; default: synthetic scenes")
    parser.add_argument("--weights", type=Path, help="a file of pretrained weights; default: random")
    parser.add_argument("--images", type=int, default=20, help="number of images; default %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="default %(default)s")
    parser.add_argument(
        "--shorter", type=int, default=600, help="pixels of VOC images' shorter side; default %(default)s"
    )
    parser.add_argument("--rate", type=float, default=0.001, help="learning rate; default %(default)s")
    parser.add_argument("--type", choices=("float32", "float64"), default="float64", help="default %(default)s")
    args = parser.parse_args(argv)
    check_at_least(1, images=args.images, steps=args.steps, shorter=args.shorter)
    network = LAYER_NETWORKS[args.network]
    if not has_torch():
        raise InputError("torch and torchvision are not installed: pip install -e '.[peers]'")
    import torch

    jax.config.update("jax_platforms", "cpu")
    if args.voc:
        dataset = read_voc(args.voc, split="train")
        dataset = Dataset(dataset.class_names, dataset.records[: args.images])
        proposals = {record.image_id: selective_search(record.load()) for record in dataset.records}
        sizes = [Sizes(args.shorter, args.shorter * 5 // 3)]
        case = make_case(network, dataset, proposals, sizes, steps=args.steps, rate=args.rate, weights=args.weights)
    else:
        case = synthetic_case(network, images=args.images, steps=args.steps, rate=args.rate)
    jax.config.update("jax_enable_x64", args.type == "float64")
    case = case._replace(variables=jax.tree.map(np.dtype(args.type).type, case.variables))
    print(f"{args.network} in {args.type}; {cpu_name()}; jax {jax.__version__}, torch {torch.__version__}")
    if far := compare(case):
        raise InputError(f"{len(far)} results differ by more than rounding explains: {'; '.join(far[:3])}")


if __name__ == "__main__":
    run_main(main)
