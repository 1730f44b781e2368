r"""Network S in AlexNet's order on VOC2007 train, scored on val; README.md in this folder has the scores.

    frcnn train --workdir W --config voc07_alexnet \
        --config.voc_dir=VOCDEVKIT --config.weights=alexnet_imagenet_conv.npz

fc6 and fc7 start from random weights.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe with fewer steps and the default search."""
    config = voc07_config("alexnet")
    config.proposals = "standard"
    config.train_split = "train"
    config.val_split = "val"
    config.steps = 2000
    config.learning_rate_drops = (1500,)
    config.checkpoint_every = 500
    config.candidates_per_class = 300  # the paper's code has 100
    return config
