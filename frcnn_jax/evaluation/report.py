"""HTML report of a detector's scores, precision-recall curves, kinds of error, and pictures of them.

Shape letters: D detections of one class, O its objects over the split.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.evaluation.metrics import ClassDetections, Curve, Matches, error_kinds, match, nearest_objects
from frcnn_jax.evaluation.pages import figure, write_page
from frcnn_jax.evaluation.pictures import crop_boxes
from frcnn_jax.evaluation.scores import class_objects
from frcnn_jax.ops import boxes as box_ops

KINDS = {"correct": "#2fb367", "localisation": "#f0a818", "confusion": "#5a8cf5", "background": "#e5484d"}


class Diagnosis(NamedTuple):
    """The ranked detections of one class with their kinds, and the class's objects over the split."""

    label: int
    matches: Matches
    kinds: np.ndarray  # (D,) from `error_kinds`
    duplicate: np.ndarray  # (D,) bool: a localisation error on an object with a better-ranked hit
    other_label: np.ndarray  # (D,) label of the object of another class that overlaps most, 0 if none does
    object_image: np.ndarray  # (O,) index of the image in the split
    object_boxes: np.ndarray  # (O, 4)


def diagnose(detections: ClassDetections, dataset: Dataset, label: int, *, iou_threshold: float) -> Diagnosis:
    """Classify the detections of one class by kind of error.

    Args:
        detections: Detections of the class.
        dataset: The split.
        label: The class, 1 to K.
        iou_threshold: IoU that a hit must exceed, in [0, 1].
    """
    boxes, difficult = class_objects(dataset, label)
    matches = match(detections, boxes, difficult, iou_threshold=iou_threshold)
    others = [(record, record.labels != label) for record in dataset.records]
    other_overlap, other = nearest_objects(matches.ranked, [record.boxes[m] for record, m in others])
    labels = np.concatenate([np.zeros(0, int), *(record.labels[m] for record, m in others), [0]])
    kinds = error_kinds(matches, other_overlap)
    return Diagnosis(
        label,
        matches,
        kinds,
        (kinds == "localisation") & (matches.overlap > iou_threshold),
        labels[other],
        np.repeat(np.arange(len(boxes)), list(map(len, boxes))),
        np.concatenate([np.zeros((0, 4)), *boxes]),
    )


def count_kinds(found: Diagnosis) -> Counter[str]:
    """Count objects and the kinds of the best detections, after Hoiem et al. (2012).

    Returns:
        "objects": number N of objects that are not difficult; each of KINDS: number among the N best detections that
        are not ignored; "later": objects hit only by a lower-ranked detection; "missed": objects not hit.
    """
    objects, missed = int(np.sum(~found.matches.difficult)), int(found.matches.missed.sum())
    kinds = Counter(found.kinds[_top(found, objects)].tolist())
    return kinds + Counter(objects=objects, later=objects - kinds["correct"] - missed, missed=missed)


def _top(found: Diagnosis, count: int) -> np.ndarray:
    """Return the ranks of the best `count` detections that are not ignored."""
    return np.flatnonzero(~found.matches.ignored)[:count]


def write_report(
    folder: Path,
    dataset: Dataset,
    detections: Sequence[ClassDetections],
    results: Mapping[str, Any],
    curves: Mapping[str, tuple[Curve, float | None]],
    *,
    pictures: int = 4,
) -> None:
    """Write the report to `folder`/index.html.

    Args:
        folder: Output folder; created if it does not exist.
        dataset: The split.
        detections: K detections, one `ClassDetections` per class.
        results, curves: Results and curves from `scores.score`; results may include the "step" of the checkpoint.
        pictures: Number of best hits, of worst false positives, and of largest missed objects to show per class.

    Raises:
        InputError: An image can't be loaded.
    """
    page, counts = [], []
    for label, (name, of_class) in enumerate(zip(dataset.class_names, detections, strict=True), 1):
        found = diagnose(of_class, dataset, label, iou_threshold=results["iou_threshold"])
        counts.append(count_kinds(found))
        page.append(_section(found, counts[-1], dataset, curves[name], pictures))
    folder.mkdir(parents=True, exist_ok=True)
    body = [_header(results, counts), _table(dataset.class_names, counts, results), *page]
    write_page(folder / "index.html", "Detection report", body)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _heading(kind: str) -> str:
    """Return the name of a kind, preceded by a square of its colour."""
    return f'<span class="key" style="background:{KINDS[kind]}"></span>{kind.capitalize()}'


