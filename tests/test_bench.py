"""The benchmark's path for accelerators, run on the CPU with a small network; times are not looked at."""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.errors import InputError
from frcnn_jax.models.networks import get_network

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def bench_gpu(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("bench_gpu")


def run(bench_gpu):
    corners = np.sort(np.random.default_rng(0).uniform(0, 140, (200, 2, 2)), axis=1)
    image = draw_scene(0, "val", 1).image
    device = jax.devices("cpu")[0]
    network, rois = get_network("tiny"), corners.reshape(-1, 4).astype(np.float32)
    bench_gpu.bench_gpu(network, image, rois, Sizes(48, 64), device, repeat=1, probe=128)


@pytest.mark.slow
def test_every_kind_is_checked_timed_and_set_beside_its_floors(bench_gpu, capsys):
    run(bench_gpu)
    printed = capsys.readouterr().out
    assert "RoI pooling as the CPU's, suppression as the CPU's" in printed
    for kind in ("float32", "tf32", "bfloat16"):
        of_kind = re.split(r"\n(?=\w)", printed.split(f"\n{kind}: ")[1])[0]
        assert re.search(r"from the CPU's float32: outputs \S+, loss \S+, momentum \S+", of_kind)
        for what in ("detection ", "detection, image from the host", "step ", "step, images from the host"):
            assert re.search(rf"^  {what} +each +\d+\.\d\d ms   in a row", of_kind, re.MULTILINE), (kind, what)
        assert len(re.findall(r"floors: operations \d+\.\d\d ms, bytes \d+\.\d\d ms", of_kind)) == 2


@pytest.mark.slow
def test_results_that_are_too_far_off_end_it(bench_gpu, monkeypatch):
    monkeypatch.setitem(bench_gpu.KINDS, "bfloat16", bench_gpu.KINDS["bfloat16"]._replace(outputs=1e-6))
    with pytest.raises(InputError, match=r"further from the CPU's .*: bfloat16 outputs by \d\.\de-03, allowed 1e-06"):
        run(bench_gpu)


def test_distance_is_that_of_the_worst_array(bench_gpu):
    expected = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}
    assert bench_gpu.distance({"a": np.array([3.0, 4.5]), "b": np.array([0.8])}, expected) == pytest.approx(0.2)
    assert bench_gpu.distance(expected, expected) == 0
    assert np.isnan(bench_gpu.distance({"a": np.array([3.0, np.nan]), "b": np.array([1.0])}, expected))


def test_a_wrong_roi_pool_is_named(bench_gpu, monkeypatch):
    network, rng = get_network("tiny"), np.random.default_rng(0)
    batch = bench_gpu.prepare_test(
        draw_scene(0, "val", 1).image,
        np.array([[5, 5, 90, 70]], np.float32),
        sizes=[Sizes(48, 64)],
        pixels=network.pixels,
        spatial_scale=None,
    )
    outputs = [rng.normal(size=(1, batch["rois"].shape[1], *shape)).astype(np.float32) for shape in ((21,), (21, 4))]
    original = bench_gpu.roi_pool
    pools = iter([original, lambda *args, **options: original(*args, **options) + 1])
    monkeypatch.setattr(bench_gpu, "roi_pool", lambda *args, **options: next(pools)(*args, **options))
    expected = bench_gpu.Outcome(outputs, None, None)
    assert bench_gpu.compare_exact_parts(network, batch, expected, jax.devices("cpu")[0]) == ["RoI pooling"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--platform", "gpu"], "--platform gpu: jax sees no GPU"),
        (["--only", "detect,boxes"], "--only must be some of detect,svd,step,rcnn,compile, got 'boxes'"),
        (["--platform", "gpu", "--only", "svd"], "--only is for --platform cpu"),
        (["--repeat", "0"], "--repeat must be at least 1, got 0"),
    ],
)
def test_bench_says_what_is_wrong(arguments, message, monkeypatch):
    if jax.default_backend() == "gpu" and "--only" not in arguments:
        pytest.skip("there is a GPU")
    monkeypatch.syspath_prepend(SCRIPTS)
    with pytest.raises(InputError) as error:
        importlib.import_module("bench").main(arguments)
    assert str(error.value).startswith(message)
