"""Bounding boxes of COCO's run-length encoded masks.

A mask `{"size": [height, width], "counts": ..}` lists the lengths of its runs, column by column, alternately outside
and inside. Compressed counts are text: each number is a sequence of characters of 5 bits from the lowest, offset by 48,
with bit 5 set in all but the last; its highest bit is the sign. From the fourth, a number is the difference to the run
two before. pycocotools reads beyond the end of damaged counts; this module does not.
"""

from typing import Any

import numpy as np

from frcnn_jax.errors import InputError


def rle_box(mask: Any) -> list[float]:
    """Return the box (x1, y1, x2, y2) of the pixels inside a mask, 0-based, x2 and y2 exclusive.

    Raises:
        InputError: The mask is empty or malformed.
    """
    if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        raise InputError(f"expected a mask with size and counts, got {str(mask)[:60]}")
    size, counts = mask["size"], mask["counts"]
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in size):
        raise InputError(f"expected a size [height, width], got {str(size)[:60]}")
    if isinstance(counts, str):
        runs = _decompress(counts)
    elif isinstance(counts, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in counts):
        runs = np.array(counts, np.int64)
    else:
        raise InputError(f"expected counts as text or a list of integers, got {str(counts)[:60]}")
    height, width = size
    # each run is checked first: their sum can't overflow then
    if (runs < 0).any() or (runs > height * width).any() or runs.astype(np.float64).sum() != height * width:
        raise InputError(f"its counts do not add up to {height} x {width} pixels")
    ends = np.cumsum(runs)
    begins, ends = ends[:-1:2], ends[1::2]
    begins, ends = begins[ends > begins], ends[ends > begins] - 1
    if not len(begins):
        raise InputError("the mask is empty")
    left, right = begins // height, ends // height
    several = (left != right).any()  # a run that goes on in the next column reaches both edges
    top, bottom = (0, height - 1) if several else ((begins % height).min(), (ends % height).max())
    return [float(v) for v in (left.min(), top, right.max() + 1, bottom + 1)]


def _decompress(text: str) -> np.ndarray:
    codes = np.array([ord(character) for character in text], np.int64) - 48
    if ((codes < 0) | (codes > 63)).any() or (codes.size and codes[-1] & 32):
        raise InputError("its counts are damaged")
    ends = np.flatnonzero(codes < 32)
    begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    digits = np.arange(len(codes)) - np.repeat(begins, ends - begins + 1)
    if (digits > 6).any():
        raise InputError("its counts are damaged")
    runs = np.add.reduceat((codes & 31) << 5 * digits, begins) if len(ends) else ends
    last = codes[ends]
    runs = runs - np.where(last & 16, 32 << 5 * digits[ends], 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
