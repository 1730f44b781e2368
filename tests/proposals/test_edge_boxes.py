import cv2
import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.ops.boxes import iou
from frcnn_jax.proposals.edge_boxes import EdgeBoxes
from frcnn_jax.proposals.load import make_search


class Gradients:
    """In place of the structured forest, whose file is not in OpenCV's package: edges are the grey gradients."""

    made = 0

    def __init__(self, model):
        Gradients.made += 1

    def detectEdges(self, image):  # noqa: N802 - OpenCV's names
        assert image.dtype == np.float32
        assert 0.9 < image.max() <= 1
        grey = cv2.GaussianBlur(image[..., 0], (0, 0), 1)
        self.gradients = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        return np.clip(np.hypot(*self.gradients), 0, 1)

    def computeOrientation(self, edges):  # noqa: N802
        return (np.arctan2(self.gradients[1], self.gradients[0]) % np.pi).astype(np.float32)

    def edgesNms(self, edges, orientation):  # noqa: N802
        return np.where(edges > 0.3, edges, 0).astype(np.float32)


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2.ximgproc, "createStructuredEdgeDetection", Gradients)
    path = tmp_path / "model.yml"
    path.write_text("%YAML:1.0\n---\noptions:\n  numberOfTrees: 1\n")
    return path


@pytest.mark.parametrize(("scale", "size"), [(1, None), (2, 120)])
def test_the_edges_of_a_square_give_its_box(model, scale, size):
    """At twice the size too, where the search runs on half of it; red alone, so that RGB is not taken for BGR."""
    image = np.zeros((90 * scale, 120 * scale, 3), np.uint8)
    image[20 * scale : 60 * scale, 30 * scale : 90 * scale, 0] = 255
    boxes = make_search(f"edge_boxes:{model}", size=size, max_boxes=50)(image)
    assert boxes.dtype == np.float32
    assert 0 < len(boxes) <= 50
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] < [120 * scale, 90 * scale]).all()
    square = np.array([[30, 20, 90, 60]]) * scale - [[0, 0, 1, 1]]
    assert iou(boxes[:1].astype(float), square.astype(float)) > 0.65  # the step of its grid of boxes


def test_the_model_is_read_once(model):
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:20, 10:20, 0] = 255
    before = Gradients.made
    for search in (EdgeBoxes(str(model)), EdgeBoxes(str(model)), EdgeBoxes(str(model), max_boxes=3)):
        search(image)
    assert Gradients.made == before + 1


def test_the_name_tells_options_and_the_content_of_the_model(model):
    names = {str(EdgeBoxes(str(model), size, count)) for size in (None, 100) for count in (10, 20)}
    model.write_text("other trees")
    assert len(names | {str(EdgeBoxes(str(model), 100, 10))}) == 5


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "model.yml"
    for content in (b"%YAML:1.0\n---\nx: 1\n", b"text", b"", b"\x1f\x8b\x00"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"edge_boxes:.*model\.yml: not a model of edges"):
            EdgeBoxes(str(path))


def test_a_model_that_is_not_there(tmp_path):
    for path in (tmp_path / "model.yml", tmp_path):
        with pytest.raises(InputError, match=f"^edge_boxes:{path}: no such model file"):
            EdgeBoxes(str(path))
