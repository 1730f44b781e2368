"""The GPU part of `bench.py`: results compared with the CPU's float32, and times next to two lower bounds."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from bench_inputs import CLASSES, Run, Step, chain, has_torch, matrix_product, medians, training_batch
from count_operations import ELEMENT, Count, count

from frcnn_jax.data.batches import Batch, Sizes, prepare_test
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import decode_and_suppress, make_predict_step
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables
from frcnn_jax.models.networks import Network
from frcnn_jax.ops._roi_pool import roi_pool

IN_A_ROW = 10  # calls timed together


class Kind(NamedTuple):
    """A compute type and the largest `distance` from the CPU's float32 that rounding explains."""

    dtype: Any
    precision: str | None  # of float32 matrix products
    outputs: float  # of both heads, and of the loss
    momentum: float  # after a step; larger, because a maximum that changes place moves its gradient


KINDS = {
    "float32": Kind(jnp.float32, "highest", 1e-4, 1e-2),
    "tf32": Kind(jnp.float32, "tensorfloat32", 1e-2, 1e-1),
    "bfloat16": Kind(jnp.bfloat16, None, 3e-2, 3e-1),  # on a CPU the errors of L are 0.9e-2 and 1.2e-1
}


class Floor(NamedTuple):
    """Lower bounds on a program's time, in milliseconds."""

    operations: float
    bytes: float


class Outcome(NamedTuple):
    """Results of the programs for given inputs, as NumPy arrays."""

    outputs: Any  # logits (1, R, K + 1) and normalised deltas (1, R, K + 1, 4)
    loss: np.ndarray  # of the first training step
    momentum: Any  # after that step: gradients and weight decay, times the learning rates


def find_gpu() -> jax.Device:
    try:
        return jax.devices("gpu")[0]
    except RuntimeError as error:
        raise InputError(f"--platform gpu: jax sees no GPU ({error}); README.md says how to install for CUDA") from None


def bench_gpu(
    network: Network,
    image: np.ndarray,
    rois: np.ndarray,
    sizes: Sizes,
    device: jax.Device,
    *,
    repeat: int,
    probe: int = 8192,
) -> None:
    """Compare detection and a training step with the CPU's results, time them, and print both.

    Args:
        network: A row of `NETWORKS`.
        image: `(H, W, 3)` uint8 RGB.
        rois: `(N, 4)` in pixels of the image, N >= 128.
        sizes: Sizes to which the image is resized.
        device: The device to measure.
        repeat: Number of timings, of which the median is printed.
        probe: Rows and columns of the matrices whose product is timed.

    Raises:
        InputError: The device's results differ from the CPU's by more than rounding explains.
    """
    batch = prepare_test(image, rois, sizes=[sizes], pixels=network.pixels, spatial_scale=None)
    training = training_batch(batch)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        variables = jax.device_get(init_variables(network.build(CLASSES), jax.random.key(0)))
    expected = outcome(network.build(CLASSES), network.frozen, variables, batch, training, cpu)
    reached = bandwidth(device, probe, repeat)
    print(f"{device.device_kind}, jax {jax.__version__}; adding in place moves {reached / 1e9:.0f} GB/s")
    far = compare_exact_parts(network, batch, expected, device)
    for name, kind in KINDS.items():
        model = network.build(CLASSES, dtype=kind.dtype)
        with jax.default_matmul_precision(kind.precision):
            seconds = medians({"product": matrix_product(probe, kind.dtype, device)}, repeat)["product"]
            rate = 2 * probe**3 / seconds
            print(f"{name}: matrix products reach {rate / 1e12:.3g} TFLOP/s")
            far += compare(name, kind, outcome(model, network.frozen, variables, batch, training, device), expected)
            ours = our_programs(model, network.frozen, variables, batch, training, device)
            theirs = torch_programs(network, variables, batch, training, device, name)
            floors = {
                what: Floor(1e3 * n.operations / rate, 1e3 * (n.weight_bytes + ELEMENT[name] * n.elements) / reached)
                for what, n in needed(network, batch, training).items()
            }
            report(ours, theirs, floors, repeat)
    if far:
        raise InputError(f"results differ from the CPU's by more than rounding explains: {'; '.join(far)}")


def needed(network: Network, batch: Batch, training: Batch) -> dict[str, Count]:
    rows, columns = batch["image"].shape[1:3]
    return {
        "detection": count(network, (rows, columns), 1, batch["rois"].shape[1], train=False),
        "step": count(network, (rows, columns), 2, training["rois"].shape[1], train=True),
    }


def outcome(
    model: FastRCNN, frozen: Sequence[str], variables: Any, batch: Batch, training: Batch, device: jax.Device
) -> Outcome:
    with jax.default_device(device):
        outputs = jax.jit(model.apply)(variables, batch["image"], batch["image_size"], batch["rois"])
        step = Step(model, variables, frozen, [device])
        loss = step(training)
    return Outcome(*jax.device_get((outputs, loss, step.state.opt_state)))


def distance(found: Any, expected: Any) -> float:
    """Return the largest relative error, in the Euclidean norm, of any array; NaN if there is one."""

    def of_array(found: np.ndarray, expected: np.ndarray) -> float:
        return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), np.finfo(np.float32).tiny))

    return float(np.max(jax.tree.leaves(jax.tree.map(of_array, found, expected))))


