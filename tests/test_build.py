"""Each field of a config reaches what acts on it."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from examples import make_dataset

from frcnn_jax.build import image_sizes, load_proposals_of, read_split_of
from frcnn_jax.config import FIELDS, get_config
from frcnn_jax.errors import InputError
from frcnn_jax.models.pools import RoIAlign
from frcnn_jax.proposals.search import SelectiveSearch
from frcnn_jax.train import batch_recipe, train_and_evaluate
from frcnn_jax.training.sampling import target_statistics


def same(first, *others):
    """The value of all."""
    assert all(other == first for other in others), (first, *others)
    return tuple(first) if isinstance(first, list) else first


def seed_of(key):
    return int(jax.random.key_data(key)[-1])


def split(name, index):
    return lambda s: s.read_split.call_args_list[index].kwargs[name]


def proposals(name):
    return lambda s: same(*(call.kwargs[name] for call in s.load_proposals.call_args_list))


def schedule(name):
    return lambda s: getattr(s.train.call_args.kwargs["schedule"], name)


def option(name):
    return lambda s: getattr(s.Evaluator.call_args.kwargs["options"], name)


def batches(name):
    return lambda s: getattr(s.batches, name)


def given(function, name):
    return lambda s: getattr(s, function).call_args.kwargs[name]


def multipliers(s):
    return given("adamw", "multipliers")(s)


def first_trained(s):
    *frozen, pattern = same(*(given(function, "frozen")(s) for function in ("initial_variables", "create_state")))
    layers = ("conv1_1", "conv1_2")
    assert sorted(frozen) == [f"backbone/{layer}/{kind}" for layer in layers for kind in ("bias", "kernel")]
    return ("conv2_1", (pattern,))


# by field: another value than its default, and where `seen` shows it. 1000 steps of 4 images are 500 of 8.
PLACES = {
    "dataset": ("voc", lambda s: s.read_split.call_args_list[0].args[0]),
    "voc_dir": ("devkit", lambda s: same(*(split("folder", i)(s) for i in (0, 1)))),
    "year": (2012, lambda s: same(*(split("year", i)(s) for i in (0, 1)))),
    "data_dir": ("folder", split("folder", 2)),
    "train_split": ("one", split("split", 0)),
    "val_split": ("other", split("split", 1)),
    "exif": ("ignore", lambda s: same(*(split("exif", i)(s) for i in (0, 1)))),
    "on_error": ("skip", lambda s: same(*(call.args[0] for call in s.problem_handler.call_args_list))),
    "train_images": (7, split("images", 0)),
    "val_images": (8, split("images", 1)),
    "train_difficult": (False, split("include_difficult", 0)),
    "class_names": (["cat", "dog", "cow"], lambda s: list(same(*(split("class_names", i)(s) for i in (0, 1))))),
    "proposals": ("p.npz", proposals("source")),
    "proposal_size": (300, proposals("size")),
    "max_proposals": (99, proposals("max_boxes")),
    "proposal_cache": ("cache", lambda s: str(proposals("cache_dir")(s))),
    "workers": (3, proposals("workers")),
    "network": ("vgg16", lambda s: s.model.pool.output_size == (7, 7) and "vgg16"),
    "weights": ("w.npz", given("initial_variables", "weights")),
    "train_from": ("conv2_1", lambda s: first_trained(s)[0]),
    "freeze": (("backbone",), lambda s: first_trained(s)[1]),
    "pool": ("align", lambda s: type(s.model.pool) is RoIAlign and "align"),
    "buckets": ("exact", lambda s: same(*(size.exact for size in s.sizes)) and "exact"),
    "feature_cache": ("maps", lambda s: str(given("store_maps", "folder")(s))),
    "rate_multipliers": (("a=0.5", "b=2"), lambda s: tuple(f"{p}={n:g}" for p, n in multipliers(s).items())),
    "compute_type": ("bfloat16", lambda s: str(same(s.model.backbone.dtype, s.model.head.dtype))),
    "fc_ranks": ((64, 32), lambda s: s.model.head.ranks),
    "classifier": ("svm", lambda s: s.model.classifier),
    "min_size": (150, lambda s: image_sizes({**s.config, "scales": ()})[0].shorter),
    "max_size": (500, lambda s: same(*(size.longer for size in s.sizes))),
    "scales": ((300, 400), lambda s: tuple(size.shorter for size in s.sizes)),
    "data_workers": (2, given("train", "data_workers")),
    "images_per_batch": (8, batches("images_per_batch")),
    "accumulate": (4, given("make_train_step", "accumulate")),
    "rois_per_batch": (96, lambda s: 8 * s.batches.rois_per_image),
    "fg_fraction": (0.5, batches("fg_fraction")),
    "fg_iou": (0.7, lambda s: same(s.batches.fg_iou, given("target_statistics", "fg_iou")(s))),
    "bg_iou_low": (0.2, lambda s: s.batches.bg_iou[0]),
    "bg_iou_high": (0.6, lambda s: s.batches.bg_iou[1]),
    "flip": (False, lambda s: same(s.batches.flip, given("target_statistics", "flip")(s))),
    "scale_jitter": ((0.5, 1.5), batches("scale_jitter")),
    "color_jitter": (0.25, batches("color_jitter")),
    "box_loss_weight": (3.0, given("make_train_step", "box_loss_weight")),
    "reference_images": (4, lambda s: len(s.batches) * 8 / 1000),
    "steps": (1000, lambda s: 2 * len(s.batches)),
    "learning_rate": (0.002, lambda s: s.step_schedule.call_args.args[0] / 2),
    "learning_rate_drops": ((600, 800), lambda s: tuple(2 * step for step in s.step_schedule.call_args.args[1])),
    "epochs": (1.0, lambda s: batch_recipe(s.config, 6000).steps * 8 / 6000),
    "optimizer": ("adamw", lambda s: s.create_state.call_args.args[1] is s.adamw.return_value and "adamw"),
    "schedule": ("cosine", lambda s: given("train", "learning_rate")(s) is s.cosine_schedule.return_value and "cosine"),
    "momentum": (0.8, given("adamw", "momentum")),
    "weight_decay": (0.25, given("adamw", "weight_decay")),
    "decay_biases": (True, given("adamw", "decay_biases")),
    "warmup_steps": (100, lambda s: 2 * s.step_schedule.call_args.kwargs["warmup_steps"]),
    "seed": (5, lambda s: same(s.batches.seed, *map(seed_of, (s.train.call_args.args[3], s.initial_key)))),
    "nms_iou": (0.4, option("nms_iou")),
    "test_box_regression": (False, option("box_regression")),
    "candidates_per_class": (50, option("candidates")),
    "vote_iou": (0.6, option("vote_iou")),
    "log_every": (3, schedule("log_every")),
    "profile_steps": ((5, 6), schedule("profile")),
    "checkpoint_every": (30, schedule("checkpoint_every")),
    "keep_checkpoints": (5, given("Checkpoints", "keep")),
    "keep_best": (1, given("Checkpoints", "keep_best")),
    "eval_every": (10, schedule("eval_every")),
    "stop_after": (3, schedule("stop_after")),
    "eval_images": (4, lambda s: s.Evaluator.return_value.call_args.kwargs["images"]),
    "pictures": (6, given("save_pictures", "pictures")),
    "picture_threshold": (0.25, given("save_pictures", "score_threshold")),
}
IN_TRAIN = (
    "initial_variables", "create_state", "step_schedule", "cosine_schedule", "adamw", "make_train_step", "replicate",
    "Evaluator", "save_pictures", "plot_losses", "store_maps", "source_weights", "keep_outputs",
)  # fmt: skip


def make_split(val):
    """Two images to train on, one to validate on."""
    return replace(make_dataset(), records=make_dataset().records[int(val) :])


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The calls of a training in which no field has its default, and what was built for it; some exclude each other."""
    folder = tmp_path_factory.mktemp("seen")
    (folder / "w.npz").touch()
    (folder / "p.npz").touch()
    config = {name: value for name, (value, _) in PLACES.items()}
    boxes = {record.image_id: record.boxes for record in make_dataset().records}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mocks = {name: mock.MagicMock() for name in IN_TRAIN}
        mocks["initial_variables"].return_value = {"params": {}}
        mocks["keep_outputs"].return_value = {}, []
        mocks["store_maps"].return_value = None
        patch.setattr("frcnn_jax.train._check", mock.Mock())
        mocks["replicate"].side_effect = lambda tree: tree
        mocks["target_statistics"] = mock.Mock(wraps=target_statistics)
        mocks["Evaluator"].return_value.return_value.results = {"map": 0.5}
        for name, mocked in mocks.items():
            patch.setattr(f"frcnn_jax.train.{name}", mocked)
        for place, name, made in (
            ("build", "read_split", None),
            ("build", "load_proposals", None),
            ("build", "problem_handler", mock.MagicMock()),
            ("training.checkpoint", "Checkpoints", mock.MagicMock()),
            ("training.loop", "train", SimpleNamespace(step=500, variables={})),
            ("train", "results_table", ""),
        ):
            mocks[name] = mock.Mock(return_value=made)
            patch.setattr(f"frcnn_jax.{place}.{name}", mocks[name])
        mocks["read_split"].side_effect = lambda _, *, split, **options: make_split(split == "other")
        mocks["load_proposals"].side_effect = lambda dataset, **options: (dataset, boxes)
        train_and_evaluate(config, folder / "w")
        mocks["train"].call_args.kwargs["score"]({})
        for at in ("val", "train"):
            read_split_of({**config, "dataset": "coco", "train_difficult": True}, at)
        read_split_of({**config, "train_difficult": True}, "train")
    return SimpleNamespace(
        **mocks,
        config=config,
        batches=mocks["train"].call_args.args[2],
        model=mocks["Evaluator"].call_args.args[0],
        sizes=same(mocks["train"].call_args.args[2].sizes, mocks["Evaluator"].call_args.kwargs["sizes"]),
        initial_key=mocks["initial_variables"].call_args.args[1],
    )


