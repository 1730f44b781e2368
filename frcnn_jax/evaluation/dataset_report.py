"""HTML report of a data set: statistics, remarks with pictures of what they mean, and some images of each class."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.dataset_check import Objects, Remark, Table, totals
from frcnn_jax.evaluation.pages import figure, write_page
from frcnn_jax.evaluation.pictures import crop_boxes, draw_boxes

_WIDTH, _HEIGHT = 256, 192  # of a picture, in pixels
_BINS = 24  # bars of a histogram


class SplitReport(NamedTuple):
    """What the report shows of a split."""

    dataset: Dataset
    objects: Objects
    classes: Table
    remarks: Sequence[Remark]
    recall: Table | None = None


def write_dataset_report(
    path: Path,
    splits: dict[str, SplitReport],
    *,
    remarks: Sequence[Remark] = (),
    problems: Sequence[str] = (),
    pictures: int = 4,
) -> None:
    """Write the report.

    Args:
        path: The HTML file to create or replace.
        splits: The splits by name.
        remarks: Remarks on the data set as a whole.
        problems: Lines on files that can't be used.
        pictures: Number of examples of a remark, and of images per class and split.
    """
    body = ["<h1>Data set</h1>"]
    body += [f"<p>{escape(name)}: {escape(totals(split.dataset))}</p>" for name, split in splits.items()]
    body += _problems(problems)
    body += ["<h2>Remarks</h2>"]
    found = [("", remark) for remark in remarks]
    found += [(f"{name}: ", remark) for name, split in splits.items() for remark in split.remarks]
    body += [_remark(prefix, remark, pictures) for prefix, remark in found] or ["<p>None.</p>"]
    for name, split in splits.items():
        body += [f"<h2>{escape(name)}</h2>", _table(split.classes), '<div class="class">']
        body += [*_histograms(split.objects), "</div>"]
        if split.recall:
            body += [
                "<h3>Recall of the proposals at IoU 0.5, by side as the network sees it</h3>",
                _table(split.recall),
            ]
        for label, title in enumerate(split.dataset.class_names, 1):
            own = (r for r in split.dataset.records if (r.labels == label).any())
            body += _gallery(title, (_whole(r, split.dataset.class_names) for r in own), pictures)
        empty = (r for r in split.dataset.records if not len(r.labels))
        body += _gallery("Images without objects", (_whole(r, ()) for r in empty), pictures)
    write_page(path, "Data set", body)


def _problems(problems: Sequence[str], most: int = 100) -> Iterator[str]:
    if problems:
        yield f"<h2>Problems: {len(problems)}</h2>\n<ul>"
        yield from (f"<li>{escape(problem)}</li>" for problem in problems[:most])
        yield "</ul>" + (f"<p>and {len(problems) - most} more</p>" if len(problems) > most else "")


def _remark(prefix: str, remark: Remark, pictures: int) -> str:
    figures = (_crop(record, boxes) for record, boxes in remark.examples)
    return "\n".join([f"<p>{escape(prefix + remark.text)}</p>", *_gallery("", figures, pictures)])


def _gallery(title: str, figures: Iterator[str | None], most: int) -> Iterator[str]:
    """Yield the first figures that are there, below a title; an image that can't be read is passed over."""
    shown = list(islice(filter(None, figures), most))
    if shown:
        yield (f"<h3>{escape(title)}</h3>" if title else "") + f'<div class="pictures">{"".join(shown)}</div>'


def _load(record: Record) -> np.ndarray | None:
    try:
        return record.load()
    except InputError:  # among the problems
        return None


def _crop(record: Record, boxes: np.ndarray) -> str | None:
    """Return the figure of an image cropped to some boxes; the whole image if there are none."""
    if not len(boxes):
        return _whole(record, ())
    if (image := _load(record)) is None:
        return None
    picture = crop_boxes(image, boxes, ["white"] * len(boxes), width=_WIDTH, height=_HEIGHT)
    return figure(picture, record.image_id)


def _whole(record: Record, class_names: Sequence[str]) -> str | None:
    """Return the figure of a whole image with all its boxes."""
    if (image := _load(record)) is None:
        return None
    factor = min(_WIDTH / record.width, _HEIGHT / record.height, 4)
    size = max(1, round(factor * record.width)), max(1, round(factor * record.height))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    captions = [class_names[label - 1] for label in record.labels]
    picture = draw_boxes(small, record.boxes * factor, record.labels, captions, min_side=1)
    return figure(picture, f"{record.image_id}, {record.width} x {record.height}")


def _table(table: Table) -> str:
    def row(cells: Iterable[str], kind: str) -> str:
        first, *rest = cells
        return f"<tr><th>{escape(first)}</th>" + "".join(f"<{kind}>{escape(c)}</{kind}>" for c in rest) + "</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    head = row(table.header, "th")
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>{rows}</tbody></table></div>'


def _histograms(objects: Objects) -> Iterator[str]:
    boxes = objects.boxes
    ratio = (boxes[:, 2] - boxes[:, 0] + 1) / (boxes[:, 3] - boxes[:, 1] + 1)
    for title, values in (
        ("side, pixels", objects.side),
        ("side as the network sees it, pixels", objects.seen),
        ("width / height", ratio),
    ):
        if len(values):
            yield _histogram(title, values)


def _histogram(title: str, values: np.ndarray) -> str:
    """Return a histogram of positive values as SVG, on a logarithmic axis."""
    logs = np.log2(np.maximum(values, 0.01))
    low, high = np.floor(logs.min()), max(np.ceil(logs.max()), np.floor(logs.min()) + 1)
    counts, _ = np.histogram(logs, _BINS, (low, high))
    step, tallest = 200 / _BINS, counts.max()
    bars = "".join(
        f'<rect x="{20 + step * i:.1f}" y="{150 - 140 * n / tallest:.1f}" width="{step - 1:.1f}" '
        f'height="{140 * n / tallest:.1f}"/>'
        for i, n in enumerate(counts)
        if n
    )
    return f"""<svg viewBox="0 0 240 180" role="img" aria-label="{escape(title)}">
<path d="M20 150H220" stroke="currentColor"/><g fill="#5a8cf5">{bars}</g>
<g fill="currentColor" font-size="11"><text x="20" y="163">{2.0**low:g}</text>
<text x="220" y="163" text-anchor="end">{2.0**high:g}</text>
<text x="120" y="177" text-anchor="middle">{escape(title)}</text></g></svg>"""
