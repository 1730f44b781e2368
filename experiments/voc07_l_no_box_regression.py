r"""Network L on VOC2007, multi-task training, box head not used at test (table 6).

    frcnn train --workdir W --config voc07_l_no_box_regression \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 63.4. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe with the change named above."""
    config = voc07_config("vgg16")
    config.test_box_regression = False
    return config
