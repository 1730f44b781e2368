"""Benchmark of a data set of COCO's size: reading the annotations next to pycocotools, and the start of training:

    python benchmarks/bench_coco_scale.py [--images 118287]

It makes a COCO instances file of so many images, hard links of a few synthetic pictures, with COCO's objects per image
(860,001 in all) and polygons of COCO's length, in a temporary folder. For 1,000 and 10,000 images and the number given
it prints seconds and peak memory of reading in processes of their own, and the ratio; then the start of training with
proposals in the cache, part by part.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from bench_inputs import cpu_name
from PIL import Image

from frcnn_jax.build import build_model
from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.config import get_config
from frcnn_jax.data.coco import read_coco
from frcnn_jax.data.records import ImageFile
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.errors import run_main
from frcnn_jax.proposals.cache import append_line, search_images, stamp
from frcnn_jax.proposals.load import load_proposals
from frcnn_jax.proposals.search import SelectiveSearch, image_digest
from frcnn_jax.train import _training_batches

IMAGES, OBJECTS, CLASSES = 118_287, 860_001, 80  # of COCO's train2017
CROWDS = 0.0118  # of its objects
SHAPES = ((480, 640), (640, 480), (427, 640), (640, 427), (426, 640), (375, 500), (500, 375), (612, 612))
POOL = 512  # objects drawn per shape; images of that shape take theirs from these
URL = "http://images.cocodataset.org/train2017/"

READERS = {
    "read_coco": "from frcnn_jax import read_coco; read = lambda: read_coco({annotations!r}, image_dir={images!r})",
    "pycocotools": "from pycocotools.coco import COCO; read = lambda: COCO({annotations!r})",
}
PROGRAM = """
import resource, time
{reader}
began = time.perf_counter()
result = read()
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
START = "import bench_coco_scale; bench_coco_scale.print_start({annotations!r}, {images!r}, {cache!r})"


def draw_objects(height: int, width: int, seed: int) -> list[str]:
    """Return objects of an image of this size, as the JSON that follows an annotation's ids."""
    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(POOL):
        sides = rng.uniform(0.03, 0.7, 2) * (width, height)
        corner = rng.uniform(0, 1, 2) * ((width, height) - sides)
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.geometric(1 / 24) + 2))
        points = corner + sides * (1 + np.stack([np.cos(angles), np.sin(angles)], axis=1)) / 2
        crowd = int(rng.random() < CROWDS)
        counts = rng.integers(1, 400, 500).tolist()
        objects.append(
            json.dumps(
                {
                    "segmentation": {"counts": counts, "size": [height, width]} if crowd else [_rounded(points)],
                    "area": float(sides.prod() / 2),
                    "iscrowd": crowd,
                    "bbox": _rounded(np.concatenate([corner, sides])),
                    "category_id": int(rng.integers(1, CLASSES + 1)),
                },
                separators=(",", ": "),
            )[1:]
        )
    return objects


def _rounded(values: np.ndarray) -> list[float]:
    return values.ravel().round(2).tolist()


