r"""Network M (VGG_CNN_M_1024) on VOC2007.

    frcnn train --workdir W --config voc07_m \
        --config.voc_dir=VOCDEVKIT --config.weights=VGG_CNN_M_1024.caffemodel

Paper: mAP 59.2. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe."""
    return voc07_config("vgg_cnn_m_1024")
