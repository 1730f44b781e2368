r"""ResNet-50 with FPN on COCO, on the schedule of Detectron2's `fast_rcnn_R_50_FPN_1x` (37.8 box AP on val2017).

    frcnn train --workdir W --config coco_r50_fpn \
        --config.data_dir=COCO --config.weights=R-50.pkl --config.proposals=PROPOSALS

Its published model is evaluated without training; docs/backbones.md has the commands. Unlike Detectron2, all images
have one size, and biases learn at twice the rate.
"""

from ml_collections import ConfigDict

from frcnn_jax import config as defaults


def get_config() -> ConfigDict:
    """Return the recipe, for 16 images per batch."""
    config = defaults.get_config()
    config.update(
        dataset="coco",
        train_split="train2017",
        val_split="val2017",
        network="resnet50_fpn_caffe",
        min_size=800,
        max_size=1333,
        images_per_batch=16,
        rois_per_batch=16 * 512,
        reference_images=16,
        steps=90_000,
        learning_rate=0.02,
        learning_rate_drops=(60_000, 80_000),
        warmup_steps=1000,
        weight_decay=0.0001,
        checkpoint_every=5000,
        max_proposals=1000,
        nms_iou=0.5,
        candidates_per_class=300,
    )
    return config
