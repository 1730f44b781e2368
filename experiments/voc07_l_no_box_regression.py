r"""Network L on VOC2007, multi-task training, box head unused at test (table 6).

    python -m frcnn_jax.train --workdir W --config experiments/voc07_l_no_box_regression.py \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 63.4. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe, with the change that the title names."""
    config = voc07_config("vgg16")
    config.test_box_regression = False
    return config