def compare(name: str, kind: Kind, found: Outcome, expected: Outcome) -> list[str]:
    """Print the distances of `found`, and return a text for each that is too large."""
    distances = {part: distance(getattr(found, part), getattr(expected, part)) for part in Outcome._fields}
    print("  from the CPU's float32: " + ", ".join(f"{part} {value:.1e}" for part, value in distances.items()))
    allowed = dict(zip(Outcome._fields, (kind.outputs, kind.outputs, kind.momentum), strict=True))
    return [
        f"{name} {part} by {value:.1e}, allowed {allowed[part]:.0e}"
        for part, value in distances.items()
        if not value <= allowed[part]
    ]


def compare_exact_parts(network: Network, batch: Batch, expected: Outcome, device: jax.Device) -> list[str]:
    """Check that RoI pooling is bit-identical to the CPU's, and that NMS of the CPU's outputs keeps the same boxes.

    Returns:
        The names of the parts that fail.
    """
    rows, columns = (side // round(1 / network.spatial_scale) for side in batch["image"].shape[1:3])
    features = np.random.default_rng(0).normal(size=(1, rows, columns, 64)).astype(np.float32)
    pool = partial(roi_pool, output_size=network.roi_size, spatial_scale=network.spatial_scale)
    logits, deltas = expected.outputs
    scores = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    pooled, kept = [], []
    for place in (jax.devices("cpu")[0], device):
        with jax.default_device(place):
            pooled.append(jax.device_get(pool(features, batch["rois"])))
            kept.append(jax.device_get(jax.jit(decode_and_suppress)(scores, deltas, batch)))
    equal = {
        "RoI pooling": np.array_equal(*pooled),
        "NMS": all(np.allclose(a, b, rtol=1e-5, atol=1e-3) for a, b in zip(*kept, strict=True)),
    }
    print(", ".join(f"{what} {'equals' if same else 'DIFFERS FROM'} the CPU's" for what, same in equal.items()))
    return [what for what, same in equal.items() if not same]


class Program(NamedTuple):
    """A timed program."""

    run: Run
    wait: Callable[[Any], Any]  # blocks until the value of `run` is computed


def our_programs(
    model: FastRCNN, frozen: Sequence[str], variables: Any, batch: Batch, training: Batch, device: jax.Device
) -> dict[str, Program]:
    """Return detection and a step, each with inputs on the device and with inputs from the host."""
    predict, step = make_predict_step(model), Step(model, variables, frozen, [device])
    placed, test, train = jax.device_put((variables, batch, training), device)
    runs: dict[str, Run] = {
        "detection": lambda: predict(placed, test),
        "detection, image from the host": lambda: predict(placed, jax.device_put(batch, device)),
        "step": lambda: step(train),
        "step, images from the host": lambda: step(training),
    }
    return {name: Program(run, jax.block_until_ready) for name, run in runs.items()}


def torch_programs(
    network: Network, variables: Any, batch: Batch, training: Batch, device: jax.Device, kind: str
) -> dict[str, Program]:
    """Return PyTorch's programs, with inputs on the device; none if it is not installed or sees no such device."""
    if not has_torch():
        return {}
    import torch
    from torch_program import TorchProgram

    on_gpu = device.platform == "gpu"
    if on_gpu and not torch.cuda.is_available():
        return {}
    name, torch.backends.cudnn.benchmark = "cuda" if on_gpu else "cpu", True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    peer = TorchProgram(network, variables, name)
    runs = {"detection": chain(peer.parts(batch)), "step": peer.step(training)}
    cast = torch.autocast(name, torch.bfloat16, enabled=kind == "bfloat16")
    return {what: Program(cast(run), lambda _: on_gpu and torch.cuda.synchronize()) for what, run in runs.items()}


def time_each_and_in_a_row(program: Program, repeat: int) -> tuple[float, float]:
    """Return median milliseconds per call, with a wait after each call and with one wait after IN_A_ROW calls."""

    def spend(calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            value = program.run()
        program.wait(value)
        return 1e3 * (time.perf_counter() - begin) / calls

    spend(2)  # compiles
    each, row = np.median([(spend(1), spend(IN_A_ROW)) for _ in range(repeat)], axis=0)
    return float(each), float(row)


def bandwidth(device: jax.Device, size: int, repeat: int) -> float:
    """Return the bytes per second, read and written, of adding to `4 * size**2` float32 numbers in place."""
    array = jax.device_put(np.ones(4 * size**2, np.float32), device)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def run() -> jax.Array:
        nonlocal array
        array = add(array)
        return array

    return 2 * array.nbytes / (1e-3 * time_each_and_in_a_row(Program(run, jax.block_until_ready), repeat)[1])


def report(
    ours: Mapping[str, Program], theirs: Mapping[str, Program], floors: Mapping[str, Floor], repeat: int
) -> None:
    for what, program in ours.items():
        each, row = time_each_and_in_a_row(program, repeat)
        print(f"  {what:32} each {each:8.2f} ms   in a row {row:8.2f} ms", end="")
        if what in floors:
            print("   floors: operations {:.2f} ms, bytes {:.2f} ms".format(*floors[what]), end="")
        if what in theirs:
            peer_each, peer_row = time_each_and_in_a_row(theirs[what], repeat)
            print(
                f"   PyTorch {peer_each:.2f}, {peer_row:.2f}   ratio {each / peer_each:.2f}, {row / peer_row:.2f}",
                end="",
            )
        print(f"   40,000 take {40_000 * row / 60e3:.1f} min" if what.startswith("step") else "", flush=True)
