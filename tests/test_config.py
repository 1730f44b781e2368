import json
import re
import traceback

import pytest
from examples import ROOT

from frcnn_jax.config import (
    FIELDS,
    HOUSEKEEPING,
    TEST_FIELDS,
    check_config,
    get_config,
    load_config,
    override_config,
    parse_config,
)
from frcnn_jax.errors import InputError


def test_defaults_and_overrides():
    config = load_config(None, ["--config.steps=7", "--config.learning_rate_drops=(3,4)"])
    assert config["steps"] == 7
    assert config["learning_rate_drops"] == (3, 4)
    assert {k: v for k, v in config.items() if k not in ("steps", "learning_rate_drops")} == {
        k: v for k, v in get_config().to_dict().items() if k not in ("steps", "learning_rate_drops")
    }


@pytest.mark.parametrize(
    ("recipe", "arguments", "expected"),
    [
        (None, [], ("auto", "train", "val")),
        (None, ["--config.val_split=test"], ("auto", "train", "test")),
        (None, ["--config.dataset=xml"], ("xml", "train", "val")),
        (None, ["--config.dataset", "auto:yolo"], ("auto:yolo", "train", "val")),
        ("voc07_l", [], ("auto", "train", "val")),
        ("coco_l", [], ("coco", "train2014", "val2014")),
    ],
)
def test_a_data_dir_alone_is_a_data_set_of_any_layout(recipe, arguments, expected):
    config = load_config(recipe, ["--config.data_dir=F", *arguments])
    assert (config["dataset"], config["train_split"], config["val_split"]) == expected
    assert load_config(recipe, arguments)["dataset"] != "auto"


@pytest.mark.parametrize("recipe", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_recipes_are_deltas(recipe):
    config = load_config(str(recipe), ["--config.seed=5"])
    assert config == load_config(recipe.stem, ["--config.seed=5"])
    assert set(config) == set(get_config())
    assert config["seed"] == 5
    json.dumps(config)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("config.learing_rate = 0.5", AttributeError),
        ("import no_such_module", ImportError),
        ("config['x']", KeyError),
        ("open('no/file')", RuntimeError),
        ("c.load_config('no_such_recipe', [])", RuntimeError),
    ],
)
def test_an_error_in_a_recipe_keeps_its_traceback(tmp_path, line, error):
    body = ["from frcnn_jax import config as c", "def get_config():", "    config = c.get_config()", f"    {line}"]
    (tmp_path / "recipe.py").write_text("\n".join([*body, "    return config", ""]))
    with pytest.raises(error) as found:
        load_config(str(tmp_path / "recipe.py"), [])
    assert "recipe.py" in "".join(traceback.format_exception(found.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "recipe.py: a recipe must define get_config()"),
        (
            "from frcnn_jax.config import FIELDS\nfrom ml_collections import ConfigDict\n"
            "def get_config(): return ConfigDict({n: f.default for n, f in FIELDS.items()} | {'steps': 'abc'})",
            "recipe.py: steps must be of type int, got 'abc'",
        ),
        ("def get_config(): return {}", "must return a ConfigDict with the fields of frcnn_jax.config: {}"),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'a': 1})",
            "frcnn_jax.config: a, accumulate",
        ),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, message):
    (tmp_path / "recipe.py").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(str(tmp_path / "recipe.py"), [])


