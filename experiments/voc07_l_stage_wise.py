r"""Network L on VOC2007, stage-wise: classes first, then the box head alone on the frozen network (section 5.1).

    frcnn train --workdir W1 --config voc07_l_classes_only \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth && \
    frcnn train --workdir W --config voc07_l_stage_wise \
        --config.voc_dir=VOCDEVKIT --config.weights=W1 --config.proposal_cache=W1/proposals

Paper: mAP 64.0. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe with the change named above."""
    config = voc07_config("vgg16")
    config.train_from = "bbox_pred"
    return config
