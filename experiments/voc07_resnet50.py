r"""ResNet-50, C4, on VOC2007 train, scored on val; README.md in this folder has more.

    frcnn train --workdir W --config voc07_resnet50 --config.voc_dir=VOCDEVKIT --config.weights=FILE

The head, a 1x1 layer and two fully connected ones, is trained on stored maps of the ImageNet network.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import lite0_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = lite0_config()
    config.update(
        dataset="voc",
        network="resnet50_fc",
        freeze=("backbone",),
        flip=False,
        bg_iou_low=0.1,
        rois_per_batch=256,
        steps=3000,
        warmup_steps=200,
    )
    return config
