"""Feature maps of a frozen backbone, and of its neck if that is frozen too, computed once and kept on disk.

Training then runs only what follows.

A map is a .npy file of float16, which rounds features by up to 0.05 %.

Shape letters: B images, H' rows and W' columns of a map, C channels.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from frcnn_jax.data.batches import Sizes, prefetch, prepare_image
from frcnn_jax.data.records import Record
from frcnn_jax.data.splits import content_digest
from frcnn_jax.errors import InputError
from frcnn_jax.files import open_regular, read_array, write_atomic
from frcnn_jax.models.fast_rcnn import FastRCNN, description


@dataclass(frozen=True)
class FeatureMaps:
    """The stored maps of images, mirrored ones and sizes.

    Attributes:
        folder: Folder of the maps of one backbone.
        digests: Digest of each image's content by its id, which may be that of another image in another data set.
    """

    folder: Path
    digests: Mapping[str, bytes]

    def path(self, record: Record, mirrored: bool, size: Sizes) -> Path:
        """Return the file of a map."""
        key = repr((self.digests[record.image_id], mirrored, size))
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    def __call__(self, record: Record, mirrored: bool, size: Sizes) -> np.ndarray:
        """Return a map, `(H', W', C)` float16.

        Raises:
            InputError: The file is missing or damaged.
        """
        path = self.path(record, mirrored, size)
        try:
            with open_regular(path) as file:
                found = read_array(file, path.stat().st_size)
            if found.ndim != 3 or found.dtype != np.float16:
                raise ValueError
            return found
        except (OSError, ValueError):
            raise InputError(f"{path}: a feature map is missing or damaged; delete it and start again") from None


class StoredMaps(nn.Module):
    """The backbone of a model whose images are feature maps already.

    Attributes:
        spatial_scale: Feature-map cells per pixel.
        map_size: Returns the `(B, 2)` rows and columns of each image's own map from those of the image.
    """

    spatial_scale: float
    map_size: Callable[[jax.Array], jax.Array]

    def __call__(self, images: jax.Array, image_size: jax.Array) -> jax.Array:
        """Return the maps as float32."""
        return images.astype(jnp.float32)


@dataclass(frozen=True)
class _Missing:
    """The canvases of the images whose maps are not there, a random-access sequence."""

    entries: Sequence[tuple[Record, bool, Sizes]]
    pixels: Any

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        record, mirrored, size = self.entries[i]
        image = record.load()
        return prepare_image(image[:, ::-1] if mirrored else image, size=size, pixels=self.pixels)


def store_maps(
    model: FastRCNN, variables: Any, records: Sequence[Record], *, sizes: Sequence[Sizes], flip: bool, folder: Path
) -> FeatureMaps:
    """Compute the maps that are not in a folder yet, with a progress bar. Interrupted, it goes on where it was.

    Args:
        model: The model; the maps are those of its backbone and, if it has one, its neck.
        variables: Its variables.
        records: The training split.
        sizes: How images are resized.
        flip: Whether to compute those of mirrored images as well.
        folder: Where to keep them, in a folder named after the weights that make them.

    Raises:
        InputError: The backbone gives several maps, or an image can't be read.
    """
    digest = hashlib.sha256(description(model.backbone, model.neck, model.pixels))
    parts = ("backbone",) if model.neck is None else ("backbone", "neck")
    for leaf in jax.tree.leaves([collection.get(part) for collection in variables.values() for part in parts]):
        digest.update(np.ascontiguousarray(leaf).data)
    contents = {record.image_id: content_digest(record) for record in records}
    maps = FeatureMaps(folder / digest.hexdigest()[:16], contents)
    maps.folder.mkdir(parents=True, exist_ok=True)
    entries = [
        (r, mirrored, size) for r in records for mirrored in ((False, True) if flip else (False,)) for size in sizes
    ]
    entries = [entry for entry in entries if not maps.path(*entry).exists()]
    features = jax.jit(partial(model.apply, method=FastRCNN.maps))
    batches = prefetch(_Missing(entries, model.pixels))
    for entry, batch in zip(tqdm(entries, desc="features", unit="image", disable=not entries), batches, strict=True):
        found: Any = features(variables, batch["image"][None], batch["image_size"][None])
        if not hasattr(found, "shape"):
            raise InputError("feature_cache keeps one map of an image; this backbone returns several")
        array = np.clip(np.asarray(found[0], np.float32), -65504, 65504).astype(np.float16)
        write_atomic(maps.path(*entry), partial(np.save, arr=array, allow_pickle=False))
    return maps
