"""Benchmark of searches for proposals: processor time against recall, over settings and beside boxes of no search.

    python benchmarks/bench_proposals.py --voc VOCDEVKIT --out FILE.jsonl [--plot PLOT.png] [--images 600]
    python benchmarks/bench_proposals.py --photo PHOTO

The first runs all settings in turns on each image of VOC2007 val, so that their times compare, and appends a line per
image to FILE; run again, it goes on after the last one, and with all of them done it prints the table: processor
seconds per image, their ratio to the paper's search, boxes, recall at IoU 0.5 and 0.7 of 2,000 boxes, of 1,000, and
average recall. The second times the searches on a photograph resized to several sizes, with the memory at its peak.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from bench_inputs import cpu_name
from tqdm import tqdm

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.data.readers import read_split
from frcnn_jax.data.records import Record, load_image, without_difficult
from frcnn_jax.errors import run_main
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.proposals.search import MODES, SelectiveSearch

NUMBER = 2000
Search = Callable[[np.ndarray], np.ndarray]


def variant(mode: str, size: int | None = None, **changes: Any) -> Search:
    """Return a search with changed settings."""

    def search(image: np.ndarray) -> np.ndarray:
        with mock.patch.dict(MODES, {mode: MODES[mode]._replace(**changes)}):
            return SelectiveSearch(mode, size, NUMBER)(image)

    return search


def grid(image: np.ndarray) -> np.ndarray:
    """Return 2,000 boxes of five sizes and three shapes, evenly spaced."""
    height, width = image.shape[:2]
    boxes = [np.zeros((0, 4))]
    for scale in (0.15, 0.25, 0.4, 0.6, 0.85):
        for shape in (0.5, 1, 2):
            h, w = min(scale * shape**0.5, 1) * height, min(scale / shape**0.5, 1) * width
            across = round((NUMBER / 15) ** 0.5)
            x, y = np.meshgrid(np.linspace(0, width - w, across), np.linspace(0, height - h, across))
            boxes.append(np.stack([x, y, x + w - 1, y + h - 1], axis=-1).reshape(-1, 4))
    return np.concatenate(boxes)


def uniform(image: np.ndarray) -> np.ndarray:
    """Return 2,000 boxes with random corners."""
    corners = np.sort(np.random.default_rng(0).uniform(0, 1, (NUMBER, 2, 2)), axis=1).reshape(-1, 4)
    return corners * (np.array([*image.shape[1::-1], *image.shape[1::-1]]) - 1)


SEARCHES: dict[str, Search] = {
    "paper": variant("paper"),
    "paper, 350 px": variant("paper", 350),
    "standard (350 px, k 75, 150, 300)": variant("standard"),
    "standard, 250 px": variant("standard", 250),
    "standard, k 100, 200": variant("standard", thresholds=(100, 200)),
    "standard, colour+size+fill alone": variant("standard", similarities=("csf",)),
    "fast (300 px, k 75, 150)": variant("fast"),
    "quality": variant("quality"),
    "quality, 350 px": variant("quality", 350),
    "grid": grid,
    "random": uniform,
}


def measure(record: Record) -> dict[str, list]:
    """Return processor seconds, number of boxes, and each object's best IoU with 2,000 and 1,000 boxes, by search."""
    image = record.load()
    rows: dict[str, list] = {}
    for name, search in SEARCHES.items():
        begin = time.process_time()
        boxes = search(image)[:NUMBER]
        seconds = time.process_time() - begin
        overlaps = box_ops.iou(boxes.astype(np.float64), record.boxes.astype(np.float64))
        best = [overlaps[:number].max(axis=0, initial=0).tolist() for number in (NUMBER, 1000)]
        rows[name] = [seconds, len(boxes), *best]
    return rows


