"""`Detector`, a trained network applied to single images."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frcnn_jax.build import detection_options, image_sizes
from frcnn_jax.config import Config
from frcnn_jax.data.batches import Sizes, prepare_test
from frcnn_jax.data.records import read_image
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import DetectionOptions, Detections, Predictions, make_predict_step, select_detections
from frcnn_jax.evaluation.regions import (
    RegionBatches,
    RegionScores,
    RegionStep,
    classify_step,
    embed_step,
    run_regions,
)
from frcnn_jax.models.fast_rcnn import FastRCNN, description, init_variables
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.weight_files import read_weights
from frcnn_jax.models.weights import OUTPUTS, fit_weights, load_pretrained
from frcnn_jax.proposals.load import make_search, propose, split_source
from frcnn_jax.proposals.search import MODES
from frcnn_jax.workdir import detector_of, load_variables, read_config, workdir_weights

_AHEAD = 2 * (os.cpu_count() or 1)  # images searched ahead


class Detector:
    """A trained network that detects objects in images.

    Args:
        model: The network.
        variables: Its collections "params" and "box_stats".
        class_names: Names of labels 1 to K.
        sizes: Sizes to which images are resized; several make an image pyramid.
        options: Options of NMS and box regression.
        proposals: Where no RoIs are given, the search that proposes them, by name as in `load_proposals`, or a function
            of an image `(H, W, 3)` uint8 RGB that returns `(N, 4)` inclusive boxes or a `supervision.Detections`.
        proposal_size: Longer side, in pixels, to which larger images are shrunk for the search; None for its own.
        max_proposals: Maximum number of proposals from a search.

    Raises:
        InputError: The number of class names is not K, or there is no such search.
    """

    def __init__(
        self,
        model: FastRCNN,
        variables: Any,
        *,
        class_names: Sequence[str],
        sizes: Sequence[Sizes] = (Sizes(),),
        options: DetectionOptions = DetectionOptions(),
        proposals: str | Callable[[np.ndarray], Any] = "standard",
        proposal_size: int | None = None,
        max_proposals: int = 2000,
    ) -> None:
        if len(class_names) != model.num_classes:
            raise InputError(f"class_names must be the network's {model.num_classes} names, got {len(class_names)}")
        self.class_names = tuple(class_names)
        self._model, self._variables, self._sizes, self._options = model, variables, tuple(sizes), options
        self._search = _make_search(proposals, proposal_size, max_proposals)
        self._predict: dict[float, Callable[..., Predictions]] = {}  # by NMS threshold
        self._scores: RegionStep | None = None
        self._steps: dict[str, RegionStep] = {}  # by layer
        self._untrained: set[str] = set()  # layers that `_source` lacks
        self._source = ""

    @classmethod
    def from_workdir(cls, workdir: str | Path, *, step: int | None = None, network: str = "") -> "Detector":
        """Load the detector from the newest checkpoint of a workdir, or from that of `step`.

        Args:
            workdir: The workdir.
            step: Step of the checkpoint; the newest where None.
            network: The function that makes its network, as "module:function" or "FILE.py:function", if it is one: a
                workdir alone does not make code run.

        Raises:
            InputError: The workdir has no such checkpoint, or its network is a function and none is given.
        """
        config = read_config(Path(workdir), network=network)
        model, variables, _ = load_variables(Path(workdir), config, step)
        return _of_config(cls, config, model, variables)

    @classmethod
    def pretrained(cls) -> "Detector":
        """Load the detector of PASCAL VOC's 20 classes that comes with the package; docs/pretrained.md describes it.

        Raises:
            InputError: Its file is damaged.
        """
        return cls.from_file("pretrained")

    @classmethod
    def from_file(cls, path: str | Path, *, network: str = "") -> "Detector":
        """Load a detector from a single file, which `frcnn convert-weights WORKDIR FILE.safetensors` writes.

        Args:
            path: The file.
            network: As in `from_workdir`.

        Raises:
            InputError: The file can't be read, holds no complete detector, or its network is a function and none is
                given.
        """
        config, model, variables = detector_of(read_weights(path), str(path), network=network)
        return _of_config(cls, config, model, variables)

    @classmethod
    def load(cls, source: str | Path | None, *, step: int | None = None, network: str = "") -> "Detector":
        """Load a detector from a workdir or a single file, or the one that comes with the package where None.

        Args:
            source: The workdir or file.
            step: Of a workdir, as in `from_workdir`.
            network: As in `from_workdir`.

        Raises:
            InputError: As in `from_workdir` and `from_file`, or `step` is given without a workdir, or `network` without
                a source.
        """
        if source is not None and not Path(source).is_file():
            return cls.from_workdir(source, step=step, network=network)
        if step is not None or (network and source is None):
            raise InputError("step and network belong to a workdir")
        return cls.pretrained() if source is None else cls.from_file(source, network=network)

    @classmethod
    def from_weights(cls, weights: str | Path, *, network: str, sizes: Sequence[Sizes] = (Sizes(),)) -> "Detector":
        """Load a pretrained network, such as one from ImageNet, for `embed` alone: it has no trained classifier.

        Args:
            weights: A weight file (`read_weights`) or a workdir.
            network: A name in NETWORKS or a function, see `get_network`.
            sizes: Sizes to which images are resized; several make an image pyramid.

        Raises:
            InputError: The file can't be read or does not fit, or there is no such network.
        """
        model, path = get_network(network).build(1), Path(weights)
        arrays = fit_weights(
            workdir_weights(path, network=network) if path.is_dir() else read_weights(path), model, str(weights)
        )
        variables = init_variables(model, jax.random.key(0))
        params = load_pretrained(variables["params"], arrays, roi_size=model.roi_size, source=str(weights))
        detector = cls(model, {**variables, "params": params}, class_names=("object",), sizes=sizes)
        layers = {name.split(".")[0] for name in arrays}
        detector._untrained = variables["params"]["head"].keys() - layers | {"cls_score"}
        detector._source = str(weights)
        return detector

    def __call__(
        self,
        image: Any,
        rois: Any = None,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float | None = None,
        max_detections: int = 100,
    ) -> Any:
        """Detect objects in one image, or in each of a list.

        Args:
            image: A path, a PIL image or `(H, W, 3)` uint8 RGB, or a list of images.
            rois: `(N, 4)` proposals in pixels of the image, from the detector's search where None; a list of those for
                a list of images.
            score_threshold: Minimum score of a detection.
            nms_threshold: IoU, in [0, 1], above which a detection is dropped for a better one of its class;
                `options.nms_iou` where None.
            max_detections: Maximum number of detections over all classes, at least 0.

        Returns:
            Boxes `(D, 4)` float32 in pixels of the image, labels `(D,)` int32 from 1 to K, scores `(D,)`, best first; a
            list of those for a list of images.

        Raises:
            InputError: The image can't be read, image or RoIs have the wrong shape or are not finite, or an option is
                out of range.
        """
        if isinstance(image, list | tuple):
            options: dict[str, Any] = {"nms_threshold": nms_threshold, "max_detections": max_detections}
            return list(self.detect_each(image, rois, score_threshold=score_threshold, **options))
        self._check_trained("cls_score")
        pixels = read_image(image)
        rois = propose(self._search, pixels) if rois is None else rois  # checked by prepare_test
        if max_detections < 0:
            raise InputError(f"max_detections must be at least 0, got {max_detections}")
        threshold = self._options.nms_iou if nms_threshold is None else nms_threshold
        if threshold not in self._predict:
            self._predict[threshold] = make_predict_step(self._model, options=replace(self._options, nms_iou=threshold))
        batch = prepare_test(
            pixels, rois, sizes=self._sizes, pixels=self._model.pixels, spatial_scale=self._model.rounding_scale
        )
        boxes, scores, valid = (p[0] for p in jax.device_get(self._predict[threshold](self._variables, batch)))
        return select_detections(boxes, scores, valid, score_threshold, max_detections)

    def detect_each(
        self,
        images: Iterable[Any],
        rois: Iterable[np.ndarray] | None = None,
        *,
        executor: Executor | None = None,
        **options: Any,
    ) -> Iterator[Detections]:
        """Yield the detections in each image in turn, and search the next images meanwhile.

        Args:
            images: Images as a call takes them; few are held at a time.
            rois: `(N, 4)` proposals of each; from the detector's search where None.
            executor: Runs the searches, such as a `ProcessPoolExecutor`; a thread where None.
            options: As in a call.

        Raises:
            InputError: As in a call.
        """
        if rois is not None:
            for image, own in zip(images, rois, strict=True):
                yield self(image, own, **options)
            return
        with nullcontext(executor) if executor else ThreadPoolExecutor(1) as pool:
            searches: deque[tuple[Any, Future]] = deque()
            todo = iter(images)
            try:
                while True:
                    while len(searches) < _AHEAD and (image := next(todo, None)) is not None:
                        searches.append((image, pool.submit(propose, self._search, image)))
                    if not searches:
                        return
                    image, search = searches.popleft()
                    yield self(image, search.result(), **options)
            except BrokenExecutor:
                raise InputError("a process that searched for proposals was killed (out of memory?)") from None
            finally:
                for _, search in searches:
                    search.cancel()

    def classify(self, image: Any, boxes: Any, *, invalid: str = "raise") -> RegionScores | list[RegionScores]:
        """Classify given regions. Row i is box i: nothing is suppressed, dropped or reordered.

        Args:
            image: A path, a PIL image or `(H, W, 3)` uint8 RGB, or a list of images, which are decoded ahead.
            boxes: `(R, 4)` (x1, y1, x2, y2) in pixels of the image, an array or a list; a list of those for a list of
                images. R may be 0 and is not limited: regions run in chunks.
            invalid: What to do with a box that is outside the image or not finite, or has x2 <= x1 or y2 <= y1: "raise"
                an error, or give it a row of "nan". A box partly outside is taken as it is.

        Returns:
            Probabilities and logits `(R, K + 1)`, background first, and boxes `(R, K, 4)` moved by each class's
            regression, float32; a list of those for a list of images.

        Raises:
            InputError: An image can't be read, an array has the wrong shape, a box is invalid, or the classifier gives
                no probabilities.
        """
        self._check_trained("cls_score")
        if self._scores is None:
            self._scores = classify_step(self._model, box_regression=self._options.box_regression)
        many = isinstance(image, list | tuple)
        images, boxes = (image, boxes) if many else ([image], [boxes])
        rows = self._rows(self._scores, images, boxes, invalid)
        return list(rows) if many else next(rows)

    def embed(self, image: Any, boxes: Any, *, layer: str = "fc7", invalid: str = "raise") -> Any:
        """Return the features of given regions. Row i is box i.

        Args:
            image, boxes, invalid: As in `classify`.
            layer: "pooled" (rows, columns and channels in one axis), "fc6", "fc7", or another name under which the head
                sows into "embeddings".

        Returns:
            `(R, D)` float32; a list of those for a list of images.

        Raises:
            InputError: As in `classify`, or there is no such layer.
        """
        many = isinstance(image, list | tuple)
        rows = self.embed_each(*((image, boxes) if many else ([image], [boxes])), layer=layer, invalid=invalid)
        return list(rows) if many else next(rows)

    def embed_each(
        self, images: Sequence[Any], boxes: Sequence[Any], *, layer: str = "fc7", invalid: str = "raise"
    ) -> Iterator[np.ndarray]:
        """Yield the features of the regions of each image in turn, for more images than fit into memory.

        Args:
            images: Images as `classify` takes them, which are decoded ahead.
            boxes: `(R, 4)` boxes of each.
            layer, invalid: As in `embed`.

        Raises:
            InputError: As in `embed`.
        """
        self._check_trained(layer)
        if layer not in self._steps:
            self._steps[layer] = embed_step(self._model, layer=layer)
        return self._rows(self._steps[layer], images, boxes, invalid)

    def digest(self) -> bytes:
        """Return a digest of the network, its variables and the image sizes, on which features depend."""
        digest = hashlib.sha256(description(self._model, self._sizes))
        for array in jax.tree.leaves(self._variables):
            digest.update(np.ascontiguousarray(array).data)
        return digest.digest()

    def _check_trained(self, layer: str) -> None:
        if layer in self._untrained:
            what = "a classifier" if layer == "cls_score" else layer
            hidden = self._variables["params"]["head"].keys() - OUTPUTS - self._untrained
            usable = ", ".join(["pooled", *sorted(hidden)])
            raise InputError(f"{self._source}: pretrained weights without {what}; embed gives {usable}")

    def _rows(self, step: RegionStep, images: Sequence[Any], boxes: Sequence[Any], invalid: str) -> Iterator[Any]:
        batches = RegionBatches(images, boxes, self._sizes, self._model.pixels, invalid)
        return run_regions(step, self._variables, batches)


def _of_config(cls: type[Detector], config: Config, model: FastRCNN, variables: Any) -> Detector:
    searches = [name for name in split_source(config["proposals"]) if make_search(name)]  # the others are files
    return cls(
        model,
        variables,
        class_names=config["class_names"],
        sizes=image_sizes(config),
        options=detection_options(config),
        proposals=searches[0] if searches else "standard",
        proposal_size=config["proposal_size"] or None,
        max_proposals=config["max_proposals"],
    )


def _make_search(
    proposals: str | Callable[[np.ndarray], Any], size: int | None, max_boxes: int
) -> Callable[[np.ndarray], Any]:
    if callable(proposals):
        return proposals
    if isinstance(proposals, str) and (search := make_search(proposals, size=size, max_boxes=max_boxes)):
        return search
    raise InputError(f"proposals must be {', '.join(MODES)}, edge_boxes:MODEL or a function, got {proposals!r}")
