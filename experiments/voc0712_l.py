r"""Network L on the union of VOC2007 and VOC2012 trainval, scored on VOC2007 test (section 4.2).

    frcnn train --workdir W --config voc0712_l \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 70.0. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe: 60,000 steps, the learning rate drops after 30,000."""
    config = voc07_config("vgg16")
    config.train_split = "2007_trainval+2012_trainval"
    config.steps = 60_000
    return config
