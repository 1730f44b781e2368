"""Images with boxes, and plots of losses, precision-recall and proposal recall.

Shape letters: H, W rows and columns of an image, N boxes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.calibration import Reliability
from frcnn_jax.evaluation.metrics import Curve
from frcnn_jax.evaluation.recall import ProposalRecall
from frcnn_jax.ops import boxes as box_ops

_COLOURS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#800000", "#000075",
)  # fmt: skip


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, captions: Sequence[str], *, min_side: int = 400
) -> Image.Image:
    """Draw boxes with captions on an image, one colour per label.

    Args:
        image: `(H, W, 3)` uint8 RGB; a small one is enlarged by an integer factor.
        boxes: `(N, 4)` in pixels.
        labels: `(N,)` integers.
        captions: N texts.
        min_side: Approximate shorter side of an enlarged image, in pixels.
    """
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
    """Crop an image to some boxes and their surroundings, and draw the boxes.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        boxes: `(N, 4)` in pixels, N > 0; they are clipped to the image.
        colours: N colour names or "#rrggbb".
        width, height: Maximum size of the picture, in pixels.
    """
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
    """Join two pictures of the same height, titled "ground truth" on the left and "detections" on the right."""
    titles, gap = 22, 6
    picture = Image.new("RGB", (left.width + gap + right.width, left.height + titles), "white")
    draw = ImageDraw.Draw(picture)
    for title, part, x in (("ground truth", left, 0), ("detections", right, left.width + gap)):
        picture.paste(part, (x, titles))
        draw.text((x + 4, 3), title, fill="black", font=ImageFont.load_default(size=14))
    return picture


def plot_losses(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Plot the losses over the training steps.

    Args:
        rows: Rows of metrics.jsonl; those without "loss", "loss_cls" or "loss_box" are left out.
        path: Output file; for its suffix see `check_plot`.
    """
    figure, (axes,) = _plot(7, ("Training loss", "step", "loss"))
    names = ("loss", "loss_cls", "loss_box")
    rows = [row for row in rows if all(row.get(name) is not None for name in names)]
    steps = [row["step"] for row in rows]
    for name in names:
        axes.plot(steps, [row[name] for row in rows], label=name, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)


def plot_precision_recall(curves: Mapping[str, tuple[Curve, float | None]], path: Path) -> None:
    """Plot the precision-recall curve of each class.

    Args:
        curves: Curve and AP by class name, from `scores.score`; a class without AP is skipped.
        path: Output file; for its suffix see `check_plot`.
    """
    figure, (axes,) = _plot(7, ("Precision-recall", "recall", "precision"))
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
    """Plot recall by IoU, and next to it recall and its average by number of proposals.

    Args:
        numbers: S numbers of proposals per image.
        iou_thresholds: T values in [0, 1].
        recall: Recall at these numbers and thresholds.
        path: Output file; for its suffix see `check_plot`.
    """
    by_iou_labels = ("Recall of the first N proposals", "IoU", "recall")
    figure, (by_iou, by_number) = _plot(12, by_iou_labels, ("Recall by number", "proposals per image", "recall"))
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


def plot_reliability(found: Mapping[str, Reliability], path: Path) -> None:
    """Plot the precision of detections by score, and the number of these.

    Args:
        found: Reliability by caption.
        path: Output file; for its suffix see `check_plot`.
    """
    labels = ("Reliability", "score", "fraction that is right"), ("Detections", "score", "number")
    figure, (precision, number) = _plot(12, *labels)
    precision.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for caption, own in found.items():
        some = own.number > 0
        precision.plot(own.score[some], own.precision[some], marker="o", label=f"{caption}: error {own.error:.3f}")
        number.plot(own.score[some], own.number[some], marker="o", label=caption)
    number.set_yscale("log")
    for axes in (precision, number):
        axes.legend(fontsize=8)
    figure.savefig(path)


def check_plot(option: str, path: Path) -> None:
    """Raise InputError unless matplotlib can write a plot to the path given with an option."""
    from matplotlib.backend_bases import FigureCanvasBase

    suffixes = [f".{suffix}" for suffix in FigureCanvasBase.get_supported_filetypes()]
    if path.suffix.lower() not in suffixes or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{option} {path}: expected a file ({', '.join(suffixes)}) in an existing folder")


def _plot(width: float, *labels: tuple[str, str, str]) -> tuple[Any, Sequence[Any]]:
    """Return a figure and its axes, side by side, each with title, x label and y label."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(width, 5), dpi=120, layout="constrained")
    (row,) = figure.subplots(1, len(labels), squeeze=False)
    for axes, (title, xlabel, ylabel) in zip(row, labels, strict=True):
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
    return figure, row
