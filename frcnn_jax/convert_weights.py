"""Convert weights from other programs, or from a workdir:

    frcnn convert-weights SOURCE OUT.npz|OUT.safetensors [--half] [--network MODULE:FUNCTION]
    frcnn convert-weights SOURCE OUT --detector --network vgg16 [--classes NAME,NAME,...]
    frcnn convert-weights SOURCE OUT --detector --config RECIPE [--config.FIELD=VALUE ...]

SOURCE is a weight file for --config.weights (docs/backbones.md), or a workdir. From a workdir the newest checkpoint is
used, with the box statistics folded into the box layer; if its network is your own, --network names it. The first
form writes a file for --config.weights and, from a workdir, for Detector.from_file. The others
make the workdir OUT from a complete detector trained elsewhere, whose box layer must predict unnormalised targets: with
the paper's recipe and VOC's classes unless --classes names others, or with the recipe and classes of its data set.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.build import read_split_of
from frcnn_jax.cli import command_parser, run
from frcnn_jax.config import FIELDS, Config, add_config_argument, load_config, override_config, voc07_config
from frcnn_jax.data.voc import VOC_CLASSES
from frcnn_jax.errors import InputError
from frcnn_jax.files import write_json
from frcnn_jax.models.weight_files import write_weights
from frcnn_jax.models.weights import Weights
from frcnn_jax.training.checkpoint import save_model
from frcnn_jax.workdir import assemble_detector, source_weights


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="weight file or workdir")
    parser.add_argument("out", type=Path, metavar="OUT", help=".npz or .safetensors file; a workdir with --detector")
    parser.add_argument("--half", action="store_true", help="store float16, which rounds by up to 0.05 %%")
    parser.add_argument("--detector", action="store_true", help="make a workdir from a complete detector")
    parser.add_argument(
        "--network", help="network of the detector, default: vgg16; or the function that makes the workdir's"
    )
    parser.add_argument("--classes", help="comma-separated class names; default: VOC's")
    add_config_argument(parser)
    args, fields = parser.parse_known_args(argv)
    network = None if args.source.is_dir() else args.network
    if not args.detector and (network, args.classes, args.config, fields) != (None, None, None, []):
        raise InputError("--network, --classes and --config need --detector")
    if args.config and (args.network or args.classes):
        raise InputError("--config takes the place of --network and --classes")
    if args.out.exists():
        raise InputError(f"{args.out} already exists")
    config = _config(args, fields) if args.detector else {}
    arrays = source_weights(args.source, network=args.network or "")
    if args.detector:
        _make_detector(arrays, args.source, args.out, config)
    else:
        write_weights(args.out, _halved(arrays) if args.half else arrays)
    count = sum(array.size for array in arrays.values())
    print(f"{args.out}: {len(arrays)} tensors, {count / 1e6:.1f} million parameters")


def _config(args: argparse.Namespace, fields: Sequence[str]) -> dict[str, Any]:
    """Return the config of the workdir to make, with class names."""
    if args.config:
        config = load_config(args.config, fields)
        return {**config, "class_names": config["class_names"] or list(read_split_of(config, "val").class_names)}
    config = override_config(voc07_config("vgg16" if args.network is None else args.network), fields, FIELDS)
    return {**config, "class_names": list(VOC_CLASSES if args.classes is None else _names(args.classes))}


def _make_detector(arrays: Mapping[str, np.ndarray], source: Path, out: Path, config: Config) -> None:
    _, variables = assemble_detector(arrays, config, str(source))
    save_model(out, 0, variables)
    write_json(out / "config.json", config)


def _halved(arrays: Weights) -> Weights:
    halved = {name: np.clip(array, -65504, 65504).astype(np.float16) for name, array in arrays.items()}
    return Weights(halved, arrays.pixels, arrays.stride_in_1x1, arrays.detector)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"--classes {text!r}: expected unique, non-empty names")
    return names


if __name__ == "__main__":
    run("convert-weights")
