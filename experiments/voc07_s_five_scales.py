r"""Network S on VOC2007, trained and tested at five scales (section 5.2).

    python -m frcnn_jax.train --workdir W --config experiments/voc07_s_five_scales.py \
        --config.voc_dir=VOCDEVKIT --config.weights=CaffeNet.v2.caffemodel

Paper: mAP 58.4. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe, with the change that the title names."""
    config = voc07_config("caffenet")
    config.scales = (480, 576, 688, 864, 1200)
    config.max_size = 2000
    return config
