"""Edge boxes (Zitnick and Dollar 2014) by OpenCV, with a model file that its package does not contain."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.proposals.search import check_search, enlarge, opencv, shrink

WHERE = "model.yml.gz of the repository opencv/opencv_extra, in testdata/cv/ximgproc"


@dataclass(frozen=True)
class EdgeBoxes:
    """Edge boxes with their options, a function of an image.

    Attributes:
        model: File of a structured forest that detects edges, for OpenCV's `createStructuredEdgeDetection`, which
            trusts its content.
        size: Longer side, in pixels, to which larger images are shrunk for the search; None for no limit.
        max_boxes: Maximum number of boxes; the best scored are kept.

    Raises:
        InputError: There is no such file, OpenCV can't read it, or `size` or `max_boxes` is below 1.
    """

    model: str
    size: int | None = None
    max_boxes: int = 2000

    def __post_init__(self) -> None:
        if not Path(self.model).is_file():
            raise InputError(f"edge_boxes:{self.model}: no such model file; OpenCV's is {WHERE}")
        check_search(self.size, self.max_boxes)
        _edge_detector(self.model)

    def __str__(self) -> str:
        """Return a name that tells all options, the model's content, and OpenCV's version."""
        model = hashlib.blake2b(Path(self.model).read_bytes(), digest_size=4).hexdigest()
        return f"edge_boxes-{model}-{self.size or 'any'}-{self.max_boxes}-cv{opencv().__version__}"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return `(N, 4)` float32 inclusive boxes of an image `(H, W, 3)` uint8 RGB, best first.

        Raises:
            InputError: The image has the wrong shape or type.
        """
        cv2 = opencv()
        small, factors = shrink(image, self.size)
        detector = _edge_detector(self.model)
        edges = detector.detectEdges(small.astype(np.float32) / 255)
        orientation = detector.computeOrientation(edges)
        search = cv2.ximgproc.createEdgeBoxes(maxBoxes=self.max_boxes)
        found, _ = search.getBoundingBoxes(detector.edgesNms(edges, orientation), orientation)
        return enlarge(np.asarray(found).reshape(-1, 4), factors)


@lru_cache(maxsize=1)
def _edge_detector(model: str) -> Any:
    cv2 = opencv()
    try:
        file = cv2.FileStorage(model, cv2.FILE_STORAGE_READ)  # must outlive its nodes
        if file.getNode("options").getNode("numberOfTrees").real() > 0:  # else OpenCV divides by zero
            return cv2.ximgproc.createStructuredEdgeDetection(model)
    except (cv2.error, SystemError):
        pass
    raise InputError(f"edge_boxes:{model}: not a model of edges")
