r"""Network L on the union of VOC2007 and VOC2012 trainval, scored on VOC2007 test (section 4.2).

    python -m frcnn_jax.train --workdir W --config experiments/voc0712_l.py \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 70.0. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe: 60,000 steps, the rate drops after 30,000."""
    config = voc07_config("vgg16")
    config.train_split = "2007_trainval+2012_trainval"
    config.steps = 60_000
    return config
