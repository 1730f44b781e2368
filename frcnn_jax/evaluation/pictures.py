"""Pictures: boxes on images, ground truth beside detections, loss, precision-recall and proposal recall."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from frcnn_jax.evaluation.metrics import Curve
from frcnn_jax.evaluation.recall import ProposalRecall
from frcnn_jax.ops import boxes as box_ops

_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#f032e6",
    "#9a6324",
    "#800000",
    "#000075",
)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, captions: Sequence[str], *, min_side: int = 400
) -> Image.Image:
    """`(H, W, 3)` uint8 RGB with `(N, 4)` boxes, each with a caption, in the colour of its `(N,)` label; small images
    are enlarged to `min_side`."""
    factor = max(1, round(min_side / min(image.shape[:2])))
    picture = Image.fromarray(image).resize(
        (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(11, min(picture.size) // 32))
    for box, label, caption in zip(boxes, labels, captions, strict=True):
        colour = _COLOURS[label % len(_COLOURS)]
        x1, y1, x2, y2 = (float(v) for v in np.add(box, (0, 0, 1, 1)) * factor)
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=2)
        right, bottom = draw.textbbox((0, 0), caption, font=font)[2:]
        x = min(x1, picture.width - right - 2)
        y = max(0, y1 - bottom - 2)
        draw.rectangle((x, y, x + right + 2, y + bottom + 2), fill=colour)
        draw.text((x + 1, y + 1), caption, fill="white", font=font)
    return picture


def crop_boxes(
    image: np.ndarray, boxes: np.ndarray, colours: Sequence[str], *, width: int = 320, height: int = 240
) -> Image.Image:
    """The part of `(H, W, 3)` uint8 RGB about `(N, 4)` boxes, N > 0, resized into `width` and `height`, with each box
    in its colour. What lies outside the image is drawn at its edge."""
    rows, columns = image.shape[:2]
    boxes = box_ops.clip(boxes.astype(np.float64), rows, columns)
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0) + 1
    margin = 16 + 0.25 * (high - low).max()
    left, top = (int(side) for side in np.maximum(low - margin, 0))
    right, bottom = (int(side) for side in np.minimum(high + margin, (columns, rows)))
    factor = min(width / (right - left), height / (bottom - top), 4)
    size = [max(1, round(side * factor)) for side in (right - left, bottom - top)]
    picture = Image.fromarray(image[top:bottom, left:right]).resize((size[0], size[1]), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for box, colour in zip(boxes, colours, strict=True):
        x1, y1, x2, y2 = (float(v) for v in np.add(box, (-left, -top, 1 - left, 1 - top)) * factor)
        draw.rectangle((x1 - 1, y1 - 1, x2, y2), outline="black", width=5)
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=3)
    return picture


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of the same height: ground truth on the left, detections on the right."""
    titles, gap = 22, 6
    picture = Image.new("RGB", (left.width + gap + right.width, left.height + titles), "white")
    draw = ImageDraw.Draw(picture)
    for title, part, x in (("ground truth", left, 0), ("detections", right, left.width + gap)):
        picture.paste(part, (x, titles))
        draw.text((x + 4, 3), title, fill="black", font=ImageFont.load_default(size=14))
    return picture


def plot_losses(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """The losses over the steps, from the rows of metrics.jsonl."""
    axes, figure = _figure("Training loss", "step", "loss")
    steps = [row["step"] for row in rows]
    for name in ("loss", "loss_cls", "loss_box"):
        axes.plot(steps, [row[name] for row in rows], label=name, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)


def plot_precision_recall(curves: Mapping[str, tuple[Curve, float | None]], path: Path) -> None:
    """Every class's precision over its recall, with its AP."""
    axes, figure = _figure("Precision-recall", "recall", "precision")
    for name, (curve, ap) in curves.items():
        if ap is not None:
            axes.plot(curve.recall, curve.precision, label=f"{name} {ap:.3f}", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if axes.lines:
        axes.legend(fontsize=7, ncols=2, loc="lower left")
    figure.savefig(path)


def plot_proposal_recall(
    numbers: Sequence[int], iou_thresholds: Sequence[float], recall: ProposalRecall, path: Path
) -> None:
    """Recall by IoU, a curve for each number of proposals, beside recall and its average by number."""
    figure = _blank(width=12)
    by_iou, by_number = figure.subplots(1, 2)
    _label(by_iou, "Recall of the first N proposals", "IoU", "recall")
    _label(by_number, "Recall by number", "proposals an image", "recall")
    for number, row, average in zip(numbers, recall.recall, recall.average, strict=True):
        by_iou.plot(iou_thresholds, row, label=f"N = {number}, average {average:.3f}", linewidth=1)
    for iou, column in list(zip(iou_thresholds, recall.recall.T, strict=True))[:-1:4]:
        by_number.plot(numbers, column, label=f"IoU {iou:g}", marker=".", linewidth=1)
    by_number.plot(numbers, recall.average, label="average, IoU 0.5 to 1", color="black", linewidth=2)
    by_number.set_xscale("log")
    for axes in (by_iou, by_number):
        axes.set_ylim(0, 1.02)
        axes.legend(fontsize=8)
    figure.savefig(path)


def plot_endings() -> list[str]:
    """Of the files that plots are written to."""
    return [f".{ending}" for ending in _blank(width=1).canvas.get_supported_filetypes()]


def _figure(title, xlabel, ylabel):
    figure = _blank(width=7)
    axes = figure.subplots()
    _label(axes, title, xlabel, ylabel)
    return axes, figure


def _blank(*, width):
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    return Figure(figsize=(width, 5), dpi=120, layout="constrained")


def _label(axes, title, xlabel, ylabel):
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
