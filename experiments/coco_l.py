r"""Network L on COCO train2014, scored on val2014 by the VOC rule (section 4.6).

COCO is a folder with annotations/instances_train2014.json and instances_val2014.json, train2014/ and val2014/.

    frcnn train --workdir W --config coco_l \
        --config.data_dir=COCO --config.weights=vgg16.pth

Paper: 35.9 by the VOC rule and 19.7 COCO AP, both on test-dev. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the recipe: 240,000 steps as in the paper; crowds are neither trained on nor scored."""
    config = voc07_config("vgg16")
    config.dataset = "coco"
    config.train_split = "train2014"
    config.val_split = "val2014"
    config.steps = 240_000
    config.learning_rate_drops = (180_000,)  # not given in the paper
    return config
