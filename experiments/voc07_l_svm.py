r"""Network L on VOC2007, one SVM per class on fc7 in place of the softmax (section 5.4).

    frcnn train --workdir W --config voc07_l_svm \
        --config.voc_dir=VOCDEVKIT --config.weights=vgg16.pth && \
    frcnn train-svm --workdir W

Paper: mAP 66.8 against 66.9. Not measured yet.
"""

from ml_collections import ConfigDict

from frcnn_jax.config import voc07_config


def get_config() -> ConfigDict:
    """Return the paper's recipe; the second command trains SVMs on its features."""
    return voc07_config("vgg16")
