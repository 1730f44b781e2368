r"""Network L on VOC2007, one SVM a class on fc7 in place of the softmax (section 5.4).

    python -m frcnn_jax.train --workdir W --config experiments/voc07_l_svm.py \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth && \
    python scripts/train_svm.py --workdir W

Paper: mAP 66.8 against 66.9. Measured: not yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """The paper's recipe; the second command trains SVMs on what it trained."""
    return voc07_config("vgg16")
