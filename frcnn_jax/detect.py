"""Detection: the jitted step that scores RoIs, decodes and suppresses; `Detector` for one's own images; and

    python -m frcnn_jax.detect --workdir W IMAGE... --out DIR

Shape letters: B images, R RoIs, K foreground classes, M detections a class.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image, ImageOps

from frcnn_jax.config import check_config, fits_type, get_config
from frcnn_jax.data.batches import Sizes, prepare_test
from frcnn_jax.data.records import load_image
from frcnn_jax.errors import InputError, run_main
from frcnn_jax.evaluation.metrics import Detections
from frcnn_jax.files import check_folder, write_json, write_whole
from frcnn_jax.models.fast_rcnn import FastRCNN, get_network
from frcnn_jax.models.weights import canonical_arrays, fold_box_stats
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops._nms import nms
from frcnn_jax.proposals.search import selective_search
from frcnn_jax.training.checkpoint import load_model

Predictions = tuple[jax.Array, jax.Array, jax.Array]


def decode_and_suppress(
    scores: jax.Array,
    deltas: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    nms_iou: float = 0.3,
    candidates: int = 100,
    box_regression: bool = True,
) -> Predictions:
    """Of each class the `candidates` best RoIs are decoded (left as they are without `box_regression`), clipped to the
    image and enter its greedy NMS at `nms_iou`.

    Args:
        scores: `(B, R, K + 1)`.
        deltas: `(B, R, K + 1, 4)`, as `boxes.decode` takes them.
        batch: "rois", "roi_mask", "scale" and "original_size" of it are read.

    Returns:
        boxes `(B, K, M, 4)` in original pixels, scores `(B, K, M)` and valid `(B, K, M)`, best first.
    """

    def one_class(scores, deltas, rois, scale, original_size):
        top, index = lax.top_k(scores, candidates)
        decoded = box_ops.decode(rois[index], deltas[index]) if box_regression else rois[index]
        decoded = decoded / jnp.broadcast_to(scale, scores.shape)[index, None]
        boxes = box_ops.clip(decoded, original_size[0], original_size[1])
        kept, valid = nms(boxes, top, iou_threshold=nms_iou, max_outputs=candidates)
        return boxes[kept], jnp.where(valid, top[kept], 0), valid

    def one_image(scores, deltas, rois, mask, scale, original_size):
        scores = jnp.where(mask, scores[:, 1:].T, -jnp.inf)
        classes = jax.vmap(one_class, (0, 1, None, None, None))
        return classes(scores, deltas[:, 1:], rois, scale, original_size)

    arguments = (batch[name] for name in ("rois", "roi_mask", "scale", "original_size"))
    return jax.vmap(one_image)(scores, deltas, *arguments)


def make_predict_step(model: FastRCNN, **options: Any) -> Callable[..., Predictions]:
    """Builds the jitted `predict(variables, batch)`: the network's scores and deltas through `decode_and_suppress`,
    with its options."""

    @jax.jit
    def predict(variables: Any, batch: Mapping[str, jax.Array]) -> Predictions:
        images = [batch[name] for name in ("image", "image_size", "rois")]
        outputs: Any
        if "level" in batch:
            outputs = model.apply(variables, *images, batch["level"], method=FastRCNN.predict_pyramid)
        else:
            outputs = model.apply(variables, *images, method=FastRCNN.predict)
        scores, deltas = outputs
        return decode_and_suppress(scores, deltas, batch, **options)

    return predict


def read_config(workdir: Path) -> dict[str, Any]:
    """The config that a workdir was trained with. InputError where there is none."""
    path = Path(workdir) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{workdir}: no config.json here; train first: python -m frcnn_jax.train --workdir {workdir}"
        ) from None
    except (NotADirectoryError, ValueError) as error:
        raise InputError(f"{path}: not a config that frcnn_jax.train wrote ({error})") from None
    missing = {"network", "class_names"} - set(config) if isinstance(config, dict) else {"all fields"}
    if missing:
        raise InputError(f"{path}: not a config that frcnn_jax.train wrote (without {', '.join(sorted(missing))})")
    defaults = get_config()
    if unknown := sorted(set(config) - set(defaults)):
        raise InputError(f"{path}: has fields that this version does not know: {', '.join(unknown)}")
    config = {**defaults.to_dict(), **config}  # fields that came later: as it was before them
    for name, default in defaults.items():
        if not fits_type(config[name], default):
            expected = "list" if isinstance(default, tuple) else type(default).__name__
            raise InputError(f"{path}: {name} must be a {expected}, got {config[name]!r}")
    try:
        check_config(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return json.loads(json.dumps(config))


def make_model(config: Mapping[str, Any], num_classes: int) -> FastRCNN:
    """The network that a config describes. InputError for an unknown one."""
    network = get_network(config["network"])
    if config["train_from"]:
        network = network.trained_from(config["train_from"])
    if config["fc_ranks"]:
        network = network._replace(fc_ranks=tuple(config["fc_ranks"]))
    network = network._replace(classifier=config["classifier"])
    return FastRCNN(network, num_classes, jnp.dtype(config["compute_type"]))


def image_sizes(config: Mapping[str, Any]) -> tuple[Sizes, ...]:
    """How a config resizes images."""
    return tuple(Sizes(shorter, config["max_size"]) for shorter in config["scales"] or (config["min_size"],))


def model_shapes(model: FastRCNN) -> Any:
    """The shapes and types of its variables."""
    canvas = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    size, rois = jax.ShapeDtypeStruct((1, 2), jnp.int32), jax.ShapeDtypeStruct((1, 1, 4), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), canvas, size, rois)


def load_variables(workdir: Path, config: Mapping[str, Any], step: int | None = None) -> tuple[FastRCNN, Any, int]:
    """The model, its variables and the step of a workdir's newest checkpoint, or of `step`'s."""
    model = make_model(config, len(config["class_names"]))
    return model, *load_model(workdir, model_shapes(model), step)


def workdir_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """A workdir's newest checkpoint as canonical arrays (`weight_files`), its box layer for targets that are not
    normalised."""
    model, variables, _ = load_variables(workdir, read_config(workdir))
    arrays = canonical_arrays(variables["params"], roi_size=model.network.roi_size)
    return fold_box_stats(arrays, **variables["box_stats"])


class Detector:
    """A trained network for images of one's own."""

    def __init__(self, model: FastRCNN, variables: Any, config: Mapping[str, Any]):
        self.class_names: tuple[str, ...] = tuple(config["class_names"])
        self._variables = variables
        self._config = config
        self._network = model.network
        self._step = partial(
            make_predict_step,
            model,
            candidates=config["candidates_per_class"],
            box_regression=config["test_box_regression"],
        )
        self._compiled: dict[float, Callable[..., Predictions]] = {}

    @classmethod
    def from_workdir(cls, workdir: str | Path, *, step: int | None = None) -> "Detector":
        """The newest checkpoint of a workdir, or `step`'s. InputError where there is none."""
        config = read_config(Path(workdir))
        model, variables, _ = load_variables(Path(workdir), config, step)
        return cls(model, variables, config)

    def __call__(
        self,
        image: Any,
        rois: np.ndarray | None = None,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float | None = None,
        max_detections: int = 100,
    ) -> Detections:
        """Detects in one image.

        Args:
            image: a path, a PIL image or `(H, W, 3)` uint8 RGB.
            rois: `(N, 4)` proposals in the image's pixels; selective search where None.
            score_threshold: detections of lower scores are left out.
            nms_threshold: IoU over which the lower of two detections of a class is dropped; where None, the config's
                `nms_iou`.
            max_detections: the best of all classes.

        Raises:
            InputError: the image can't be read, or image or rois are of another shape or not finite.
        """
        if isinstance(image, str | Path):
            image = load_image(Path(image))
        elif isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image).convert("RGB")
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise InputError(f"the image must be (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype}")
        if rois is None:
            config = self._config
            rois = selective_search(pixels, mode=config["proposal_mode"], max_boxes=config["max_proposals"])
        rois = np.asarray(rois, np.float32)
        if rois.ndim != 2 or rois.shape[1] != 4 or not np.isfinite(rois).all():
            raise InputError(f"rois must be finite (N, 4) boxes, got shape {rois.shape}")
        nms_threshold = self._config["nms_iou"] if nms_threshold is None else nms_threshold
        if nms_threshold not in self._compiled:
            self._compiled[nms_threshold] = self._step(nms_iou=nms_threshold)
        batch = prepare_test(pixels, rois, sizes=image_sizes(self._config), spatial_scale=self._network.spatial_scale)
        predictions = jax.device_get(self._compiled[nms_threshold](self._variables, batch))
        boxes, scores, valid = (p[0] for p in predictions)
        return select_detections(boxes, scores, valid, score_threshold, max_detections)