def test_every_field_has_a_place():
    assert PLACES.keys() == FIELDS.keys()
    assert not [name for name, (value, _) in PLACES.items() if value == get_config()[name]]


@pytest.mark.parametrize("name", PLACES)
def test_a_field_reaches_its_place(seen, name):
    value, place = PLACES[name]
    assert place(seen) == value


def test_splits_and_statistics_reach_their_places(seen):
    assert [record.image_id for record in seen.batches.records] == ["im0", "im1"]
    assert [record.image_id for record in seen.Evaluator.call_args.args[1].records] == ["im1"]
    assert seen.create_state.call_args.args[0]["box_stats"] == seen.batches.box_stats


def test_difficult_objects_are_left_out_of_training_alone_and_coco_always(seen):
    """Training and validation on VOC without, validation and training on COCO with, training on VOC with them."""
    found = [call.kwargs["include_difficult"] for call in seen.read_split.call_args_list]
    assert found == [False, True, True, False, True]


def test_a_data_set_of_any_layout_says_what_it_is_and_keeps_its_recorded_split(tmp_path, monkeypatch, capsys):
    dataset = replace(make_dataset(), description="COCO: 2 images", has_crowds=True)
    crowd = replace(dataset.records[0], difficult=np.ones(1, bool))
    dataset = replace(dataset, records=[crowd, dataset.records[1]])
    read = mock.Mock(return_value=dataset)
    monkeypatch.setattr("frcnn_jax.build.read_split", read)
    config = {**get_config(), "dataset": "auto", "data_dir": "pets", "seed": 3}
    assert [len(record.boxes) for record in read_split_of(config, "train", workdir=tmp_path).records] == [0, 1]
    assert read_split_of(config, "val") is dataset
    assert capsys.readouterr().err == "pets: COCO: 2 images\n"
    assert [call.kwargs["drawn"] for call in read.call_args_list] == [None, None]
    assert read.call_args.kwargs["seed"] == 3
    for text in ("[]", '{"train": ["a"]}', '{"train": [1], "val": []}', '{"train": 1, "val": []}'):
        (tmp_path / "split.json").write_text(text)
        with pytest.raises(InputError, match=r"split\.json: not a split that frcnn train wrote"):
            read_split_of(config, "train", workdir=tmp_path)
    (tmp_path / "split.json").write_text('{"train": ["a"], "val": ["b"]}')
    read_split_of(config, "train", workdir=tmp_path)
    assert read.call_args.kwargs["drawn"] == {"train": ["a"], "val": ["b"]}


