import numpy as np
import pytest
from PIL import Image

from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import Curve
from frcnn_jax.evaluation.pictures import (
    check_plot,
    crop_boxes,
    draw_boxes,
    plot_losses,
    plot_precision_recall,
    plot_proposal_recall,
    side_by_side,
)
from frcnn_jax.evaluation.recall import RECALL_IOUS, ProposalRecall


def test_boxes_are_drawn_where_they_are():
    picture = draw_boxes(
        np.zeros((500, 600, 3), np.uint8), np.array([[100, 200, 299, 399]]), np.array([1]), ["cat 0.9"]
    )
    pixels = np.asarray(picture)
    assert picture.size == (600, 500)
    assert pixels[200, 150:250].any(axis=1).all()  # the upper edge
    assert pixels[399, 150:250].any(axis=1).all()  # the lower one, inclusive
    assert not pixels[400:].any()
    assert not pixels[210:390, 110:290].any()


def test_small_images_are_enlarged_and_captions_stay_inside():
    picture = draw_boxes(np.zeros((100, 150, 3), np.uint8), np.array([[140, 0, 149, 9]]), [12], ["a long caption"])
    assert picture.size == (600, 400)
    assert np.asarray(picture)[:, -80:].any()


def test_crops_hold_their_boxes():
    image = np.zeros((400, 600, 3), np.uint8)
    picture = crop_boxes(image, np.array([[200, 100, 299, 199]]), ["red"], width=300, height=300)
    pixels = np.asarray(picture)
    assert picture.size == (300, 300)  # 100 pixels of object, a margin of 16 + 25 at each side
    (rows, columns) = np.nonzero(pixels[..., 0] > 200)
    scale = 300 / 182
    for found in (rows, columns):
        assert abs(found.min() - 41 * scale) <= 1
        assert abs(found.max() + 1 - 141 * scale) <= 1


def test_crops_of_boxes_outside_the_image_or_reversed():
    image = np.zeros((3, 500, 3), np.uint8)
    boxes = np.array([[-1e9, -5, 1e9, 9], [700, 700, 800, 800], [90, 2, 10, 1]])
    picture = crop_boxes(image, boxes, ["red", "lime", "white"], width=100, height=80)
    assert picture.width == 100
    assert picture.height == 1


def test_side_by_side_holds_both():
    left, right = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue")
    pixels = np.asarray(side_by_side(left, right))
    assert (pixels == (255, 0, 0)).all(axis=-1).sum() == 600
    assert (pixels == (0, 0, 255)).all(axis=-1).sum() == 600


def test_plots_are_pictures(tmp_path):
    rows = [{"step": i, "loss": 2.0 / i, "loss_cls": 1.5 / i, "loss_box": 0.5 / i} for i in range(1, 9)]
    plot_losses(rows, tmp_path / "loss.png")
    curve = Curve(np.array([0.5, 1.0]), np.array([1.0, 0.7]), 2)
    plot_precision_recall({"cat": (curve, 0.8), "dog": (Curve(np.zeros(0), np.zeros(0), 0), None)}, tmp_path / "pr.png")
    plot_precision_recall({}, tmp_path / "none.png")
    recall = ProposalRecall(np.array([[0.5, 0.1], [0.9, 0.3]]), np.array([0.2, 0.5]))
    plot_proposal_recall([10, 100], [0.5, 0.9], recall, tmp_path / "recall.png")
    for name in ("loss", "pr", "none", "recall"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 400
            assert len(set(picture.convert("L").tobytes())) > 10


def lines(axes):
    return {line.get_label(): np.transpose(line.get_data()).tolist() for line in axes.lines}


def test_plots_show_what_they_name(monkeypatch):
    saved = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: saved.append(figure))
    plot_losses([{"step": i, "loss": 3 / i, "loss_cls": 2 / i, "loss_box": 1 / i} for i in (1, 2)], None)
    curve = Curve(np.array([0.5, 1.0]), np.array([1.0, 0.75]), 2)
    plot_precision_recall({"cat": (curve, 0.8), "dog": (Curve(np.zeros(0), np.zeros(0), 0), None)}, None)
    by_iou = np.arange(0.5, 0.0, -0.025)[:21]
    recall = ProposalRecall(np.stack([by_iou, by_iou * 2]), np.array([0.2, 0.5]))
    plot_proposal_recall([10, 100], RECALL_IOUS[: len(by_iou)], recall, None)

    (loss,), (precision,), (ious, numbers) = (figure.axes for figure in saved)
    assert lines(loss) == {
        "loss": [[1, 3], [2, 1.5]], "loss_cls": [[1, 2], [2, 1]], "loss_box": [[1, 1], [2, 0.5]]
    }  # fmt: skip
    assert lines(precision) == {"cat 0.800": [[0.5, 1], [1, 0.75]]}
    assert list(lines(ious)) == ["N = 10, average 0.200", "N = 100, average 0.500"]
    np.testing.assert_allclose(lines(ious)["N = 100, average 0.500"][4], [0.6, 2 * by_iou[4]])
    assert list(lines(numbers)) == [*(f"IoU {iou}" for iou in (0.5, 0.6, 0.7, 0.8, 0.9)), "average, IoU 0.5 to 1"]
    np.testing.assert_allclose(lines(numbers)["IoU 0.7"], [[10, by_iou[8]], [100, 2 * by_iou[8]]])
    assert lines(numbers)["average, IoU 0.5 to 1"] == [[10, 0.2], [100, 0.5]]
    assert numbers.get_xscale() == "log"


def test_a_plot_needs_a_suffix_that_matplotlib_writes(tmp_path):
    for name in ("a.png", "a.PDF", "a.svg"):
        check_plot("--plot", tmp_path / name)
    for path in (tmp_path / "a.xyz", tmp_path / "none" / "a.png", tmp_path):
        with pytest.raises(InputError, match=rf"^--plot {path}: expected a file \(.*\.png.*\) in an existing folder$"):
            check_plot("--plot", path)


def test_rows_that_lack_a_loss_are_left_out_of_the_plot(tmp_path):
    whole = {"step": 1, "loss": 0.5, "loss_cls": 0.25, "loss_box": 0.25, "learning_rate": 0.1}
    others = {"step": 2, "learning_rate": 0.1}, {**whole, "loss": None}, {"step": 3, "map": 0.5}
    plot_losses([whole, *others], tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()
