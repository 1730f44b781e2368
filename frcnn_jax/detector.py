"""`Detector`, a trained network applied to single images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from frcnn_jax.build import detection_options, image_sizes
from frcnn_jax.data.batches import Sizes, prepare_test
from frcnn_jax.data.records import check_image, load_image
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import DetectionOptions, Detections, Predictions, make_predict_step, select_detections
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.proposals.search import selective_search
from frcnn_jax.workdir import load_variables, read_config


class Detector:
    """A trained network that detects objects in images.

    Args:
        model: The network.
        variables: Its collections "params" and "box_stats".
        class_names: Names of labels 1 to K.
        sizes: Sizes to which images are resized; several make an image pyramid.
        options: Options of NMS and box regression.
        proposal_mode: Mode of selective search, "fast" or "quality", used where no RoIs are given.
        max_proposals: Maximum number of proposals from selective search.

    Raises:
        InputError: The number of class names is not K.
    """

    def __init__(
        self,
        model: FastRCNN,
        variables: Any,
        *,
        class_names: Sequence[str],
        sizes: Sequence[Sizes] = (Sizes(),),
        options: DetectionOptions = DetectionOptions(),
        proposal_mode: str = "fast",
        max_proposals: int = 2000,
    ) -> None:
        if len(class_names) != model.num_classes:
            raise InputError(f"class_names must be the network's {model.num_classes} names, got {len(class_names)}")
        self.class_names = tuple(class_names)
        self._model, self._variables, self._sizes, self._options = model, variables, tuple(sizes), options
        self._search = partial(selective_search, mode=proposal_mode, max_boxes=max_proposals)
        self._predict: dict[float, Callable[..., Predictions]] = {}  # by NMS threshold

    @classmethod
    def from_workdir(cls, workdir: str | Path, *, step: int | None = None) -> "Detector":
        """Load the detector from the newest checkpoint of a workdir, or from that of `step`.

        Raises:
            InputError: The workdir has no such checkpoint.
        """
        config = read_config(Path(workdir))
        model, variables, _ = load_variables(Path(workdir), config, step)
        return cls(
            model,
            variables,
            class_names=config["class_names"],
            sizes=image_sizes(config),
            options=detection_options(config),
            proposal_mode=config["proposal_mode"],
            max_proposals=config["max_proposals"],
        )

    def __call__(
        self,
        image: Any,
        rois: np.ndarray | None = None,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float | None = None,
        max_detections: int = 100,
    ) -> Detections:
        """Detect objects in one image.

        Args:
            image: A path, a PIL image or `(H, W, 3)` uint8 RGB.
            rois: `(N, 4)` proposals in pixels of the image; from selective search where None.
            score_threshold: Minimum score of a detection.
            nms_threshold: IoU, in [0, 1], above which a detection is dropped for a better one of its class;
                `options.nms_iou` where None.
            max_detections: Maximum number of detections over all classes, at least 0.

        Returns:
            Boxes `(D, 4)` float32 in pixels of the image, labels `(D,)` int32 from 1 to K, scores `(D,)`, best first.

        Raises:
            InputError: The image can't be read, image or RoIs have the wrong shape or are not finite, or an option is
                out of range.
        """
        pixels = _read_image(image)
        rois = self._search(pixels) if rois is None else rois  # checked by prepare_test
        if max_detections < 0:
            raise InputError(f"max_detections must be at least 0, got {max_detections}")
        threshold = self._options.nms_iou if nms_threshold is None else nms_threshold
        if threshold not in self._predict:
            self._predict[threshold] = make_predict_step(self._model, options=replace(self._options, nms_iou=threshold))
        batch = prepare_test(
            pixels, rois, sizes=self._sizes, pixels=self._model.pixels, spatial_scale=self._model.spatial_scale
        )
        boxes, scores, valid = (p[0] for p in jax.device_get(self._predict[threshold](self._variables, batch)))
        return select_detections(boxes, scores, valid, score_threshold, max_detections)


def _read_image(image: Any) -> np.ndarray:
    """Return a path, PIL image or array as `(H, W, 3)` uint8 RGB."""
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image).convert("RGB")
    return check_image(image)
