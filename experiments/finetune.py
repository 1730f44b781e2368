r"""Your own photographs, from the detector of VOC's 20 classes that comes with the package:

    frcnn train --workdir W --config finetune --config.data_dir=FOLDER

FOLDER is a data set in any layout that `frcnn_jax.read_dataset` knows. The head is trained on stored maps: 600 steps
of four images or, on more than 240 images, ten passes. docs/data.md has scores and times on public data sets.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import lite0_config


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = lite0_config()
    config.update(dataset="auto", weights="pretrained", steps=600, epochs=10.0, warmup_steps=50)
    config.update(learning_rate=0.001, vote_iou=0.5)
    return config
