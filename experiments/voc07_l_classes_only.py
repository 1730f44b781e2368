r"""Network L on VOC2007, classification loss only (table 6).

    python -m frcnn_jax.train --workdir W --config experiments/voc07_l_classes_only.py \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 62.6. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe, with the change that the title names."""
    config = voc07_config("vgg16")
    config.box_loss_weight = 0.0
    config.test_box_regression = False
    return config
