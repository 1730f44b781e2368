r"""Network L on VOC2007, trained from fc6, all convolutions frozen (table 5).

    frcnn train --workdir W --config voc07_l_fc_only \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 61.4. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe with the change named above."""
    config = voc07_config("vgg16")
    config.train_from = "fc6"
    return config
