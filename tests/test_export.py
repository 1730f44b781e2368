import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from examples import ROOT

from frcnn_jax.data.batches import Sizes, prepare_test
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import DetectionOptions, make_predict_step
from frcnn_jax.export import INPUTS, OUTPUTS, export_detector, main
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.svd import compress_head
from frcnn_jax.training.checkpoint import save_model
from frcnn_jax.workdir import load_variables, read_config

PROGRAM = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)[1]


def batch_of_512():
    """A scene and 300 of its RoIs, which `prepare_test` pads to 512."""
    corners = np.sort(np.random.default_rng(0).uniform(0, 1, (300, 2, 2)), axis=1).reshape(300, 4)
    rois = (corners * [191, 143, 191, 143]).astype(np.float32)
    return prepare_test(
        draw_scene(0, "test", 1).image,
        rois,
        sizes=[Sizes(144, 192)],
        pixels=get_network("tiny").pixels,
        spatial_scale=None,
    )


def run_without_us(program, inputs, tmp_path):
    """The outputs of docs/export.md's program in a process of its own, that can't import frcnn_jax."""
    np.savez(tmp_path / "inputs.npz", **inputs)
    code = f"import sys\nsys.modules['frcnn_jax'] = None\n{PROGRAM}\nnp.savez('outputs.npz', *outputs)\n"
    code = code.replace('"detector.bin"', repr(str(program)))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "outputs.npz") as outputs:
        return [outputs[name] for name in outputs.files]


@pytest.fixture(scope="module")
def factored_svm(workdir, model_and_variables, tmp_path_factory):
    """As `workdir`, with fc6 and fc7 as two layers each and scores that are margins."""
    folder = tmp_path_factory.mktemp("svm")
    config = json.loads((workdir / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "fc_ranks": [20, 10], "classifier": "svm"}))
    variables = jax.tree.map(jax.numpy.asarray, model_and_variables[1])
    save_model(folder, 1, {**variables, "params": compress_head(variables["params"], (20, 10))})
    return folder


@pytest.mark.parametrize("which", ["workdir", "factored_svm"])
def test_another_process_gives_equal_outputs(which, request, tmp_path, capsys):
    folder, program = request.getfixturevalue(which), tmp_path / "detector.bin"
    main(["--workdir", str(folder), "--out", str(program), "--rois", "512"])
    batch = batch_of_512()
    said = capsys.readouterr().out
    assert "image          float32[1,144,192,3]" in said
    assert "-> boxes       float32[1,6,100,4]" in said
    assert "MB, for cpu" in said
    assert [path.name for path in tmp_path.iterdir()] == ["detector.bin"]
    model, variables, _ = load_variables(folder, read_config(folder))
    ours = make_predict_step(model)(variables, batch)
    theirs = run_without_us(program, {name: batch[name] for name in INPUTS}, tmp_path)
    assert ours[2].sum() > 20
    for name, a, b in zip(OUTPUTS, ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_options(workdir):
    """Any canvas that holds the image, padding and other platforms; fields of the config."""
    model, variables, _ = load_variables(workdir, read_config(workdir))
    options = DetectionOptions(candidates=50)
    exported = export_detector(
        model, variables, canvas=(160, 240), rois=600, options=options, platforms=("cpu", "cuda", "tpu")
    )
    assert [aval.shape for aval in exported.in_avals] == [(1, 160, 240, 3), (1, 2), (1, 600, 4), (1, 600), (1,), (1, 2)]
    assert [aval.shape for aval in exported.out_avals] == [(1, 6, 50, 4), (1, 6, 50), (1, 6, 50)]
    assert exported.platforms == ("cpu", "cuda", "tpu")
    batch = batch_of_512()
    ours = make_predict_step(model, options=options)(variables, batch)
    batch["image"] = np.pad(batch["image"], ((0, 0), (0, 16), (0, 48), (0, 0)))
    batch["rois"] = np.pad(batch["rois"], ((0, 0), (0, 88), (0, 0)))
    batch["roi_mask"] = np.pad(batch["roi_mask"], ((0, 0), (0, 88)))
    theirs = jax.jit(exported.call)(*(batch[name] for name in INPUTS))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--config.scales=(144, 192)"], r"detects at the scales \(144, 192\); an exported program has one canvas"),
        (["--canvas", "16", "200"], r"canvas must have at least 32 rows and columns.*, got 16 and 200"),
        (["--canvas", "10000000", "10000000"], "at most 100000000 pixels, got 10000000 and 10000000"),
        (["--rois", "99"], r"rois must be at least the 100 candidates per class.*, got 99"),
        (["--rois", "1000000000000"], "at most 1000000, got 1000000000000"),
        (["--platforms", "cpu,gpu"], "platforms must be among cpu, cuda, rocm, tpu, got gpu"),
        (["--step", "9"], "no checkpoint of step 9"),
        (["--config.network=vgg16"], "can't be changed after training"),
    ],
)
def test_what_can_not_be_exported(workdir, tmp_path, options, text):
    with pytest.raises(InputError, match=text):
        main(["--workdir", str(workdir), "--out", str(tmp_path / "f"), *options])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(workdir, tmp_path):
    with pytest.raises(InputError, match="the folder does not exist"):
        main(["--workdir", str(workdir), "--out", str(tmp_path / "no" / "f")])