def test_a_recipe_may_give_integers_for_numbers_and_lists(tmp_path):
    text = (
        "from frcnn_jax.config import FIELDS\nfrom ml_collections import ConfigDict\ndef get_config():\n"
        "    values = {n: f.default for n, f in FIELDS.items()} | {'learning_rate': 1, 'scales': [100]}\n"
        "    return ConfigDict(values, convert_dict=False)\n"
    )
    (tmp_path / "recipe.py").write_text(text)
    config = load_config(str(tmp_path / "recipe.py"), [])
    assert config == {**get_config().to_dict(), "learning_rate": 1, "scales": (100,)}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, r"--config\.steps must be over 0 and below 2\^31, got 0"),
        ({"log_every": -1}, "log_every must be over 0"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"nms_iou": 1.5}, r"nms_iou must be from 0 to 1, got 1\.5"),
        ({"learning_rate": float("nan")}, "learning_rate must be over 0 and finite"),
        ({"learning_rate": float("inf")}, "learning_rate must be over 0 and finite"),
        ({"min_size": 300}, "max_size must be at least min_size"),
        ({"min_size": 144, "max_size": 10**29}, "max_size must be at least min_size and at most 10000"),
        ({"steps": 10**20}, "steps must be over 0 and below"),
        ({"candidates_per_class": 600}, "candidates_per_class must be over 0 and at most 512"),
        ({"keep_best": 1}, "keep_best must be 0 or more, and 0 where eval_every is 0, got 1"),
        ({"images_per_batch": 200}, "rois_per_batch must be over 0 and a multiple of images_per_batch, 200, got 128"),
        ({"images_per_batch": 3}, "rois_per_batch must be over 0 and a multiple of images_per_batch, 3, got 128"),
        ({"learning_rate_drops": ("a",)}, "learning_rate_drops must be steps"),
    ],
)
def test_values_out_of_range(options, text):
    with pytest.raises(InputError, match=text):
        check_config({**get_config().to_dict(), **options})


@pytest.mark.parametrize(
    ("recipe", "arguments", "field"),
    [
        ("finetune", ["--config.train_images=9"], "train_images"),
        ("finetune", ["--config.data_dir=F", "--config.val_images=9"], "val_images"),
        (None, ["--config.dataset", "synthetic", "--config.data_dir=F"], "data_dir"),
        ("voc07_l", ["--config.voc_dir=D", "--config.data_dir=F"], "data_dir"),
    ],
)
def test_a_field_that_the_data_set_does_not_read_is_refused(recipe, arguments, field):
    with pytest.raises(InputError, match=rf"--config\.{field} is for"):
        load_config(recipe, arguments)


def test_steps_alone_are_the_number_of_steps():
    assert load_config("finetune", [])["epochs"] == 10
    assert load_config("finetune", ["--config.steps=50"])["epochs"] == 0
    assert load_config("finetune", ["--config.steps=50", "--config.epochs=2"])["epochs"] == 2
    assert load_config("finetune", ["--config.learning_rate=1e-4"])["epochs"] == 10


def test_at_test_too_a_field_must_be_read():
    with pytest.raises(
        InputError, match=r"data_dir is for --config\.dataset=auto, xml, coco, tfds; .* is voc, of --config\.voc_dir$"
    ):
        override_config(load_config("voc07_l", []), ["--config.data_dir=F"], TEST_FIELDS)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--config.stepz=3", r"--config\.stepz: no such field; did you mean steps\?"),
        ("--config.qqq=3", r"--config\.qqq: no such field$"),
        ("--config.steps=abc", "steps=abc"),
        ("--config.steps=1.5", "steps=1.5"),
        ("--confg=3", "unknown argument '--confg'"),
        ("--data-dir=pets", r"unknown argument '--data-dir'; set fields with --config\.data_dir=VALUE$"),
        ("more", r"unknown argument 'more'; set fields with --config\.FIELD=VALUE$"),
        (".", r"unknown argument '\.'; set fields with --config\.data_dir=\.$"),
        ("--config.voc_dir=F", r"--config\.voc_dir is for --config\.dataset=voc; the data set here is synthetic$"),
    ],
)
def test_mistakes_are_one_line(argument, text):
    with pytest.raises(InputError, match=text) as error:
        load_config(None, [argument])
    assert "\n" not in str(error.value)


