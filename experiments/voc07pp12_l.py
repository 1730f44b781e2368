r"""Network L on VOC2007 trainval and test and VOC2012 trainval, "07++12" (section 4.2).

The annotations of VOC2012 test are not public, so the paper's scores come from the evaluation server. The score printed
at the end is on VOC2007 test, which is part of the training set, and means nothing.

    frcnn train --workdir W --config voc07pp12_l \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 68.8 (VOC2010 test), 68.4 (VOC2012 test), by area. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe: 100,000 steps, the learning rate drops every 40,000."""
    config = voc07_config("vgg16")
    config.train_split = "2007_trainval+2007_test+2012_trainval"
    config.steps = 100_000
    config.learning_rate_drops = (40_000, 80_000)
    return config
