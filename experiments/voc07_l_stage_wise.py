r"""Network L on VOC2007, stage-wise: classes first, then the box head alone on the frozen network (section 5.1).

    python -m frcnn_jax.train --workdir W1 --config experiments/voc07_l_classes_only.py \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth && \
    python -m frcnn_jax.train --workdir W --config experiments/voc07_l_stage_wise.py \
        --config.voc_dir=VOCDEVKIT --config.weights=W1 --config.proposal_cache=W1/proposals

Paper: mAP 64.0. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe, with the change that the title names."""
    config = voc07_config("vgg16")
    config.train_from = "bbox_pred"
    return config