def test_fields_that_may_change_at_test():
    arguments = [
        "--config.test_box_regression=false",
        "--config.min_size=480",
        "--config.max_size=500",
        "--config.nms_iou=1",
        "--config.scales=(100, 200)",
        "--config.voc_dir=x=y",
    ]
    trained = json.loads(json.dumps({**get_config().to_dict(), "dataset": "voc", "steps": 7}))
    config = override_config(trained, arguments, TEST_FIELDS)
    changed = {"test_box_regression": False, "min_size": 480, "max_size": 500, "nms_iou": 1.0, "scales": (100, 200)}
    assert {**trained, **changed, "voc_dir": "x=y"} == {**config, "learning_rate_drops": [1700], **{
        name: [] for name in ("class_names", "fc_ranks", "freeze", "profile_steps", "rate_multipliers", "scale_jitter")
    }}  # fmt: skip
    with pytest.raises(
        InputError,
        match=r"--config\.steps: can't be changed after training; evaluation takes buckets, candidates_per_class, ",
    ):
        override_config(trained, ["--config.steps=3"], TEST_FIELDS)
    for argument, text in (("--config.nms_iou=x", "nms_iou=x"), ("--imges=3", "unknown argument '--imges'")):
        with pytest.raises(InputError, match=text):
            override_config(trained, [argument], TEST_FIELDS)


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--config.class_names=cat, wild dog"], "class_names", ("cat", "wild dog")),
        (["--config.class_names", "chat,Žába"], "class_names", ("chat", "Žába")),
        (["--config.class_names=cat"], "class_names", ("cat",)),
        (["--config.class_names=('a,b', 'c')"], "class_names", ("a,b", "c")),
        (["--config.freeze=backbone,layer[12]", "--config.seed=3"], "freeze", ("backbone", "layer[12]")),
        (["--config.rate_multipliers=fc*=0.1"], "rate_multipliers", ("fc*=0.1",)),
        (["--config.learning_rate_drops=10,20"], "learning_rate_drops", (10, 20)),
        (["--config.learning_rate_drops=()"], "learning_rate_drops", ()),
        (["--config.data_dir=a,b"], "data_dir", "a,b"),
    ],
)
def test_words_between_commas_are_a_list(arguments, field, value):
    assert load_config(None, arguments)[field] == value


def test_a_list_of_another_type_is_refused():
    with pytest.raises(InputError, match="learning_rate_drops"):
        load_config(None, ["--config.learning_rate_drops=a,b"])


INF, NAN = float("inf"), float("nan")
POSITIVE, FRACTION = ([1], [0, -1]), ([0, 1], [-0.01, 1.01])
NOT_NEGATIVE = ([0], [-1])
BOUNDS = {  # by field, values that are accepted and values that are not; all other fields have their defaults
    "dataset": (["voc"], ["imagenet"]),
    "on_error": (["skip"], [""]),
    "exif": (["ignore"], ["", "stored"]),
    "class_names": ([("cat", "é")], [(1,), ("cat\x1b[2J",)]),
    "proposals": (["quality", "a.npz+b"], [""]),
    "proposal_size": NOT_NEGATIVE,
    "network": (["vgg16", "resnet50_fpn_caffe", "module:function"], ["vgg"]),
    "pool": (["", "align"], ["mean"]),
    "freeze": ([("backbone", "conv*")], [(1,), ("",)]),
    "rate_multipliers": ([("a=0.5", "b=c=0")], [(1,), ("a",), ("=1",), ("a=-1",), ("a=x",), ("a=nan",), ("a=inf",)]),
    "buckets": (["exact"], ["none"]),
    "compute_type": (["bfloat16"], ["float16"]),
    "fc_ranks": ([(0, 3)], [(1,), (1, -1), (1, 2.0), (1, 2, 3)]),
    "classifier": (["svm"], ["sigmoid"]),
    "min_size": ([1, 192], [0, 193]),
    "max_size": ([144, 10_000], [143, 10_001]),
    "scales": ([(1, 192)], [(0,), (193,), (1.5,)]),
    "scale_jitter": (
        [(), (1, 1), (0.5, 4)],
        [(1,), (0, 1), (2, 1.5), (1, 4.1), (NAN, 1), (1, NAN), ("1", 2), (1, 1, 1)],
    ),
    "images_per_batch": ([1, 128], [0, 3]),
    "rois_per_batch": ([2], [0, -2, 3]),
    "bg_iou_low": ([0, 0.49], [-0.01, 0.5]),
    "steps": ([1, 2**31 - 1], [0, 2**31]),
    "epochs": ([0.0, 1.5], [-0.5, NAN]),
    "optimizer": (["sgd", "adamw"], ["adam", ""]),
    "schedule": (["step", "cosine"], ["steps", ""]),
    "learning_rate": ([1e-9], [0, -1, INF, NAN]),
    "learning_rate_drops": ([(), (0,)], [(-1,), (1.0,), (True,)]),
    "seed": ([0, 2**32 - 1], [-1, 2**32]),
    "candidates_per_class": ([1, 512], [0, 513]),
    "profile_steps": ([(1, 1), (2, 9)], [(1,), (2, 1), (0, 1), (1, 2, 3)]),
    **dict.fromkeys(("keep_best", "stop_after"), ([0], [-1, 1])),  # eval_every is 0
    **dict.fromkeys(("train_images", "val_images", "max_proposals", "accumulate", "reference_images"), POSITIVE),
    **dict.fromkeys(("log_every", "checkpoint_every", "keep_checkpoints"), POSITIVE),
    **dict.fromkeys(("workers", "data_workers", "box_loss_weight", "weight_decay", "warmup_steps"), NOT_NEGATIVE),
    **dict.fromkeys(("eval_every", "eval_images", "pictures"), NOT_NEGATIVE),
    **dict.fromkeys(("fg_fraction", "fg_iou", "momentum", "nms_iou", "picture_threshold"), FRACTION),
    **dict.fromkeys(("color_jitter", "vote_iou"), FRACTION),
    "bg_iou_high": ([0.01, 1], [1.01]),
}


