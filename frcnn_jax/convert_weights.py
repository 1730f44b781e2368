"""Convert weights from other programs, or from a workdir:

    frcnn convert-weights SOURCE OUT.npz|OUT.safetensors
    frcnn convert-weights SOURCE OUT --detector --network vgg16 [--classes NAME,NAME,...]

SOURCE is a .caffemodel, a .pth, .safetensors or .h5 of VGG16 (torchvision's or Keras's), an .npz, or a workdir. From a
workdir the newest checkpoint is used, with the box statistics folded into the box layer. The first form writes a file
for --config.weights. The second makes the workdir OUT from a complete detector trained elsewhere, whose box layer must
predict unnormalised targets; --classes defaults to VOC's.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from frcnn_jax.cli import command_parser, run
from frcnn_jax.config import voc07_config
from frcnn_jax.data.voc import VOC_CLASSES
from frcnn_jax.errors import InputError
from frcnn_jax.files import write_json
from frcnn_jax.models.fast_rcnn import variable_shapes
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.weight_files import Arrays, read_weights, write_weights
from frcnn_jax.models.weights import canonical_names, fit_weights, merge_weights
from frcnn_jax.training.checkpoint import save_model
from frcnn_jax.workdir import workdir_weights


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="weight file or workdir")
    parser.add_argument("out", type=Path, metavar="OUT", help=".npz or .safetensors file; a workdir with --detector")
    parser.add_argument("--detector", action="store_true", help="make a workdir from a complete detector")
    parser.add_argument("--network", help="network of the detector; default: vgg16")
    parser.add_argument("--classes", help="comma-separated class names; default: VOC's")
    args = parser.parse_args(argv)
    if not args.detector and (args.network, args.classes) != (None, None):
        raise InputError("--network and --classes need --detector")
    class_names = VOC_CLASSES if args.classes is None else _names(args.classes)
    if args.out.exists():
        raise InputError(f"{args.out} already exists")
    arrays = workdir_weights(args.source) if args.source.is_dir() else read_weights(args.source)
    if args.detector:
        _make_detector(arrays, args.source, args.out, "vgg16" if args.network is None else args.network, class_names)
    else:
        write_weights(args.out, arrays)
    count = sum(array.size for array in arrays.values())
    print(f"{args.out}: {len(arrays)} tensors, {count / 1e6:.1f} million parameters")


def _make_detector(arrays: Arrays, source: Path, out: Path, network: str, class_names: Sequence[str]) -> None:
    model = get_network(network).build(len(class_names))
    shapes = variable_shapes(model)
    arrays = fit_weights(arrays, model, str(source))
    if missing := [name for name in canonical_names(shapes["params"]) if name not in arrays]:
        some = ", ".join(missing[:8]) + ("" if len(missing) <= 8 else f" and {len(missing) - 8} more")
        raise InputError(f"{source}: not a complete detector: {some} missing")
    params = merge_weights(shapes["params"], arrays, roi_size=model.roi_size, source=str(source))
    shape = (len(class_names) + 1, 4)
    stats = {"mean": np.zeros(shape, np.float32), "std": np.ones(shape, np.float32)}
    save_model(out, 0, jax.tree.map(np.asarray, {"params": params, "box_stats": stats}))
    write_json(out / "config.json", {**voc07_config(network).to_dict(), "class_names": list(class_names)})


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise InputError(f"--classes {text!r}: expected unique, non-empty names")
    return names


if __name__ == "__main__":
    run("convert-weights")
