r"""Network S (CaffeNet) on VOC2007.

    frcnn train --workdir W --config voc07_s \
        --config.voc_dir=VOCDEVKIT --config.weights=CaffeNet.caffemodel

Paper: mAP 57.1. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe."""
    return voc07_config("caffenet")
