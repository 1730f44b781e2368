r"""Network L on VOC2012 trainval (section 4.2).

The objects of VOC2012 test are not public: the paper's score is of the evaluation server, the one printed at the end is
on VOC2007 test.

    python -m frcnn_jax.train --workdir W --config experiments/voc12_l.py \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 65.7 (area, VOC2012 test). Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe, with the change that the title names."""
    config = voc07_config("vgg16")
    config.train_split = "2012_trainval"
    return config
