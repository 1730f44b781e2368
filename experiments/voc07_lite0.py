r"""EfficientNet-Lite0 on VOC2007 train, scored on val: the detector in the package; README.md in this folder has more.

    frcnn train --workdir W --config voc07_lite0 --config.voc_dir=VOCDEVKIT

The head is trained on stored maps of the ImageNet network, all of whose stages stay as they are.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the recipe for batches of four images."""
    config = voc07_config("efficientnet_lite0_dilated")
    config.update(
        proposals="standard",
        train_split="train",
        val_split="val",
        min_size=480,
        max_size=640,
        weights="lite0",
        freeze=("backbone", "neck"),
        feature_cache="workdir",
        images_per_batch=4,
        reference_images=4,
        rois_per_batch=512,
        optimizer="adamw",
        schedule="cosine",
        learning_rate=0.0005,
        weight_decay=0.05,
        warmup_steps=200,
        steps=4000,
        checkpoint_every=500,
        candidates_per_class=300,
    )
    return config
