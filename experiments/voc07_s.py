r"""Network S (CaffeNet) on VOC2007.

    python -m frcnn_jax.train --workdir W --config experiments/voc07_s.py \
        --config.voc_dir=VOCDEVKIT --config.weights=CaffeNet.caffemodel

Paper: mAP 57.1. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return voc07_config("caffenet")
