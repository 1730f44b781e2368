r"""Network L on VOC2007, fc6 and fc7 then truncated to ranks 1024 and 256 (section 4.4).

    frcnn train --workdir W --config voc07_l_svd \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth && \
    frcnn compress --workdir W --fc6 1024 --fc7 256

Paper: mAP 66.6 against 66.9, 0.22 s against 0.32 s per image. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe; the second command factors the trained layers."""
    return voc07_config("vgg16")
