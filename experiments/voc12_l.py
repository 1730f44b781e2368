r"""Network L on VOC2012 trainval (section 4.2).

The annotations of VOC2012 test are not public, so the paper's score comes from the evaluation server. The score printed
at the end is on VOC2007 test.

    frcnn train --workdir W --config voc12_l \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 65.7 (area, VOC2012 test). Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe with the change named above."""
    config = voc07_config("vgg16")
    config.train_split = "2012_trainval"
    return config