def write_set(folder: Path, images: int) -> tuple[Path, Path]:
    """Write a set of so many images into a folder; return its instances file and the folder of its images."""
    annotations, image_folder = folder / "instances.json", folder / "images"
    image_folder.mkdir(parents=True)
    names = [f"{7 * i + 9:012d}.jpg" for i in range(images)]
    for i, shape in enumerate(SHAPES):
        picture = folder / f"{i}.jpg"
        Image.fromarray(cv2.resize(draw_scene(0, "train", i).image, shape[::-1])).save(picture)
        for name in names[i :: len(SHAPES)]:
            os.link(picture, image_folder / name)
    with open(annotations, "w") as file:
        file.write('{"info": {"description": "synthetic"}, "licenses": [], "images": [')
        file.writelines(_separated(_image_texts(names)))
        file.write('], "annotations": [')
        file.writelines(_separated(_object_texts(images)))
        categories = [{"supercategory": "thing", "id": i + 1, "name": f"class {i + 1}"} for i in range(CLASSES)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return annotations, image_folder


def _separated(texts: Iterator[str]) -> Iterator[str]:
    yield next(texts)
    yield from (f", {text}" for text in texts)


def _image_texts(names: Sequence[str]) -> Iterator[str]:
    for i, name in enumerate(names):
        height, width = SHAPES[i % len(SHAPES)]
        yield json.dumps(
            {
                "license": 3,
                "file_name": name,
                "coco_url": URL + name,
                "height": height,
                "width": width,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": f"http://farm9.staticflickr.com/8186/{name[:-4]}_3aeb5d7bc2_z.jpg",
                "id": int(name[:-4]),
            }
        )


def _object_texts(images: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    share = rng.gamma(1.0, size=images)
    pools = [draw_objects(height, width, i) for i, (height, width) in enumerate(SHAPES)]
    owners = rng.choice(images, round(images * OBJECTS / IMAGES), p=share / share.sum())  # in no order, as in COCO
    for i, owner in enumerate(owners.tolist()):
        yield f'{{"id": {i + 1}, "image_id": {7 * owner + 9}, {pools[owner % len(SHAPES)][i % POOL]}'


def run_apart(program: str) -> str:
    """Run Python code in a process of its own; return what it prints."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def print_reading(annotations: Path, image_folder: Path, images: int) -> None:
    """Print seconds and peak memory of all readers, and the ratio of the seconds."""
    paths = {"annotations": str(annotations), "images": str(image_folder)}
    seconds = {}
    print(f"{images} images, {annotations.stat().st_size / 1e6:.0f} MB: ", end="")
    for name, reader in READERS.items():
        printed = run_apart(PROGRAM.format(reader=reader.format(**paths))).split()
        seconds[name], peak = float(printed[-2]), float(printed[-1])
        each = 1e6 * seconds[name] / images
        print(f"{name} {seconds[name]:.2f} s, {each:.0f} us/image, peak {peak:.2f} GiB; ", end="")
    print(f"ratio {seconds['read_coco'] / seconds['pycocotools']:.2f}", flush=True)


def warm_cache(cache: Path, annotations: Path, image_folder: Path) -> None:
    """Fill a cache of proposals as a search of all images does: a boxes file per picture, an index line per image."""
    search, digests = SelectiveSearch(), {}
    for record in read_coco(annotations, image_dir=image_folder).records:
        shape = (record.height, record.width)
        if shape not in digests:
            search_images({"a": record.load}, search, cache_dir=cache, workers=1)
            digests[shape] = image_digest(record.load())
        assert isinstance(record.load, ImageFile)
        append_line(cache, digests[shape], record.load, stamp(record.load) or (0, 0))


def print_start(annotations: str, image_folder: str, cache: str) -> None:
    """Print the seconds of each part of the start of training, to the first batch, and the peak memory."""
    config = get_config().to_dict() | {"dataset": "coco", "network": "caffenet", "min_size": 600, "max_size": 1000}
    times = {"": time.perf_counter()}
    dataset = read_coco(annotations, image_dir=image_folder)
    times["annotations"] = time.perf_counter()
    dataset, proposals = load_proposals(dataset, cache_dir=cache)
    times["proposals"] = time.perf_counter()
    batches = _training_batches(config, build_model(config, CLASSES), dataset, proposals)
    times["statistics"] = time.perf_counter()
    batches.plan(0)
    times["plan"] = time.perf_counter()
    batches[0]
    times["first batch"] = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = list(times.values())
    laps = zip([*times][1:], np.diff(seconds), strict=True)
    parts = ", ".join(f"{name} {lap:.1f}" for name, lap in laps)
    print(f"start with a warm cache: {seconds[-1] - seconds[0]:.1f} s ({parts}), peak {peak:.2f} GiB")


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    args = parser.parse_args(argv)
    check_at_least(1, images=args.images)
    print(f"{os.cpu_count()} cores of {cpu_name()}")
    for images in sorted({min(count, args.images) for count in (1_000, 10_000, args.images)}):
        with tempfile.TemporaryDirectory() as folder:
            annotations, image_folder = write_set(Path(folder), images)
            print_reading(annotations, image_folder, images)
            warm_cache(cache := Path(folder) / "cache", annotations, image_folder)
            paths = {"annotations": str(annotations), "images": str(image_folder), "cache": str(cache)}
            print(run_apart(START.format(**paths)), end="", flush=True)


if __name__ == "__main__":
    run_main(main)
