r"""Network M on VOC2007, trained and tested at five scales (section 5.2).

    frcnn train --workdir W --config voc07_m_five_scales \
        --config.voc_dir=VOCDEVKIT --config.weights=VGG_CNN_M_1024.v2.caffemodel

Paper: mAP 60.7. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe with the change named above."""
    config = voc07_config("vgg_cnn_m_1024")
    config.scales = (480, 576, 688, 864, 1200)
    config.max_size = 2000
    return config
