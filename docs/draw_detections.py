"""Draw what the detector that comes with the package finds in photographs (docs/images/photographs.png):

    pip install '.[docs]'
    python docs/draw_detections.py [--score-threshold 0.5] [--out FILE] [PHOTO ...]

The default photographs are free of copyright: an astronaut (NASA, public domain) and a cat (Stefan van der Walt, CC0)
that scikit-image ships, and Grace Hopper (US Navy, public domain), whom matplotlib ships.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

from frcnn_jax import Detector
from frcnn_jax.data.records import load_image
from frcnn_jax.evaluation.pictures import draw_boxes

HEIGHT, GAP = 480, 8  # pixels


def default_photographs() -> list[np.ndarray]:
    """Return the three photographs, `(H, W, 3)` uint8 RGB."""
    from skimage import data

    return [data.astronaut(), data.chelsea(), load_image(get_sample_data("grace_hopper.jpg", asfileobj=False))]


def drawn(detector: Detector, photograph: np.ndarray, threshold: float) -> Image.Image:
    """Return a photograph of HEIGHT rows with the detections of at least the threshold's score."""
    found = detector(photograph, score_threshold=threshold)
    captions = [f"{one['label']} {one['score']:.2f}" for one in found.to_records(detector.class_names)]
    picture = draw_boxes(photograph, found.boxes, found.labels, captions)
    return picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="*", type=Path, metavar="PHOTO")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "photographs.png")
    args = parser.parse_args()
    detector = Detector.pretrained()
    photographs = [load_image(path) for path in args.photographs] or default_photographs()
    pictures = [drawn(detector, photograph, args.score_threshold) for photograph in photographs]
    canvas = Image.new("RGB", (sum(p.width + GAP for p in pictures) - GAP, HEIGHT), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + GAP
    canvas.quantize(256).save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
