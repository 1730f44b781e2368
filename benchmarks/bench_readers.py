"""Benchmark of the readers of data sets, proposals and weights, of one checkout beside another:

    python benchmarks/bench_readers.py [--other CHECKOUT] [--repeat 5]

Both read the same files, in turns and in processes of their own, so that a busy machine disturbs both alike. Prints the
least processor time of this checkout, and its ratio to the other's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_inputs import cpu_name
from PIL import Image

from frcnn_jax.cli import check_at_least

NUMBER = 2000  # images
PROGRAM = """
import sys, time
from pathlib import Path
from frcnn_jax.data.coco import read_coco
from frcnn_jax.data.records import load_image
from frcnn_jax.data.voc import read_xml_folder
from frcnn_jax.proposals.files import read_proposals
folder = Path(sys.argv[1])
reads = {
    "VOC XML": lambda: read_xml_folder(folder / "xml"),
    "COCO": lambda: read_coco(folder / "coco.json", image_dir=folder / "xml"),
    "images": lambda: [load_image(path) for path in sorted((folder / "xml").glob("*.jpg"))[:200]],
    **{f"proposals {s}": lambda s=s: read_proposals(folder / f"p{s}") for s in (".proposals", ".npz", ".pkl", ".json")},
}
print("ready", flush=True)
for name in sys.stdin:
    begin = time.process_time()
    reads[name.strip()]()
    print(time.process_time() - begin, flush=True)
"""
NAMES = ("VOC XML", "COCO", "images", "proposals .proposals", "proposals .npz", "proposals .pkl", "proposals .json")


def write_files(folder: Path) -> None:
    """Write a data set as VOC's XML and as COCO's JSON, and proposals of its images."""
    from frcnn_jax.convert_proposals import WRITERS

    rng = np.random.default_rng(0)
    (folder / "xml").mkdir()
    Image.fromarray(rng.integers(0, 255, (375, 500, 3), np.uint8)).save(folder / "xml" / "0.jpg")
    images, proposals = [], {}
    annotations: list[dict] = []
    for i in range(NUMBER):
        if i:
            (folder / "xml" / f"{i}.jpg").hardlink_to(folder / "xml" / "0.jpg")
        objects = ""
        for x, y in rng.integers(1, 200, (3, 2)).tolist():
            box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 90}</xmax><ymax>{y + 90}</ymax>"
            objects += f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
            own = {"id": len(annotations) + 1, "image_id": i, "category_id": 1, "bbox": [x, y, 90.5, 90.5]}
            annotations.append({**own, "iscrowd": 0, "area": 8100, "segmentation": [[1.5] * 20]})
        size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
        (folder / "xml" / f"{i}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 500, "height": 375})
        first = rng.integers(0, 200, (200, 2))
        proposals[str(i)] = np.concatenate([first, first + 100], axis=1).astype(np.float32)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "coco.json").write_text(json.dumps(content))
    for suffix in (".proposals", ".npz", ".pkl"):
        WRITERS[suffix](folder / f"p{suffix}", proposals)
    WRITERS[".json"](folder / "p.json", dict(list(proposals.items())[:200]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="checkout to compare with")
    parser.add_argument("--repeat", type=int, default=5, help="turns; default: %(default)s")
    args = parser.parse_args()
    check_at_least(1, repeat=args.repeat)
    print(cpu_name())
    roots = [Path(__file__).resolve().parents[1], *filter(None, [args.other])]
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        started = []
        for root in roots:
            command = [sys.executable, "-c", PROGRAM, folder]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True, bufsize=1))
        for process in started:
            assert process.stdout
            process.stdout.readline()
        for name in NAMES:
            seconds: list[list[float]] = [[] for _ in started]
            for _ in range(args.repeat):
                for own, process in zip(seconds, started, strict=True):
                    assert process.stdin
                    assert process.stdout
                    process.stdin.write(f"{name}\n")
                    process.stdin.flush()
                    own.append(float(process.stdout.readline()))
            best = [min(own) for own in seconds]
            ratios = np.array(seconds[0]) / np.array(seconds[-1])
            compared = f", {best[0] / best[-1]:.3f} of the other, median {np.median(ratios):.3f}" if args.other else ""
            print(f"{name:22} {best[0]:7.3f} s{compared}", flush=True)
        for process in started:
            assert process.stdin
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    main()