def test_a_train_split_without_objects_is_refused(monkeypatch):
    dataset = make_dataset()
    none = [replace(r, boxes=r.boxes[:0], labels=r.labels[:0], difficult=r.difficult[:0]) for r in dataset.records]
    dataset = replace(dataset, records=none)
    monkeypatch.setattr("frcnn_jax.build.read_split", mock.Mock(return_value=dataset))
    config = {**get_config(), "dataset": "auto", "data_dir": "pets"}
    with pytest.raises(InputError, match=r"pets: none of the 2 train images has objects; are their annotations elsew"):
        read_split_of(config, "train")
    assert read_split_of(config, "val") is dataset


def test_the_cache_lies_in_the_workdir_and_all_cores_search_by_default(tmp_path, monkeypatch):
    load = mock.Mock()
    monkeypatch.setattr("frcnn_jax.build.load_proposals", load)
    dataset, executor = make_dataset(), object()
    load_proposals_of(get_config(), tmp_path, dataset, executor)
    assert load.call_args.args == (dataset,)
    expected = {"cache_dir": tmp_path / "proposals", "workers": None, "executor": executor}
    assert {name: load.call_args.kwargs[name] for name in expected} == expected


def test_processes_share_the_search(tmp_path, monkeypatch):
    """The second of two searches every second image first; then each reads all, from the cache."""
    search, load = mock.Mock(), mock.Mock()
    for name, found in {
        "search_images": search,
        "load_proposals": load,
        "fail_together": nullcontext,
        "jax.process_count": lambda: 2,
        "jax.process_index": lambda: 1,
    }.items():
        monkeypatch.setattr(f"frcnn_jax.build.{name}", found)
    dataset = make_dataset()
    load_proposals_of({**get_config(), "max_proposals": 5}, tmp_path, dataset)
    assert search.call_args.args == ({"im1": dataset.records[1].load}, SelectiveSearch("standard", None, 5))
    assert search.call_args.kwargs.items() >= {"cache_dir": tmp_path / "proposals"}.items()
    load_proposals_of({**get_config(), "proposals": "p.npz"}, tmp_path, dataset)
    assert search.call_count == 1  # files need no search
    assert [call.args for call in load.call_args_list] == [(dataset,)] * 2
