"""What the readers of JSON files that list annotated images share."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from frcnn_jax.data.layouts.coco import has_key
from frcnn_jax.data.layouts.common import Annotated, Found, ReadShape, Shape, Split, read_annotated, sorted_names
from frcnn_jax.data.listing import Files, split_of
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json

_OF_ANOTHER_KIND = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)


class Listed(NamedTuple):
    """An image in a file that lists several."""

    name: str
    size: tuple[int, int] | None  # height and width, if the file has them
    objects: list[Any]


def find_listed(
    files: Files,
    title: str,
    *,
    mark: tuple[str, str],
    list_images: Callable[[Any, Path], Iterable[Listed]],
    label_of: Callable[[Any], str],
    read_shape: ReadShape,
    by_name: bool = True,
) -> Found | None:
    """Find JSON files that list images and their objects, split by the names of files and folders.

    Args:
        files: The files of the data set.
        title: The layout, for messages.
        mark: A key that such files have, and a pattern of its value.
        list_images: Returns the images in the content of a file, of which the path is given too.
        label_of: Returns the class of an object.
        read_shape: Reads an object. All three may raise what a content of another kind causes.
        by_name: Whether the name of a file may say its split.
    """
    images: dict[str, list[Annotated]] = {}
    labels: set[str] = set()
    for source in files.ending(".json"):
        path = files.root / source
        if not has_key(path, *mark):
            continue
        content = read_json(path)
        try:
            listed = list(list_images(content, source))
            labels |= {label_of(item) for image in listed for item in image.objects}
        except _OF_ANOTHER_KIND as error:
            raise InputError(f"{path}: not a file of {title} ({type(error).__name__}: {error})") from None
        for name, size, objects in listed:
            where = f"{path}: image {name!r}"
            rows = [(f"{where}: object {i}", item) for i, item in enumerate(objects)]
            annotated = Annotated(partial(files.image_named, name, source), where, size, rows)
            images.setdefault(split_of(source, by_name=by_name), []).append(annotated)
    if not images:
        return None
    read = partial(_read_shape, title, read_shape)
    splits = {name: Split(len(own), partial(read_annotated, files.root, own, read)) for name, own in images.items()}
    return Found(title, splits, partial(sorted_names, labels))


def _read_shape(title: str, read_shape: ReadShape, item: Any, height: int, width: int) -> Shape:
    try:
        return read_shape(item, height, width)
    except InputError:
        raise
    except _OF_ANOTHER_KIND as error:
        raise InputError(f"not an object of {title} ({type(error).__name__}: {error})") from None


def whole_sides(height: Any, width: Any) -> tuple[int, int] | None:
    """Return a height and width if they are whole numbers."""
    return (height, width) if type(height) is int and type(width) is int else None
