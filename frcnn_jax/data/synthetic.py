"""The synthetic dataset: textured shapes over clutter, drawn on demand.

The class of an object is its texture. Shapes and colours are random, so neither colour nor size predicts the class;
plain and two-coloured shapes are distractors. Image i of a split is a pure function of (seed, split, i).
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from frcnn_jax.data.records import Dataset, Record, make_record
from frcnn_jax.errors import InputError

SPLITS = ("train", "val", "test")
SHAPES = ("disc", "square", "triangle", "cross")
CLASS_NAMES = ("striped", "checked", "dotted", "ringed", "starred", "speckled")
_DISTRACTORS = ("plain", "halved")
HEIGHT, WIDTH = 144, 192
SMALLEST, LARGEST = 22, 132  # an object's extent in pixels

_MOST_HIDDEN = 0.2  # the largest fraction of an object that others may cover


@dataclass(frozen=True)
class Scene:
    """A drawn image and its objects."""

    image: np.ndarray  # (HEIGHT, WIDTH, 3) uint8 RGB
    boxes: np.ndarray  # (G, 4) float32, of the visible pixels
    labels: np.ndarray  # (G,) int32


@lru_cache(maxsize=4096)
def draw_scene(seed: int, split: str, i: int) -> Scene:
    """Draw image i of a split: 1 to 6 objects, 1 to 3 distractors, clutter."""
    rng = np.random.default_rng((seed, zlib.crc32(split.encode()), i))
    canvas = _background(rng)
    labels = [*rng.integers(1, len(CLASS_NAMES) + 1, rng.integers(1, 7)), *[0] * rng.integers(1, 4)]
    owner = np.full((HEIGHT, WIDTH), -1)
    areas: dict[int, int] = {}
    for place in rng.permutation(len(labels)):
        shape = rng.choice(SHAPES)
        texture = CLASS_NAMES[labels[place] - 1] if labels[place] else rng.choice(_DISTRACTORS)
        for _ in range(20):  # tries; an image may have no room for the shape
            window, inside, local = _silhouette(rng, shape)
            covered = {k: np.sum(owner[window][inside] == k) for k in np.unique(owner[window][inside]) if k >= 0}
            left = {k: np.sum(owner == k) - lost for k, lost in covered.items()}
            if all(left[k] >= (1 - _MOST_HIDDEN) * areas[k] for k in left):
                canvas[window][inside] = _paint(rng, texture, local)[inside]
                owner[window][inside] = place
                areas[place] = int(inside.sum())
                break
    canvas += rng.normal(0, 4, canvas.shape)
    seen = [place for place in sorted(areas) if labels[place]]
    boxes = [_extent(owner == place) for place in seen]
    return Scene(
        np.clip(canvas, 0, 255).astype(np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([labels[place] for place in seen], np.int32),
    )


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    (ys,), (xs,) = np.nonzero(mask.any(axis=1)), np.nonzero(mask.any(axis=0))
    return xs[0], ys[0], xs[-1], ys[-1]


def _background(rng: np.random.Generator) -> np.ndarray:
    """A colour gradient, with rectangles and bars of near colours."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    corner = rng.uniform(40, 215, (2, 3))
    blend = (np.cos(a := rng.uniform(0, 2 * np.pi)) * x / WIDTH + np.sin(a) * y / HEIGHT + 1)[..., None] / 2
    canvas = corner[0] * blend + corner[1] * (1 - blend)
    for _ in range(rng.integers(6, 14)):
        centre, half = rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.uniform(2, 45, 2)
        window = _window(centre[0], centre[1], np.hypot(half[0], half[1]))
        u, v = _rotate(x[window] - centre[0], y[window] - centre[1], rng.uniform(0, np.pi))
        canvas[window][(abs(u) < half[0]) & (abs(v) < half[1])] += rng.normal(0, 25, 3)
    return canvas


def _window(x: float, y: float, radius: float) -> tuple[slice, slice]:
    """The pixels within `radius` of a point along both axes."""
    return tuple(
        slice(max(int(centre - radius), 0), min(int(centre + radius) + 2, side))
        for centre, side in ((y, HEIGHT), (x, WIDTH))
    )  # type: ignore[return-value]


def _rotate(x, y, angle):
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _silhouette(rng: np.random.Generator, shape: str) -> tuple[tuple[slice, slice], np.ndarray, tuple]:
    """A window somewhere within the image, the shape's mask there, and coordinates in pixels about its centre."""
    half = 0.5 * SMALLEST * (LARGEST / SMALLEST) ** rng.uniform(0, 1)
    x, y = (rng.uniform(half, side - 1 - half) for side in (WIDTH, HEIGHT))
    window = _window(x, y, half)
    rows, columns = np.mgrid[window]
    u, v = _rotate((columns - x) / half, (rows - y) / half, rng.uniform(-0.3, 0.3))
    v = v / rng.uniform(0.7, 1)
    inside = {
        "disc": u**2 + v**2 < 1,
        "square": np.maximum(abs(u), abs(v)) < 0.8,
        "triangle": (v < 0.8) & (2 * abs(u) - 0.9 < v),
        "cross": (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.9),
    }
    return window, inside[shape], (u * half, v * half)


def _paint(rng: np.random.Generator, texture: str, local: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """A texture of a dark and a light random colour, `(rows, columns, 3)`."""
    dark = rng.uniform(10, 130, 3)
    light = dark + rng.uniform(80, 125, 3)
    u, v = _rotate(*local, rng.uniform(0, np.pi))
    period, phase = rng.uniform(7, 10) * (np.abs(u).max() / 30) ** 0.4, rng.uniform(0, 1, 2)
    p, q = (u / period + phase[0]) % 1 - 0.5, (v / period + phase[1]) % 1 - 0.5
    patterns = {
        "striped": lambda: p < 0,
        "checked": lambda: (p < 0) ^ (q < 0),
        "dotted": lambda: p**2 + q**2 < 0.1,
        "ringed": lambda: (np.hypot(u, v) / period + phase[0]) % 1 < 0.5,
        "starred": lambda: (np.arctan2(v, u) / np.pi * 5 + phase[0]) % 2 < 1,
        "speckled": lambda: rng.uniform(size=u.shape) < 0.5,
        "halved": lambda: u < 0,
        "plain": lambda: np.zeros(u.shape, bool),
    }
    return np.where(patterns[texture]()[..., None], *rng.permutation([dark, light]))


def _load(seed: int, split: str, i: int) -> np.ndarray:
    return draw_scene(seed, split, i).image


def read_synthetic(*, split: str, images: int, seed: int = 0) -> Dataset:
    """Return the first images of a split of the synthetic dataset; splits share no image.

    Args:
        split: One of SPLITS.
        images: How many, at least 1.
        seed: Other seeds give other images.

    Raises:
        InputError: An unknown split, or fewer than one image.
    """
    if split not in SPLITS:
        raise InputError(f"the synthetic dataset has the splits {', '.join(SPLITS)}, got {split!r}")
    if images < 1:
        raise InputError(f"the synthetic split {split!r} needs at least 1 image, got {images}")
    return Dataset(CLASS_NAMES, [_record(seed, split, i) for i in range(images)])


def _record(seed: int, split: str, i: int) -> Record:
    scene = draw_scene(seed, split, i)
    objects = [(box, label, False) for box, label in zip(scene.boxes, scene.labels, strict=True)]
    return make_record(f"{split}_{i:06d}", HEIGHT, WIDTH, objects, partial(_load, seed, split, i))
