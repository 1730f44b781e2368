r"""EfficientNet-Lite0 on VOC2007 train, scored on val: the detector in the package; README.md in this folder has more.

    frcnn train --workdir W --config voc07_lite0 --config.voc_dir=VOCDEVKIT

The head is trained on stored maps of the ImageNet network, all of whose stages stay as they are.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import lite0_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = lite0_config()
    config.update(dataset="voc", weights="lite0", bg_iou_low=0.1, steps=4000, warmup_steps=200)
    return config
