"""Weights from and for other programs.

    python scripts/convert_weights.py SOURCE OUT.npz|OUT.safetensors
    python scripts/convert_weights.py SOURCE OUT --detector --network vgg16 [--classes NAME,NAME,...]

SOURCE is a .caffemodel, a .pth, .safetensors or .h5 of VGG16 (torchvision's or Keras's), a .npz, or a workdir, whose
newest checkpoint is taken and whose box layer then holds the means and standard deviations of the targets. The first
form writes the arrays under the names that --config.weights takes. The second makes a workdir that detects, OUT, of a
whole detector trained elsewhere (its box layer for targets that are not normalised); --classes are VOC's by default.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from frcnn_jax.__main__ import run
from frcnn_jax.config import get_config
from frcnn_jax.data.voc import VOC_CLASSES
from frcnn_jax.detect import make_model, model_shapes, workdir_arrays
from frcnn_jax.errors import InputError
from frcnn_jax.files import write_json
from frcnn_jax.models.weight_files import Arrays, read_weights, write_weights
from frcnn_jax.models.weights import OUTPUTS, merge_weights
from frcnn_jax.training.checkpoint import save_model


def make_detector(arrays: Arrays, source: Path, out: Path, network: str, class_names: Sequence[str]) -> None:
    missing = [f"{layer}.{kind}" for layer in ("fc6", "fc7", *OUTPUTS) for kind in ("weight", "bias")]
    if missing := [name for name in missing if name not in arrays]:
        raise InputError(f"{source}: not a whole detector: missing {', '.join(missing)}")
    config = {**get_config().to_dict(), "network": network, "min_size": 600, "max_size": 1000, "dataset": "voc"}
    config["class_names"] = list(class_names)
    model = make_model(config, len(class_names))
    shapes = model_shapes(model)
    params = merge_weights(shapes["params"], arrays, roi_size=model.network.roi_size, source=str(source))
    shape = (len(class_names) + 1, 4)
    stats = {"mean": np.zeros(shape, np.float32), "std": np.ones(shape, np.float32)}
    save_model(out, 0, jax.tree.map(np.asarray, {"params": params, "box_stats": stats}))
    write_json(out / "config.json", config)


def read_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"--classes {text!r}: each name once and none empty expected")
    return names


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--detector", action="store_true", help="make a workdir that detects")
    parser.add_argument("--network", help="with --detector; vgg16 by default")
    parser.add_argument("--classes", help="with --detector; VOC's by default")
    args = parser.parse_args(argv)
    if not args.detector and (args.network, args.classes) != (None, None):
        raise InputError("--network and --classes go with --detector")
    class_names = VOC_CLASSES if args.classes is None else read_names(args.classes)
    if args.out.exists():
        raise InputError(f"{args.out} exists; name another")
    arrays = workdir_arrays(args.source) if args.source.is_dir() else read_weights(args.source)
    if args.detector:
        make_detector(arrays, args.source, args.out, "vgg16" if args.network is None else args.network, class_names)
    else:
        write_weights(args.out, arrays)
    print(
        f"{args.out}: {len(arrays)} tensors, {sum(array.size for array in arrays.values()) / 1e6:.1f} million numbers"
    )


if __name__ == "__main__":
    run("convert-weights")
