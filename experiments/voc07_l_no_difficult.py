r"""Network L on VOC2007 without the objects marked difficult (table 1).

    frcnn train --workdir W --config voc07_l_no_difficult \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 68.1. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe with the change named above."""
    config = voc07_config("vgg16")
    config.train_difficult = False
    return config
