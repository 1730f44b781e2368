r"""Network L (VGG16) on VOC2007.

    python -m frcnn_jax.train --workdir W --config experiments/voc07_l.py \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth

Paper: mAP 66.9. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return voc07_config("vgg16")