def select_detections(
    boxes: np.ndarray, scores: np.ndarray, valid: np.ndarray, score_threshold: float, max_detections: int
) -> Detections:
    """One image's `(K, M, ...)` predictions as at most `max_detections` of all classes, best first."""
    label, place = np.nonzero(valid & (scores >= score_threshold))
    best = np.argsort(-scores[label, place], kind="stable")[:max_detections]
    label, place = label[best], place[best]
    return Detections(boxes[label, place], (label + 1).astype(np.int32), scores[label, place])


def main(argv: Sequence[str]) -> None:
    """The command line."""
    from tqdm import tqdm

    from frcnn_jax.evaluation.pictures import draw_boxes

    description = "Detects objects in images."
    parser = argparse.ArgumentParser(prog="python -m frcnn_jax.detect", description=description, allow_abbrev=False)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--workdir", type=Path, required=True, help="where frcnn_jax.train left its checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and detections.json")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="default %(default)s")
    parser.add_argument("--step", type=int, help="the checkpoint; the newest by default")
    args = parser.parse_args(argv)
    if not math.isfinite(args.score_threshold):
        raise InputError(f"--score-threshold must be a number, got {args.score_threshold}")
    check_folder(args.out)

    detector = Detector.from_workdir(args.workdir, step=args.step)
    pictures = {path: args.out / f"{path.stem}.png" for path in args.images}
    if len(set(pictures.values())) < len(args.images):
        raise InputError(
            "images of the same name would overwrite each other's pictures; detect them into other folders"
        )
    if taken := {path.resolve() for path in args.images} & {picture.resolve() for picture in pictures.values()}:
        raise InputError(f"{min(taken)}: its picture would take its place; detect into another folder")
    for path in args.images:
        load_image(path)  # what can't be read is said before anything is written
    args.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for path, picture in tqdm(pictures.items(), desc="detect", unit="image"):
        image = load_image(path)
        found = detector(image, score_threshold=args.score_threshold)
        names = [detector.class_names[label - 1] for label in found.labels]
        results[str(path)] = [
            {"label": name, "score": round(float(score), 4), "box": [round(float(v), 1) for v in box]}
            for name, score, box in zip(names, found.scores, found.boxes, strict=True)
        ]
        captions = [f"{name} {score:.2f}" for name, score in zip(names, found.scores, strict=True)]
        picture_of = draw_boxes(image, found.boxes, found.labels, captions)
        write_whole(picture, partial(picture_of.save, format="png"))
    write_json(args.out / "detections.json", results)
    print(f"{sum(map(len, results.values()))} detections in {len(results)} images: {args.out}/detections.json")


if __name__ == "__main__":
    run_main(main)
