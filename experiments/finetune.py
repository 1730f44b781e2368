r"""Your own photographs, from the detector of VOC's 20 classes that comes with the package:

    frcnn train --workdir W --config finetune --config.data_dir=FOLDER

FOLDER is a data set in any layout that `frcnn_jax.read_dataset` knows. The head is trained on stored maps: 600 steps
of four images or, on more than 240 images, ten passes. docs/data.md has scores and times on public data sets.
"""

from ml_collections import ConfigDict

from frcnn_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = defaults.get_config()
    config.update(
        dataset="auto",
        network="efficientnet_lite0_dilated",
        weights="pretrained",
        freeze=("backbone", "neck"),
        feature_cache="workdir",
        min_size=480,
        max_size=640,
        images_per_batch=4,
        reference_images=4,
        rois_per_batch=512,
        optimizer="adamw",
        schedule="cosine",
        learning_rate=0.0005,
        weight_decay=0.05,
        warmup_steps=50,
        steps=600,
        epochs=10.0,
        candidates_per_class=300,
    )
    return config
