"""Region proposals of an image by OpenCV's selective search (Uijlings et al. 2013), a pure function of the pixels.

OpenCV ranks its boxes with C `rand()`; libc is seeded with the image's digest before each call, so the same image gives
the same bytes in any worker and any run.
"""

import ctypes
import hashlib
import math
import threading
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from frcnn_jax.data.records import check_image
from frcnn_jax.errors import InputError

_RAND = threading.Lock()  # C rand() has one state per process, and a cluster's workers may run several threads


class Mode(NamedTuple):
    """What a search merges; `docs/proposals.md` compares these. OpenCV's own settings where `colors` is empty."""

    size: int | None = None  # longer side, in pixels, to which larger images are shrunk
    colors: tuple[str, ...] = ()  # colour spaces
    thresholds: tuple[float, ...] = ()  # k of the graph segmentations that give the first regions
    similarities: tuple[str, ...] = ()  # sums of measures, each by its first letter: colour, size, fill
    sigma: float = 0.8  # of the Gaussian that smooths the image, in pixels


MODES = {
    "standard": Mode(350, ("hsv", "lab"), (75, 150, 300), ("csf", "sf", "f")),
    "fast": Mode(300, ("hsv", "lab"), (75, 150), ("csf", "sf"), sigma=0.6),
    "paper": Mode(),  # OpenCV's fast mode
    "quality": Mode(),
}


def image_digest(image: np.ndarray) -> bytes:
    """Return a digest of an image's pixels and shape, 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, key=repr(image.shape).encode()).digest()


def opencv() -> Any:
    """Return the module cv2.

    Raises:
        InputError: It is missing, or comes without its extra modules, which have the searches.
    """
    needs = "the search for proposals needs opencv-contrib-python-headless"
    try:
        import cv2
    except ImportError as error:  # also a system library that it needs
        raise InputError(f"{needs}: {error}; pip install opencv-contrib-python-headless") from None
    if hasattr(cv2, "ximgproc") and hasattr(cv2.ximgproc, "segmentation"):
        return cv2
    installed = sorted({d.name for d in metadata.distributions() if d.name.startswith("opencv")})
    fault = "which overwrite each other's files" if len(installed) > 1 else "which lacks it"
    uninstall = f"pip uninstall -y {' '.join(installed)} && " if installed else ""
    raise InputError(
        f"{needs}; installed: {' and '.join(installed) or 'another build'}, {fault}; "
        f"{uninstall}pip install opencv-contrib-python-headless"
    )


def check_search(size: int | None, max_boxes: int) -> None:
    """Raise InputError unless these options of a search are at least 1."""
    if size is not None and size < 1:
        raise InputError(f"the size of the searched image must be at least 1, got {size}")
    if max_boxes < 1:
        raise InputError(f"max_boxes must be at least 1, got {max_boxes}")


@dataclass(frozen=True)
class SelectiveSearch:
    """A selective search with its options, a function of an image.

    Attributes:
        mode: A key of MODES.
        size: Longer side, in pixels, to which larger images are shrunk for the search; None for the mode's.
        max_boxes: Maximum number of boxes; the best ranked are kept.

    Raises:
        InputError: The mode is unknown, or `size` or `max_boxes` is below 1.
    """

    mode: str = "standard"
    size: int | None = None
    max_boxes: int = 2000

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"selective search mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        check_search(self.size, self.max_boxes)

    def __str__(self) -> str:
        """Return a name that tells all options, and OpenCV's version."""
        size = self.size or MODES[self.mode].size or "any"
        return f"selective_search-{self.mode}-{size}-{self.max_boxes}-cv{opencv().__version__}"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the proposals of an image; see `selective_search`."""
        cv2, mode = opencv(), MODES[self.mode]
        small, factors = shrink(image, self.size or mode.size)
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(bgr := np.ascontiguousarray(small[..., ::-1]))
        if self.mode == "paper":
            search.switchToSelectiveSearchFast()
        elif self.mode == "quality":
            search.switchToSelectiveSearchQuality()
        else:
            _set_up(search, mode, bgr)
        with _RAND:
            ctypes.CDLL(None).srand(int.from_bytes(image_digest(small)[:4], "little"))
            found = search.process()[: self.max_boxes]
        return enlarge(found, factors)


STANDARD = SelectiveSearch()


MAX_SEARCHED = 16_000_000  # pixels; a search takes about 70 bytes for each, and hours for more


def shrink(image: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return an image shrunk to a longer side of `size` and to MAX_SEARCHED pixels, and the factors (x, y) back.

    Raises:
        InputError: The image has the wrong shape or type.
    """
    image = check_image(image)
    height, width = image.shape[:2]
    factor = min(size / max(height, width) if size else 1, math.sqrt(MAX_SEARCHED / (height * width)), 1)
    if factor == 1:
        return image, np.ones(2)
    rows, columns = (max(round(side * factor), 1) for side in (height, width))
    small = opencv().resize(image, (columns, rows), interpolation=opencv().INTER_AREA)
    return small, np.array([width / columns, height / rows])


def enlarge(boxes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return OpenCV's boxes (x, y, width, height) as inclusive corners in whole pixels of the image before `shrink`."""
    corner, size = boxes[:, :2], boxes[:, 2:]
    edges = np.concatenate([corner * factors, (corner + size) * factors], axis=1)
    return (np.rint(edges) - [0, 0, 1, 1]).astype(np.float32)


def selective_search(
    image: np.ndarray, *, mode: str = "standard", size: int | None = None, max_boxes: int = 2000
) -> np.ndarray:
    """Return selective search's proposals for an image (Uijlings et al. 2013), the paper's choice (section 2.3).

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mode: "standard"; "fast", half its time for fewer objects found; "paper", OpenCV's fast mode at full size, the
            paper's; or "quality", more boxes, several times slower.
        size: Longer side, in pixels, to which larger images are shrunk for the search; their boxes are scaled back.
            None for the mode's: 350 for "standard", 300 for "fast", no limit for "paper" and "quality" but MAX_SEARCHED
            pixels, which holds for every size.
        max_boxes: Maximum number of boxes; the best ranked are kept.

    Returns:
        `(N, 4)` float32 boxes (x1, y1, x2, y2), whole numbers, 0-based and inclusive, best ranked first; N is at least
        1, all are different.

    Raises:
        InputError: The mode is unknown, `size` or `max_boxes` is below 1, or the image has the wrong shape or type.
    """
    return SelectiveSearch(mode, size, max_boxes)(image)


def _set_up(search: Any, mode: Mode, bgr: np.ndarray) -> None:
    """Replace the settings of OpenCV's search, whose other parameters are those of its fast mode."""
    cv2 = opencv()
    segmentation = cv2.ximgproc.segmentation
    to_color = {"hsv": cv2.COLOR_BGR2HSV, "lab": cv2.COLOR_BGR2Lab}
    measures = {
        "c": segmentation.createSelectiveSearchSegmentationStrategyColor,
        "s": segmentation.createSelectiveSearchSegmentationStrategySize,
        "f": segmentation.createSelectiveSearchSegmentationStrategyFill,
    }
    search.clearImages()
    search.clearGraphSegmentations()
    search.clearStrategies()
    for color in mode.colors:
        search.addImage(cv2.cvtColor(bgr, to_color[color]))
    for threshold in mode.thresholds:
        search.addGraphSegmentation(segmentation.createGraphSegmentation(mode.sigma, threshold, 100))
    for similarity in mode.similarities:
        parts = [measures[letter]() for letter in similarity]
        search.addStrategy(segmentation.createSelectiveSearchSegmentationStrategyMultiple(*parts))
