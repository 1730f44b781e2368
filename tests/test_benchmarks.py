"""The benchmarks with small networks, on a CPU; times are not checked."""

import importlib
import re
import subprocess
import sys
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from examples import ROOT

from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.errors import InputError
from frcnn_jax.models.layers import Conv, Pool
from frcnn_jax.models.networks import get_network

BENCHMARKS = ROOT / "benchmarks"


def run_benchmark(script, *arguments):
    return subprocess.run([sys.executable, BENCHMARKS / script, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def bench_gpu(load):
    return load("bench_gpu")


def run(bench_gpu):
    corners = np.sort(np.random.default_rng(0).uniform(0, 140, (200, 2, 2)), axis=1)
    image = draw_scene(0, "val", 1).image
    device = jax.devices("cpu")[0]
    network, rois = get_network("tiny"), corners.reshape(-1, 4).astype(np.float32)
    bench_gpu.bench_gpu(network, image, rois, Sizes(48, 64), device, repeat=1, probe=128)


@pytest.mark.slow
def test_every_kind_is_checked_and_timed_next_to_its_floors(bench_gpu, capsys):
    run(bench_gpu)
    printed = capsys.readouterr().out
    assert "RoI pooling equals the CPU's, NMS equals the CPU's" in printed
    for kind in ("float32", "tf32", "bfloat16"):
        of_kind = re.split(r"\n(?=\w)", printed.split(f"\n{kind}: ")[1])[0]
        assert re.search(r"from the CPU's float32: outputs \S+, loss \S+, momentum \S+", of_kind)
        for what in ("detection ", "detection, image from the host", "step ", "step, images from the host"):
            assert re.search(rf"^  {what} +each +\d+\.\d\d ms   in a row", of_kind, re.MULTILINE), (kind, what)
        assert len(re.findall(r"floors: operations \d+\.\d\d ms, bytes \d+\.\d\d ms", of_kind)) == 2


@pytest.mark.slow
def test_results_that_differ_too_much_are_an_error(bench_gpu, monkeypatch):
    monkeypatch.setitem(bench_gpu.KINDS, "bfloat16", bench_gpu.KINDS["bfloat16"]._replace(outputs=1e-6))
    with pytest.raises(InputError, match=r"differ from the CPU's by .*: bfloat16 outputs by \d\.\de-03, allowed 1e-06"):
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
def test_wrong_arguments_of_bench_are_named(arguments, message, load):
    if jax.default_backend() == "gpu" and "--only" not in arguments:
        pytest.skip("there is a GPU")
    with pytest.raises(InputError) as error:
        load("bench").main(arguments)
    assert str(error.value).startswith(message)


def test_the_kind_of_cpu_is_read_from_cpuinfo(load, monkeypatch):
    inputs = load("bench_inputs")
    text = "processor\t: 0\nmodel name\t: Some: CPU\nflags\t\t: fpu {}avx2\n"
    for flag, name in (("avx512f ", "Some: CPU, with AVX-512"), ("avx512", "Some: CPU, without AVX-512")):
        monkeypatch.setattr(inputs.Path, "read_text", lambda _, flag=flag: text.format(flag))
        assert inputs.cpu_name() == name
    monkeypatch.setattr(inputs.Path, "read_text", lambda _: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(inputs.platform, "processor", lambda: "arm")
    assert inputs.cpu_name() == "arm"


@pytest.mark.slow
def test_bench_prints_shares_of_the_matrix_rate(load, monkeypatch, capsys):
    """The product takes 2 s, detection 1 s."""
    bench = load("bench")
    monkeypatch.setattr(bench, "has_torch", lambda: False)
    monkeypatch.setattr(bench, "part_medians", lambda *_: {})
    monkeypatch.setattr(bench, "PROBE", 100)
    monkeypatch.setattr(bench, "medians", lambda runs, _: {name: 2.0 if name == "product" else 1.0 for name in runs})
    monkeypatch.setattr(bench, "count", lambda *_, train: load("count_operations").Count(250_000, 0, 0))
    bench.main(["--network", "tiny", "--only", "detect", "--repeat", "1"])
    printed = capsys.readouterr().out
    assert f"cores of {load('bench_inputs').cpu_name()}; jax" in printed
    assert "a matrix product reaches 0 GFLOP/s; shares at 2.5e-07 TFLOP: ours 25%\n" in printed


@pytest.mark.slow
def test_bench_regions_compares_embed_with_evaluation_and_prints_memory(load, capsys):
    bench = load("bench_regions")
    bench.main(["--images", "2", "--repeat", "1"])
    found = re.match(r"tiny: evaluation (\S+), embed (\S+) images/s, ratio (\S+); ", capsys.readouterr().out)
    evaluation, embed, ratio = map(float, found.groups())
    assert ratio == pytest.approx(embed / evaluation, rel=0.1)
    for layer, columns in (("fc7", 128), ("classify", 21 + 21 + 80)):
        bench.main(["--boxes", "20000", "--layer", layer])
        result = re.search(r"without the (\S+) of the result", capsys.readouterr().out)[1]
        assert float(result) == pytest.approx(20_000 * columns * 4 / 2**30, abs=0.006)


@pytest.mark.nightly
@pytest.mark.skipif(not (find_spec("torch") and find_spec("torchvision")), reason="needs the extra peers")
@pytest.mark.parametrize(
    "arguments",
    [
        "--network tiny --shorter 300",
        "--network alexnet",
        "--network alexnet --weights {}/weights/alexnet_imagenet_conv.npz --type float32 --rate 0.0003",
    ],
)
def test_training_and_detection_equal_pytorch(arguments, shared):
    """On photographs of VOC. The script fails where the programs differ too much."""
    given = arguments.format(shared).split()
    done = run_benchmark("parity.py", "--voc", shared / "voc" / "VOCdevkit", *given)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^ +(\d+) +\d+\.\d+ +\d+\.\d+  ", done.stdout, re.MULTILINE) == [str(i) for i in range(1, 21)]
    network = get_network(given[1])
    trained = {layer.name for layer in network.layers if isinstance(layer, Conv)} - set(network.frozen)
    for layer in (*trained, "fc6", "fc7", "cls_score", "bbox_pred"):
        assert f"\n{layer}.weight " in done.stdout
    counts = re.search(r"^detections: (\d+) and (\d+); ", done.stdout, re.MULTILINE).groups()
    assert counts[0] == counts[1]
    assert int(counts[0]) > 500


def test_parity_names_what_differs_too_much(load, monkeypatch, capsys):
    parity = load("parity")
    array, box = np.array([3.0, 4.0], np.float32), np.array([[1.0, 2, 30, 40]])
    ours = [2.0, 1.0], {"fc6.bias": array}, {"fc6.bias": array}

    def compare(losses, gradients, changes, boxes, scores):
        monkeypatch.setattr(parity, "train", lambda _: (parity.Training(*ours), None))
        monkeypatch.setattr(parity, "torch_train", lambda _: parity.Training(losses, gradients, changes))
        monkeypatch.setattr(parity, "detect", lambda *_: [(box, np.array([0.5]))])
        monkeypatch.setattr(parity, "torch_detect", lambda *_: [(boxes, scores)])
        return parity.compare(None)

    almost, changed = {"fc6.bias": array * 1.00009}, {"fc6.bias": array * 1.009}
    near = [2.0, 1.0 - 9e-6], almost, changed, box + 9e-4, np.array([0.500009])
    assert compare(*near) == []
    assert "\n   2   1.0000000   0.9999910  9.0e-06\n" in capsys.readouterr().out
    not_quite, too_much = {"fc6.bias": array / 1.0003}, {"fc6.bias": array / 1.03}
    far = [2.0, 1.0 - 2e-5], not_quite, too_much, box + 2e-3, np.array([0.50002])
    texts = [
        "loss 2 by 2.0e-05, allowed 1e-05",
        "gradient of fc6.bias by 3.0e-04, allowed 1e-04",
        "change of fc6.bias by 3.0e-02, allowed 1e-02",
        "boxes by 2.0e-03, allowed 1e-03",
        "scores by 2.0e-05, allowed 1e-05",
    ]
    assert compare(*far) == texts
    assert compare([2.0, np.nan], *near[1:]) == ["loss 2 by nan, allowed 1e-05"]
    more = {"fc6.bias": array, "fc7.bias": array}
    assert compare(near[0], more, *near[2:]) == ["only one program trains fc7.bias"]
    ours = [2.0, 1.0], {"fc6.bias": array}, {"fc6.bias": array.astype(np.float64)}
    assert compare(*ours, box + 9e-5, np.array([0.5 + 9e-11])) == []
    assert len(compare(*near)) == 5


def test_detections_are_compared_with_the_nearest_of_their_class(load):
    """Two change places; one more, or another one, is as far as can be."""
    largest = load("parity").largest_differences
    boxes, scores = np.array([[0.0, 0, 9, 9], [20, 0, 29, 9]]), np.array([0.5, 0.4])
    empty = np.zeros((0, 4)), np.zeros(0)
    moved = np.array([[20, 0.25, 29, 9], [0, 0, 9, 9]]), np.array([0.4, 0.375])
    assert largest([(boxes, scores), empty], [moved, empty]) == (0.25, 0.125)
    assert largest([(boxes, scores)], [(boxes[:1], scores[:1])]) == (np.inf, np.inf)
    assert largest([(boxes[[0, 0]], scores)], [(boxes, scores)]) == (np.inf, np.inf)


@pytest.mark.nightly
def test_a_killed_training_ends_with_the_same_bits(tmp_path):
    done = run_benchmark("kill_test.py", "--out", tmp_path / "out", "--kills", 2, "--steps", 60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^2 kills: the same bits in \d+ arrays and 21 rows$", done.stdout, re.MULTILINE)


def test_count_communication_reads_all_reduces_of_every_form(load):
    program = """
  %a.1 = f32[3,4]{1,0} all-reduce(%x), replica_groups={{0,1}}
  %b = (f32[5]{0}, f32[]) all-reduce(%y, %z), to_apply=%add
  %c = f32[2]{0} all-reduce-start(%w)
  %d = f32[9]{0} add(%all-reduce.1, %x)
"""
    assert load("count_communication").all_reduced(program) == [48, 24, 8]


@pytest.mark.slow
def test_all_trained_parameters_and_no_others_are_communicated(model_and_variables):
    """The tiny network trains all of them; besides, the number of RoIs and four metrics."""
    done = run_benchmark("count_communication.py", "--network", "tiny")
    assert done.returncode == 0, done.stderr
    model, variables = model_and_variables
    classes = 20 - model.num_classes
    head = 128 * 5 * classes + 5 * classes  # of more classes
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) + head
    assert done.stdout == f"tiny: {4 * (parameters + 5) / 1e6:.1f} MB in 2 all-reduces\n"


def test_count_operations_by_hand(load):
    """A frozen convolution, a pool, a trained convolution, then one RoI through the head of 20 classes."""
    count = load("count_operations").count
    layers = (Conv("a", 4, 3, padding=1), Pool(2, 2), Conv("b", 8, 3, padding=1))
    network = get_network("tiny")._replace(layers=layers, frozen=("a",), roi_size=(2, 2), fc=(10, 10))
    a, b, fc6, fc7, heads = 3 * 9 * 4, 4 * 9 * 8, 2 * 2 * 8 * 10, 10 * 10, 10 * 105
    forward = count(network, (8, 6), 2, 1, train=False)
    assert forward.operations == 2 * 2 * (48 * a + 12 * b + fc6 + fc7 + heads)
    assert forward.elements == 2 * (48 * 7 + 48 * 4 + 12 * 4 + 12 * 12 + 42 + 20 + 115)
    assert forward.weight_bytes == 4 * (a + b + fc6 + fc7 + heads)
    step = count(network, (8, 6), 2, 1, train=True)
    assert step.operations == 2 * 2 * (48 * a + 2 * 12 * b + 3 * (fc6 + fc7 + heads))
    assert step.weight_bytes == 4 * (a + 8 * b + 9 * (fc6 + fc7 + heads))


def test_vgg16_has_the_published_operations(load):
    network = get_network("vgg16")
    with_head = load("count_operations").count(network, (224, 224), 1, 1, train=False)
    assert with_head.operations / 2 == pytest.approx(15.47e9, rel=0.01)  # 15.35 and 0.12 of fc6 and fc7
