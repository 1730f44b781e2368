r"""Network L (VGG16) on VOC2007.

    frcnn train --workdir W --config voc07_l \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 66.9. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe."""
    return voc07_config("vgg16")