def _header(results: Mapping[str, Any], counts: Iterable[Counter[str]]) -> str:
    threshold, step, seconds = results["iou_threshold"], results.get("step"), results["seconds_per_image"]
    facts = (
        {"voc07_11point": "11-point rule of VOC2007", "area": "area under the curve"}[results["protocol"]],
        f"a hit is IoU > {threshold}",
        f"{results['images']} images",
        f"{sum(count['objects'] for count in counts)} objects",
        "" if step is None else f"step {step}",
        "" if seconds is None else f"{seconds:.2f} s per image",
    )
    meanings = {
        _heading("correct"): f"The first detection with IoU > {threshold} with an object of the class.",
        _heading("localisation"): f"IoU from 0.1 to {threshold} with an object of the class, or a duplicate of a hit.",
        _heading("confusion"): "IoU of at least 0.1 with an object of another class.",
        _heading("background"): "Anything else.",
        "Found later": "Objects hit only by a detection ranked below the N best.",
        "Missed": "Objects not hit by any detection, whatever its score.",
    }
    terms = "\n".join(f"<dt>{term}</dt><dd>{escape(meaning)}</dd>" for term, meaning in meanings.items())
    return f"""<h1>Detection report: mAP {_number(results["map"])}</h1>
<p>{escape(", ".join(filter(None, facts)))}</p>
<details><summary>How to read this</summary>
<p>The kind of a detection is the first that applies (Hoiem, Chodpathumwan and Dai, “Diagnosing error in object
detectors”, 2012). For a class with N objects, the N detections with the highest scores are counted; for a perfect
detector, all of them are correct. Difficult objects, and detections on them, do not count.</p>
<dl>{terms}</dl>
<p>In pictures, ground truth is white and detections have the colour of their kind.</p></details>"""


def _table(class_names: Sequence[str], counts: Sequence[Counter[str]], results: Mapping[str, Any]) -> str:
    rows = [
        _row(f'<a href="#class{label}">{escape(name)}</a>', results["aps"][name], count)
        for label, (name, count) in enumerate(zip(class_names, counts, strict=True), 1)
    ]
    return f"""<div class="wide"><table>
<thead><tr><th>Class</th><th>AP</th><th>Objects N</th><th>N best detections</th>
{"".join(f"<th>{_heading(kind)}</th>" for kind in KINDS)}<th>Found later</th><th>Missed</th></tr></thead>
<tbody>{"".join(rows)}</tbody>
<tfoot>{_row("All", results["map"], sum(counts, Counter()))}</tfoot>
</table></div>"""


def _row(name: str, ap: float | None, count: Counter[str]) -> str:
    parts = "".join(
        f'<span style="width:{100 * count[kind] / count["objects"]:.2f}%;background:{colour}"></span>'
        for kind, colour in KINDS.items()
        if count[kind]
    )
    numbers = "".join(f"<td>{count[kind]}</td>" for kind in (*KINDS, "later", "missed"))
    return f"""<tr><th>{name}</th><td>{_number(ap)}</td><td>{count["objects"]}</td>
<td><div class="bar">{parts}</div></td>{numbers}</tr>\n"""