def test_the_bounds_of_every_field():
    assert set(BOUNDS) == {name for name, field in FIELDS.items() if field.check}
    for name, (accepted, refused) in BOUNDS.items():
        for value in accepted:
            check_config({**get_config().to_dict(), name: value})
        for value in refused:
            with pytest.raises(InputError, match=r"^--config\.\w+ must be "):
                check_config({**get_config().to_dict(), name: value})
    check_config({**get_config().to_dict(), "keep_best": 1, "stop_after": 2, "eval_every": 5})


def test_what_may_change_after_training_and_what_on_resuming():
    """Nothing that makes other parameters or needs other ones."""
    data = {
        "voc_dir",
        "year",
        "data_dir",
        "val_split",
        "val_images",
        "on_error",
        "exif",
        "proposals",
        "proposal_size",
        "max_proposals",
    }
    sizes = {"min_size", "max_size", "scales", "buckets", "compute_type"}
    boxes = {"nms_iou", "test_box_regression", "candidates_per_class", "vote_iou"}
    assert data | sizes | boxes | {"proposal_cache", "workers"} == TEST_FIELDS
    logs = {
        "log_every",
        "profile_steps",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_best",
        "eval_every",
        "stop_after",
        "eval_images",
    }
    pictures = {"pictures", "picture_threshold"}
    assert logs | pictures | {"data_dir", "voc_dir", "proposal_cache", "workers", "data_workers"} == HOUSEKEEPING


def test_every_check_lets_its_default_pass_and_states_what_it_expects():
    check_config(get_config().to_dict())
    for name, field in FIELDS.items():
        if field.check:
            assert field.check.expected.format_map(get_config().to_dict()), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not a config that frcnn train wrote"),
        (b"[" * 100_000, "not a config that frcnn train wrote"),
        (b'{"network": "tiny", "class_names": [], "stepz": 1}', "fields unknown to this version: stepz"),
        (b'{"network": "tiny", "class_names": [], "nms_iou": 2}', "nms_iou must be from 0 to 1, got 2"),
        (b'{"network": "tiny", "class_names": []}', "class_names must be one name or more, got none"),
    ],
)
def test_a_text_that_is_no_config(text, message):
    with pytest.raises(InputError, match=message):
        parse_config(text)


def test_a_config_of_before_a_field_takes_its_default():
    assert parse_config(b'{"network": "tiny", "class_names": ["cat"]}')["nms_iou"] == 0.3


@pytest.mark.parametrize(
    ("former", "proposals"),
    [
        ({"proposals": "", "proposal_mode": "fast"}, "paper"),
        ({"proposals": "", "proposal_mode": "quality"}, "quality"),
        ({"proposals": "p.npz", "proposal_mode": "fast"}, "p.npz"),
        ({"proposals": "fast"}, "fast"),
        ({}, "standard"),
    ],
)
def test_the_search_of_earlier_workdirs(former, proposals):
    """Their field proposal_mode is gone; its mode "fast" is the paper's search."""
    config = parse_config(json.dumps({"network": "tiny", "class_names": ["cat"], **former}))
    assert config["proposals"] == proposals
    assert "proposal_mode" not in config
