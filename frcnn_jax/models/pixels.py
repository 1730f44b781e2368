"""How a network wants its pixels: channel order, mean and scale."""

from typing import NamedTuple

import numpy as np

CAFFE_MEANS = np.array([102.9801, 115.9465, 122.7717])  # BGR, of 0 to 255: the paper's code, for all networks


class PixelNorm(NamedTuple):
    """Channel order, and the mean and standard deviation that normalise pixels of 0 to 255.

    Attributes:
        order: "RGB" or "BGR".
        mean: Per channel, in `order`; subtracted first.
        std: Per channel, in `order`.
    """

    order: str = "BGR"
    mean: tuple[float, float, float] = tuple(CAFFE_MEANS.tolist())
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Normalise a `(H, W, 3)` uint8 RGB image to float32 in the network's channel order."""
        if self.order not in ("RGB", "BGR"):
            raise ValueError(f"order must be RGB or BGR, got {self.order!r}")
        ordered = image if self.order == "RGB" else image[..., ::-1]
        centred = ordered.astype(np.float32) - np.asarray(self.mean, np.float32)
        return centred if set(self.std) == {1.0} else centred / np.asarray(self.std, np.float32)
