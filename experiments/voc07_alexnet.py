r"""Network S in AlexNet's order on VOC2007 train, scored on val; see README.md here for the measured score.

    python -m frcnn_jax.train --workdir W --config experiments/voc07_alexnet.py \
        --config.voc_dir=VOCDEVKIT --config.weights=alexnet_imagenet_conv.npz

fc6 and fc7 start at random.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe, with fewer steps."""
    config = voc07_config("alexnet")
    config.train_split = "train"
    config.val_split = "val"
    config.steps = 2000
    config.learning_rate_drops = (1500,)
    config.checkpoint_every = 500
    config.candidates_per_class = 300  # the paper's code has 100
    return config
