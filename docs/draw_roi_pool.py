"""Draw RoI max pooling on a photograph (docs/images/roi_pool.png):

    python docs/draw_roi_pool.py [--image PHOTO] [--roi X1 Y1 X2 Y2] [--size ROWS COLUMNS] [--out FILE]

The feature map is the mean brightness of each 16 x 16 pixels. Left, the RoI in the photograph; middle, its bins on the
map and the cell that each bin takes, which receives its gradient; right, the result. The default photograph is the one
of Grace Hopper that matplotlib ships (public domain).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cbook import get_sample_data
from matplotlib.patches import Rectangle

from frcnn_jax import InputError, roi_pool
from frcnn_jax.data.records import load_image
from frcnn_jax.ops._roi_pool import bin_edges

CELL = 16


def draw(image: np.ndarray, roi: np.ndarray, size: tuple[int, int], out: Path) -> None:
    """Draw the three panels to a file."""
    height, width = (side // CELL for side in image.shape[:2])
    brightness = image[: height * CELL, : width * CELL].mean(axis=2).reshape(height, CELL, width, CELL)
    features = brightness.mean(axis=(1, 3))[..., None].astype(np.float32)
    pooled, pullback = jax.vjp(lambda f: roi_pool(f, roi[None], output_size=size, spatial_scale=1 / CELL), features)
    taken = np.argwhere(np.asarray(pullback(np.ones_like(pooled))[0][..., 0]))
    rows, columns = (
        np.stack(bin_edges(jnp.array([roi[i]]), jnp.array([roi[i + 2]]), bins, cells, 1 / CELL))[:, 0].T
        for i, bins, cells in ((1, size[0], height), (0, size[1], width))
    )

    figure, (photo, cells, result) = plt.subplots(1, 3, figsize=(13, 5), layout="constrained")
    photo.imshow(image)
    photo.add_patch(Rectangle((roi[0], roi[1]), *(roi[2:] - roi[:2]), fill=False, color="tab:red", lw=2))
    photo.set_title("RoI in the image")
    shades = {"cmap": "gray", "vmin": features.min(), "vmax": features.max()}
    cells.imshow(features[..., 0], **shades)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            inset = 0.12 * ((i + j) % 2)  # neighbours may share a row or a column of cells
            corner, extent = (
                (left - 0.5 + inset, top - 0.5 + inset),
                (right - left - 2 * inset, bottom - top - 2 * inset),
            )
            cells.add_patch(
                Rectangle(corner, *extent, fill=False, color=("tab:red", "tab:orange")[(i + j) % 2], lw=1.2)
            )
    cells.scatter(taken[:, 1], taken[:, 0], s=18, color="tab:cyan", zorder=3)
    cells.set_xlim(columns.min() - 2.5, columns.max() + 1.5)
    cells.set_ylim(rows.max() + 1.5, rows.min() - 2.5)
    cells.set_title("its bins on the map, and the cells they take")
    result.imshow(pooled[0, ..., 0], **shades)
    result.set_title(f"pooled to {size[0]} x {size[1]}")
    for axes in (photo, cells, result):
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(out, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--image", type=Path)
    parser.add_argument("--roi", type=float, nargs=4, default=[175, 35, 390, 330], metavar=("X1", "Y1", "X2", "Y2"))
    parser.add_argument("--size", type=int, nargs=2, default=[7, 7], metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/roi_pool.png"))
    args = parser.parse_args()
    try:
        image = load_image(args.image or Path(get_sample_data("grace_hopper.jpg", asfileobj=False)))
        draw(image, np.array(args.roi, np.float32), tuple(args.size), args.out)
    except (InputError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
