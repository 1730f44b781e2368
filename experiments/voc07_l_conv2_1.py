r"""Network L on VOC2007, trained from conv2_1 (table 5).

    frcnn train --workdir W --config voc07_l_conv2_1 \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 67.2. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe with the change named above."""
    config = voc07_config("vgg16")
    config.train_from = "conv2_1"
    return config
