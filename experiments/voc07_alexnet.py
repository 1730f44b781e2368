r"""Network S in AlexNet's order on VOC2007 train, scored on val; see README.md here for the measured score.

    python -m frcnn_jax.train --workdir W --config experiments/voc07_alexnet.py \
        --config.voc_dir=VOCDEVKIT --config.weights=alexnet_imagenet_conv.npz

fc6 and fc7 start at random.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import get_config as get_base_config


def get_config() -> ConfigDict:
    """The paper's recipe, with fewer steps."""
    config = get_base_config()
    config.dataset = "voc"
    config.network = "alexnet"
    config.min_size = 600
    config.max_size = 1000
    config.bg_iou_low = 0.1
    config.learning_rate = 0.001
    config.steps = 2000
    config.learning_rate_drops = (1500,)
    return config