def compare(records: Sequence[Record], out: Path, plot: Path | None) -> None:
    """Measure the images that `out` lacks, then print the table and plot it."""
    done = len(out.read_text().splitlines()) if out.exists() else 0
    with out.open("a") as file:
        for record in tqdm(records[done:], initial=done, total=len(records), unit="image"):
            file.write(json.dumps(measure(record)) + "\n")
            file.flush()
    lines = [json.loads(line) for line in out.read_text().splitlines()[: len(records)]]
    table = {}
    for name in SEARCHES:
        seconds, numbers, best, fewer = zip(*(line[name] for line in lines), strict=True)
        top = np.concatenate(best)
        recalls = [(top >= 0.5).mean(), (top >= 0.7).mean(), (np.concatenate(fewer) >= 0.5).mean()]
        table[name] = (np.mean(seconds), np.mean(numbers), *recalls, np.maximum(2 * top - 1, 0).mean())
    print(f"{cpu_name()}, OpenCV {cv2.__version__}: {len(lines)} images, {len(top)} objects")
    print("| search | CPU s | ratio | boxes | IoU 0.5 | IoU 0.7 | IoU 0.5, 1,000 boxes | average recall |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (seconds, boxes, *recalls) in table.items():
        values = " | ".join(f"{value:.3f}" for value in recalls)
        print(f"| {name} | {seconds:.3f} | {seconds / table['paper'][0]:.2f} | {boxes:.0f} | {values} |")
    if plot:
        plot_front(table, plot)


def plot_front(table: dict[str, tuple], path: Path) -> None:
    """Plot recall and average recall by processor time, and the floors of boxes without a search."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, column, title in zip(figure.subplots(1, 2), (2, 5), ("recall at IoU 0.5", "average recall"), strict=True):
        for name, row in table.items():
            if name in ("grid", "random"):
                axes.axhline(row[column], linestyle=":", color="grey")
                axes.annotate(name, (0.01, row[column]), xycoords=("axes fraction", "data"), va="bottom", color="grey")
                continue
            label, offset = name.partition(" (")[0], (5, 5) if name.partition(" (")[0] in MODES else (5, -11)
            axes.plot(row[0], row[column], "o", color="tab:red" if label in MODES else "tab:blue")
            axes.annotate(label, (row[0], row[column]), xytext=offset, textcoords="offset points", fontsize=8)
        axes.set(
            xlabel="processor seconds per image", ylabel=title, xlim=(0, 1.2 * max(row[0] for row in table.values()))
        )
        axes.grid(alpha=0.3)
    figure.savefig(path)


def time_sizes(photograph: Path) -> None:
    """Print seconds and memory of the searches at several sizes of a photograph, each in its own process."""
    print(f"{cpu_name()}, OpenCV {cv2.__version__}")
    for longer in (500, 1000, 2000, 4032):
        for mode in ("standard", "fast", "paper"):
            run = [sys.executable, __file__, "--photo", str(photograph), "--one", mode, str(longer)]
            print(subprocess.run(run, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def time_one(photograph: Path, mode: str, longer: int) -> None:
    """Print the seconds of one search, and the memory at the peak of this process."""
    image = load_image(photograph)
    image = cv2.resize(image, (longer, longer * 3 // 4), interpolation=cv2.INTER_CUBIC)
    begin = time.process_time()
    boxes = SelectiveSearch(mode)(image)
    seconds, peak = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{longer} x {longer * 3 // 4}, {mode}: {seconds:.2f} CPU s, {len(boxes)} boxes, {peak:.0f} MB", flush=True)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = command_parser(__doc__)
    parser.add_argument("--voc", type=Path, help="folder that holds VOC2007")
    parser.add_argument("--out", type=Path, help="file for the measurements of each image")
    parser.add_argument("--plot", type=Path, help="picture to draw")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--photo", type=Path, help="photograph to search at several sizes")
    parser.add_argument("--one", nargs=2, metavar=("MODE", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    check_at_least(1, images=args.images)
    cv2.setNumThreads(1)
    if args.one:
        time_one(args.photo, args.one[0], int(args.one[1]))
    elif args.photo:
        time_sizes(args.photo)
    elif args.voc and args.out:
        split = without_difficult(read_split("voc", split="val", folder=args.voc))
        compare(split.records[: args.images], args.out, args.plot)
    else:
        parser.error("expected --voc and --out, or --photo")


if __name__ == "__main__":
    run_main(main)
