"""Pixel normalisation: channel order, mean and scale."""

from dataclasses import dataclass

import numpy as np

from frcnn_jax.errors import InputError

CAFFE_MEANS = np.array([102.9801, 115.9465, 122.7717])  # BGR, 0 to 255; the paper's code has them for all networks


@dataclass(frozen=True)
class PixelNorm:
    """Channel order, and the mean and standard deviation that normalise pixels of 0 to 255.

    Attributes:
        order: "RGB" or "BGR".
        mean: Per channel, in `order`; subtracted first.
        std: Per channel, in `order`; positive.

    Raises:
        InputError: The order is unknown, or the mean or std is not three finite numbers, or a std is not positive.
    """

    order: str = "BGR"
    mean: tuple[float, float, float] = tuple(CAFFE_MEANS.tolist())
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR"):
            raise InputError(f"order must be RGB or BGR, got {self.order!r}")
        if np.shape(self.mean) != (3,) or not np.isfinite(self.mean).all():
            raise InputError(f"mean must be three finite numbers, got {self.mean}")
        if np.shape(self.std) != (3,) or not all(0 < value < np.inf for value in self.std):
            raise InputError(f"std must be three positive finite numbers, got {self.std}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Normalise a `(H, W, 3)` uint8 RGB image to float32 in the network's channel order."""
        import cv2

        values = np.arange(256, dtype=np.float32)[:, None]
        table: np.ndarray = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)  # (256, 3)
        image = np.ascontiguousarray(image)
        return cv2.LUT(image if self.order == "RGB" else cv2.cvtColor(image, cv2.COLOR_RGB2BGR), table[None])


TORCHVISION = PixelNorm("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # 0.485 * 255, 0.229 * 255, ...
CAFFE_RESNET = PixelNorm("BGR", (103.53, 116.28, 123.675))  # Detectron2's, for the weights of MSRA
KERAS = PixelNorm("BGR", (103.939, 116.779, 123.68))  # mode "caffe" of Keras's preprocessing
LITE = PixelNorm("RGB", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))  # EfficientNet-Lite