def _section(
    found: Diagnosis, count: Counter[str], dataset: Dataset, curve: tuple[Curve, float | None], pictures: int
) -> str:
    names, matches = dataset.class_names, found.matches
    rejected, missed = np.flatnonzero(~matches.hit & ~matches.ignored), np.flatnonzero(matches.missed)
    missed = missed[np.argsort(-box_ops.area(found.object_boxes[missed]), kind="stable")]
    text = f"Objects: {count['objects']}. Detections: {len(found.kinds)}, false positives: {len(rejected)}."
    top = _top(found, count["objects"])
    confused = Counter(found.other_label[top[found.kinds[top] == "confusion"]].tolist()).most_common(5)
    if confused:
        with_names = ", ".join(f"{names[other - 1]} ({times})" for other, times in confused)
        text += f" Among the N best, confused with: {with_names}."
    gallery = ""
    for title, draw, indices in (
        ("Best hits", _detection, np.flatnonzero(matches.hit)),
        ("Worst false positives, by score", _detection, rejected),
        ("Missed, by size", _missed, missed),
    ):
        if figures := "".join(draw(found, i, dataset) for i in indices[:pictures]):
            gallery += f'<h3>{title}</h3><div class="pictures">{figures}</div>\n'
    return f"""<section id="class{found.label}"><h2>{escape(names[found.label - 1])}</h2>
<div class="class">{_curve(*curve)}<p>{escape(text)}</p></div>
{gallery}</section>"""


def _detection(found: Diagnosis, rank: int, dataset: Dataset) -> str:
    """Return the figure of a detection and the objects that determine its kind."""
    ranked, kind = found.matches.ranked, str(found.kinds[rank])
    record, box, confused = dataset.records[ranked.image[rank]], ranked.boxes[[rank]], kind == "confusion"
    truth = record.boxes[record.labels == (found.other_label[rank] if confused else found.label)]
    overlaps = box_ops.iou(box.astype(np.float64), truth.astype(np.float64))[0]
    best = overlaps.max(initial=0)
    what = f"{kind} with {dataset.class_names[found.other_label[rank] - 1]}" if confused else kind
    caption = f"{ranked.scores[rank]:.3f}: {what}{' (duplicate)' if found.duplicate[rank] else ''}, IoU {best:.2f}"
    return _figure(record, truth[(overlaps == best) & (best > 0)], box, kind, caption)


def _missed(found: Diagnosis, number: int, dataset: Dataset) -> str:
    """Return the figure of a missed object and the detection of its class that overlaps it most."""
    truth, image, ranked = found.object_boxes[[number]], found.object_image[number], found.matches.ranked
    (ranks,) = np.nonzero(ranked.image == image)
    overlaps = box_ops.iou(truth, ranked.boxes[ranks].astype(np.float64))[0]
    if not overlaps.any():
        return _figure(dataset.records[image], truth, np.zeros((0, 4)), "background", "no detection overlaps it")
    rank = ranks[overlaps.argmax()]
    caption = f"nearest detection: {ranked.scores[rank]:.3f}, IoU {overlaps.max():.2f}"
    return _figure(dataset.records[image], truth, ranked.boxes[[rank]], str(found.kinds[rank]), caption)


def _figure(record: Record, truth: np.ndarray, detection: np.ndarray, kind: str, caption: str) -> str:
    """Return the figure of an image cropped to `(N, 4)` ground truth and `(N, 4)` detections of a kind."""
    colours = [*["white"] * len(truth), *[KINDS.get(kind, "grey")] * len(detection)]
    picture = crop_boxes(record.load(), np.concatenate([truth, detection]), colours, width=256, height=192)
    return figure(picture, caption, record.image_id)


def _curve(curve: Curve, ap: float | None) -> str:
    """Return the precision-recall curve as SVG, in the colour of the text."""
    points = np.round(2 * np.stack([30 + 200 * curve.recall, 150 - 140 * curve.precision], axis=1)) / 2
    points = points[np.any(np.diff(points, axis=0, prepend=-1) != 0, axis=1)]
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f"""<svg viewBox="0 0 240 180" fill="none" stroke="currentColor" role="img" aria-label="precision, recall">
<path d="M30 10V150H230" opacity=".5"/><path d="M30 10H230V150M30 80H230M130 10V150" opacity=".15"/>
<polyline points="{line}" stroke-width="1.5"/>
<g fill="currentColor" stroke="none" font-size="11">
<text x="26" y="164">0</text><text x="226" y="164">1</text><text x="18" y="14">1</text>
<text x="100" y="174">recall</text><text transform="translate(14 104) rotate(-90)">precision</text>
<text x="222" y="24" text-anchor="end">AP {_number(ap)}</text></g>
</svg>"""
