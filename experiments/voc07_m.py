r"""Network M (VGG_CNN_M_1024) on VOC2007.

    python -m frcnn_jax.train --workdir W --config experiments/voc07_m.py \
        --config.voc_dir=VOCDEVKIT --config.weights=VGG_CNN_M_1024.caffemodel

Paper: mAP 59.2. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return voc07_config("vgg_cnn_m_1024")
