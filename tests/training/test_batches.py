from collections import Counter
from dataclasses import MISSING, fields, replace
from functools import partial

import jax
import numpy as np
import pytest

from frcnn_jax.data.batches import Sizes, TestBatches, prefetch, prepare_image, prepare_test
from frcnn_jax.data.records import Dataset, Record, without_difficult
from frcnn_jax.data.voc import read_voc
from frcnn_jax.errors import InputError
from frcnn_jax.models.pixels import CAFFE_MEANS, PixelNorm
from frcnn_jax.training.batches import TrainingBatches, jitter_colors

STATS = {  # by class, then by coordinate
    "mean": np.arange(16, dtype=np.float32).reshape(4, 4) / 16,
    "std": 2.0 ** np.arange(-8, 8, dtype=np.float32).reshape(4, 4),
}


def image_of(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make_record(i, height, width, objects=1):
    boxes = np.tile(np.array([[2, 3, 20, 18]], np.float32), (objects, 1))
    labels = np.ones(objects, np.int32)
    return Record(f"{i}", height, width, boxes, labels, np.zeros(objects, bool), partial(image_of, height, width, i))


RECORDS = [make_record(i, *((30, 40), (40, 30), (30, 50))[i % 3], objects=i % 2) for i in range(7)]
PROPOSALS = {
    r.image_id: np.array([[2, 3, 19, 18], [0, 0, 9, 9], [5, 5, 29, 29]], np.float32)[: 3 * (r.image_id != "5")]
    for r in RECORDS
}


def training_batches(**options):
    options = {
        "records": RECORDS,
        "proposals": PROPOSALS,
        "box_stats": STATS,
        "sizes": [Sizes(60, 100)],
        "pixels": PixelNorm(),
        "images_per_batch": 2,
        "rois_per_image": 8,
        "steps": 40,
        **options,
    }
    return TrainingBatches(**options)


@pytest.mark.parametrize(
    ("size", "resized", "canvas"),
    [
        ((375, 500), (600, 800), (608, 800)),
        ((500, 375), (800, 600), (800, 608)),
        ((333, 500), (600, 901), (608, 1008)),
        ((500, 200), (1000, 400), (1008, 608)),
        ((400, 400), (600, 600), (608, 800)),
    ],
)
def test_sizes_by_hand(size, resized, canvas):
    sizes = Sizes(600, 1000)
    scale = sizes.scale(*size)
    assert (round(size[0] * scale), round(size[1] * scale)) == resized
    assert sizes.canvas(*size) == canvas


def test_the_limit_holds_for_the_rounded_side():
    """1167 columns at 600 / 700 are 1000.3."""
    assert Sizes(600, 1000).scale(700, 1167) == 600 / 700
    assert Sizes(600, 1000).scale(700, 1168) == 1000 / 1168
    assert Sizes(60, 60).scale(30, 40) == 60 / 40


def test_defaults_are_the_papers():
    assert Sizes() == Sizes(600, 1000)
    defaults = {field.name: field.default for field in fields(TrainingBatches) if field.default is not MISSING}
    expected = {"images_per_batch": 2, "rois_per_image": 64, "fg_fraction": 0.25, "fg_iou": 0.5, "bg_iou": (0.1, 0.5)}
    expected |= {"flip": True, "seed": 0, "process": (0, 1), "maps": None, "scale_jitter": (), "color_jitter": 0.0}
    assert defaults == expected


def test_any_image_fits_its_canvas(rng):
    for _ in range(300):
        height, width = rng.integers(1, 3000, 2)
        rows, columns = Sizes(600, 1000).canvas(height, width)
        scale = Sizes(600, 1000).scale(height, width)
        assert rows >= round(height * scale)
        assert columns >= round(width * scale)


def test_prepare_image_subtracts_bgr_means_and_pads_with_zeros():
    image = np.zeros((30, 50, 3), np.uint8)
    image[...] = (10, 20, 30)  # RGB
    batch = prepare_image(image, size=Sizes(60, 100), pixels=PixelNorm())
    assert batch["image"].shape == (64, 112, 3)
    assert list(batch["image_size"]) == [60, 100]
    np.testing.assert_allclose(
        batch["image"][:60, :100], np.broadcast_to([30, 20, 10] - CAFFE_MEANS, (60, 100, 3)), rtol=1e-5
    )
    assert not batch["image"][60:].any()
    assert not batch["image"][:, 100:].any()


def bilinear(image, fx, fy, rows, columns):
    """Sample (i + 0.5) / factor - 0.5, clamped at the border, along both axes."""
    axes = []
    for count, factor, side in ((rows, fy, len(image)), (columns, fx, len(image[0]))):
        at = np.clip((np.arange(count) + 0.5) / factor - 0.5, 0, side - 1)
        axes.append(np.maximum(1 - np.abs(at[:, None] - np.arange(side)), 0))
    return np.einsum("rh,cw,hwk->rck", *axes, image, optimize=True)


@pytest.mark.parametrize(
    ("size", "scale", "resized"),
    [
        ((33, 50), 60 / 33, (60, 91)),  # 90.9 columns: samples are 33 / 60 pixels apart, not 50 / 91
        ((50, 33), 60 / 33, (91, 60)),
        ((180, 97), 100 / 180, (100, 54)),
        ((40, 43), 1.5, (60, 64)),  # half to even
        ((40, 45), 1.5, (60, 68)),
        ((1, 5000), 1 / 50, (1, 100)),
        ((5000, 1), 1 / 50, (100, 1)),
    ],
)
def test_resizing_is_bilinear_by_the_factor(size, scale, resized):
    image = image_of(*size, 0)
    batch = prepare_image(image, size=Sizes(60, 100), pixels=PixelNorm())
    assert batch["scale"] == np.float32(scale)
    assert batch["original_size"].tolist() == list(size)
    assert batch["image_size"].tolist() == list(resized)
    fy, fx = (max(scale, 1 / side) for side in size)
    expected = bilinear(image[..., ::-1] - CAFFE_MEANS, fx, fy, *resized)
    np.testing.assert_allclose(batch["image"][: resized[0], : resized[1]], expected, atol=0.01)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3), (2, 4, 1)])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_box_stats_of_another_shape(name, shape):
    """Of one class and background."""
    with pytest.raises(InputError, match=r"box_stats must be \(K \+ 1, 4\) with K of at least 1"):
        training_batches(box_stats={**STATS, name: np.ones(shape)})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"images_per_batch": 0}, "images_per_batch must be at least 1, got 0"),
        ({"rois_per_image": -1}, "rois_per_image must be at least 1, got -1"),
        ({"sizes": ()}, "sizes must not be empty"),
        ({"scale_jitter": (0.5,)}, r"scale_jitter must be \(low, high\)"),
        ({"scale_jitter": (2, 1)}, r"scale_jitter must be \(low, high\)"),
        ({"color_jitter": 1.5}, "color_jitter must be from 0 to 1, got 1.5"),
        ({"maps": np.zeros, "scale_jitter": (0.5, 2)}, "maps are of images as they are"),
        ({"maps": np.zeros, "color_jitter": 0.1}, "maps are of images as they are"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(InputError, match=text):
        training_batches(**options)


def test_every_image_comes_once_each_way_in_an_epoch():
    batches = training_batches()
    seen = Counter(entry for batch in batches.plan(0) for entry in batch)
    assert set(seen) == {(i, flip, Sizes(60, 100)) for i in range(7) for flip in (False, True)}
    canvases = [{size.canvas(RECORDS[i].height, RECORDS[i].width) for i, _, size in batch} for batch in batches.plan(0)]
    assert all(len(of_batch) == 1 for of_batch in canvases)
    assert canvases != sorted(canvases, key=min)  # in random order, as are the images of a canvas:
    first, second = ({frozenset(batch) for batch in batches.plan(epoch)} for epoch in (0, 1))
    assert first != second
    assert batches.plan(0) == training_batches().plan(0)
    assert batches.plan(0) != batches.plan(1)
    assert batches.plan(0) != training_batches(seed=1).plan(0)


def test_an_odd_number_of_images_fills_its_last_batch():
    plan = training_batches(flip=False).plan(0)
    assert all(len(batch) == len({entry.record for entry in batch}) == 2 for batch in plan)
    assert {entry.record for batch in plan for entry in batch} == set(range(7))
    assert not any(entry.mirrored for batch in plan for entry in batch)


def test_of_several_sizes_one_is_drawn_an_image_and_epoch():
    sizes = [Sizes(30, 100), Sizes(60, 100), Sizes(90, 100)]
    batches = training_batches(sizes=sizes)
    first, other = (
        {entry for batch in training_batches(sizes=sizes, seed=seed).plan(0) for entry in batch} for seed in (0, 1)
    )
    assert first != other
    drawn: dict = {}
    for epoch in range(20):
        for batch in batches.plan(epoch):
            assert len({entry.size.canvas(*RECORDS[entry.record].load().shape[:2]) for entry in batch}) == 1
            for entry in batch:
                drawn.setdefault((entry.record, entry.mirrored), set()).add(entry.size)
    assert all(seen == set(sizes) for seen in drawn.values())
    (entry, _) = batches.plan(0)[0]
    assert batches[0]["scale"][0] == np.float32(entry.size.scale(*RECORDS[entry.record].load().shape[:2]))


def test_jittered_sizes_are_spread_over_their_range_on_few_canvases():
    """Factors of 60 pixels for images of 30 x 40 and 30 x 50; canvases of 60 and of 75 pixels."""
    jittered = training_batches(scale_jitter=(0.75, 1.25))
    entries = [entry for epoch in range(30) for batch in jittered.plan(epoch) for entry in batch]
    shorter = np.array([entry.size.shorter for entry in entries])
    assert (shorter.min(), shorter.max()) == (45, 75)
    assert np.histogram(shorter, bins=3, range=(45, 75))[0].min() > len(shorter) / 4
    canvases = {entry.size.canvas(RECORDS[entry.record].height, RECORDS[entry.record].width) for entry in entries}
    own, largest = ({(s, m), (m, s), (s, n), (n, s)} for s, m, n in ((64, 80, 112), (80, 112, 128)))
    assert canvases <= own | largest
    assert {(64, 80), (80, 64), (64, 112), (80, 112)} <= canvases
    assert entries[:20] != [
        entry for batch in training_batches(scale_jitter=(0.75, 1.25), seed=1).plan(0) for entry in batch
    ]
    for batch in jittered.plan(0):
        assert len({entry.size.canvas(*RECORDS[entry.record].load().shape[:2]) for entry in batch}) == 1


def test_boxes_follow_a_jittered_size():
    batches = training_batches(scale_jitter=(0.5, 1.5), images_per_batch=1, flip=False, bg_iou=(0.0, 0.5))
    for step, (entry,) in enumerate(batches.plan(0)):
        record, batch = RECORDS[entry.record], {name: value[0] for name, value in batches[step].items()}
        scale = entry.size.scale(record.height, record.width)
        assert 0.98 < scale < 3.03
        assert batch["scale"] == np.float32(scale)
        canvas = prepare_image(record.load(), size=entry.size, pixels=PixelNorm())
        np.testing.assert_array_equal(batch["image"], canvas["image"])
        known = np.concatenate([PROPOSALS[record.image_id], record.boxes]) * scale
        for roi in batch["rois"][batch["roi_mask"]]:
            assert np.abs(known - roi).max(axis=1).min() < 1e-3


def test_colours_are_jittered_by_seed_and_image_alone():
    options = {"images_per_batch": 1, "flip": False, "records": RECORDS[:1]}
    plain, jittered, other = (
        [batch["image"] for batch in training_batches(**options, **more, steps=3)]
        for more in ({}, {"color_jitter": 0.5}, {"color_jitter": 0.5, "seed": 1})
    )
    assert len({image.tobytes() for image in plain}) == 1
    assert len({image.tobytes() for image in (*plain, *jittered, *other)}) == 7
    np.testing.assert_array_equal(training_batches(**options, color_jitter=0.5)[2]["image"], jittered[2])


def test_jittered_colours_by_hand():
    """Brightness times 1.5; then contrast around the mean grey of 60 by 0.5; then saturation around the grey by 0.5."""

    class Drawn:
        def uniform(self, low, high, count):
            assert (low, high, count) == (0.5, 1.5, 3)
            return np.array([1.5, 0.5, 0.5])

    image = np.full((2, 4, 3), (20, 40, 80), np.uint8)
    bright = np.array([30, 60, 120])
    grey = round(bright @ [0.299, 0.587, 0.114])
    contrast = (bright + grey) / 2
    expected = (contrast + contrast @ [0.299, 0.587, 0.114]) / 2
    np.testing.assert_allclose(jitter_colors(image, 0.5, Drawn())[1, 2], expected, atol=1.5)
    np.testing.assert_array_equal(jitter_colors(image, 0.0, np.random.default_rng(0)), image)


def test_batches_have_static_shapes_and_follow_the_step():
    batches = training_batches()
    again = training_batches()
    for step in (0, 3, 39):
        batch = batches[step]
        for name, value in again[step].items():
            np.testing.assert_array_equal(value, batch[name])
        assert batch["rois"].shape == (2, 8, 4)
        assert batch["roi_mask"].shape == batch["labels"].shape == (2, 8)
        assert list(batch["index"]) == [2 * step, 2 * step + 1]
        assert not batch["labels"][~batch["roi_mask"]].any()
        assert not batch["box_targets"][batch["labels"] == 0].any()


def test_each_epoch_and_seed_draws_other_rois():
    """One image of 200 proposals, again and again."""
    rng = np.random.default_rng(0)
    proposals = {"1": np.concatenate([rng.integers(0, 15, (200, 2)), rng.integers(15, 30, (200, 2))], axis=1)}
    options = {"records": [RECORDS[1]], "proposals": proposals, "flip": False, "images_per_batch": 1}
    drawn = [
        batches[step]
        for batches in (training_batches(**options, bg_iou=(0, 0.5), seed=seed) for seed in (0, 1))
        for step in range(4)
    ]
    assert all(batch["roi_mask"].all() for batch in drawn)
    assert len({str(sorted(batch["rois"][0].tolist())) for batch in drawn}) == 8


def test_the_shares_of_processes_make_the_batch():
    whole = training_batches(images_per_batch=6)[3]
    shares = [training_batches(images_per_batch=6, process=(i, 3))[3] for i in range(3)]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *parts: np.concatenate(parts), *shares), whole)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_image_its_boxes_and_targets_by_hand(mirrored):
    """40 columns, at twice the size: x1 and x2 of a mirrored box are 39 - x2 and 39 - x1. The proposal is the object
    moved by 2 of its 18 pixels to the right: its dx is -1/9, or 1/9 mirrored."""
    proposals = {"0": np.array([[4, 3, 22, 18], [30, 0, 39, 9]], np.float32)}
    pixels, image = PixelNorm("RGB", (1, 2, 3), (4, 5, 6)), image_of(30, 40, 0)
    options = {"records": [make_record(0, 30, 40)], "proposals": proposals, "images_per_batch": 1, "pixels": pixels}
    options |= {"rois_per_image": 4, "fg_fraction": 0.5, "bg_iou": (0.0, 0.5)}
    batches = training_batches(**options)
    step = next(i for i, (entry,) in enumerate(batches.plan(0)) if entry.mirrored == mirrored)
    batch = {name: value[0] for name, value in batches[step].items()}
    expected = prepare_image(image[:, ::-1] if mirrored else image, size=Sizes(60, 100), pixels=pixels)
    np.testing.assert_array_equal(batch["image"], expected["image"])

    assert batch["roi_mask"].tolist() == [True, True, True, False]
    order = np.argsort(batch["rois"][:3, 0])[:: -1 if mirrored else 1]  # the object, the proposal, background
    rois, labels, targets = (batch[name][order] for name in ("rois", "labels", "box_targets"))
    if mirrored:
        np.testing.assert_array_equal(rois, [[38, 6, 74, 36], [34, 6, 70, 36], [0, 0, 18, 18]])
    else:
        np.testing.assert_array_equal(rois, [[4, 6, 40, 36], [8, 6, 44, 36], [60, 0, 78, 18]])
    assert labels.tolist() == [1, 1, 0]
    mean, std = np.array([4, 5, 6, 7]) / 16, np.array([1, 2, 4, 8]) / 16  # of class 1
    dx = np.array([0, 1 / 9 if mirrored else -1 / 9])
    raw = np.stack([dx, 0 * dx, 0 * dx, 0 * dx], axis=1)
    np.testing.assert_allclose(targets, [*(raw - mean) / std, np.zeros(4)], atol=1e-6)
    assert training_batches(**options, fg_iou=0.85)[step]["roi_mask"].sum() == 2  # the proposal's IoU is 272 / 336


@pytest.mark.parametrize("low", [0.0, 0.1])
def test_an_image_without_objects_and_one_without_proposals_train(low):
    batches = training_batches(bg_iou=(low, 0.5))
    masks = {}
    for step in range(len(batches.plan(0))):
        for image, entry in enumerate(batches.plan(0)[step]):
            masks[entry.record] = batches[step]["roi_mask"][image].sum()
    assert masks[0] == 3  # no object: three background RoIs
    assert masks[5] == 1  # no proposal: its object


def test_an_image_without_objects_or_proposals_has_no_rois():
    """Nor has one whose objects were all dropped as difficult."""
    easy = without_difficult(Dataset(("cat",), [replace(RECORDS[1], difficult=np.ones(1, bool))])).records
    for records in ([RECORDS[0]], easy):
        (record,) = records
        batches = training_batches(records=records, proposals={record.image_id: np.zeros((0, 4), np.float32)})
        assert not batches[0]["roi_mask"].any()
        assert not batches[0]["labels"].any()
        assert training_batches(records=records)[0]["roi_mask"].sum() == 6  # of both images of the batch


@pytest.mark.parametrize("stride", [1, 3])
def test_prefetch_keeps_the_order_and_starts_anywhere(stride):
    indices = [int(batch["index"][0]) for batch in prefetch(training_batches(), start=33, stride=stride)]
    assert indices == [2 * step for step in range(33, 40, stride)]


@pytest.mark.slow
def test_worker_processes_make_the_same_batches():
    batches = training_batches(steps=9, scale_jitter=(0.5, 1.5), color_jitter=0.5)
    expected = list(prefetch(batches, start=2))
    for workers in (1, 2, 3):
        found = list(prefetch(batches, start=2, workers=workers))
        assert len(found) == 7
        for a, b in zip(found, expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)


class Broken:
    def __len__(self):
        return 2

    def __getitem__(self, i):
        raise InputError("a.jpg: can't be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_prefetch_hands_on_errors(workers):
    with pytest.raises(InputError, match=r"a\.jpg: can't be read"):
        list(prefetch(Broken(), workers=workers))


@pytest.mark.parametrize(("count", "padded"), [(0, 512), (1, 512), (512, 512), (513, 1024)])
def test_test_rois_are_padded_and_none_is_cut(count, padded):
    rois = np.array([[i % 40, i // 40, 40, 30] for i in range(count)], np.float32).reshape(-1, 4)
    batch = prepare_test(image_of(60, 80, 0), rois, sizes=[Sizes(60, 80)], pixels=PixelNorm(), spatial_scale=1.0)
    assert batch["rois"].shape == (1, padded, 4)
    assert batch["roi_mask"].sum() == count


def test_test_batches_come_in_order():
    options = {"sizes": [Sizes(60, 100), Sizes(90, 100)], "pixels": PixelNorm("RGB"), "spatial_scale": 1 / 64}
    batches = list(prefetch(TestBatches(RECORDS, PROPOSALS, **options)))
    assert [tuple(b["original_size"][0]) for b in batches] == [(r.height, r.width) for r in RECORDS]
    for batch, record in zip(batches, RECORDS, strict=True):
        expected = prepare_test(record.load(), PROPOSALS[record.image_id], **options)
        jax.tree.map(np.testing.assert_array_equal, batch, expected)


def test_voc_needs_few_shapes_and_little_padding(shared):
    """At most 6 step programs in an epoch; at most 15 % of the canvases is padding."""
    records = read_voc(shared / "voc" / "VOCdevkit", split="train").records
    proposals = dict.fromkeys((record.image_id for record in records), np.zeros((0, 4)))
    stats = {"mean": np.zeros((21, 4)), "std": np.ones((21, 4))}
    batches = TrainingBatches(records, proposals, stats, [Sizes(600, 1000)], PixelNorm(), steps=1)
    shapes, pixels, canvas_pixels = set(), 0, 0
    for batch in batches.plan(0):
        for entry in batch:
            height, width = records[entry.record].height, records[entry.record].width
            canvas = entry.size.canvas(height, width)
            shapes.add(canvas)
            pixels += height * width * entry.size.scale(height, width) ** 2
            canvas_pixels += canvas[0] * canvas[1]
    assert len(shapes) <= 6
    assert 1 - pixels / canvas_pixels < 0.15


def test_a_pyramid_by_hand():
    """At factors 4 and 1 a RoI of 224 x 224 pixels stays, one of 50 x 50 is enlarged; areas of 1 and 16 times 100 x 100
    lie 40,176 below and 109,824 above 224 x 224."""
    rois = np.array([[0, 0, 223, 223], [10, 20, 59, 69], [10, 20, 60, 70], [0, 0, 99, 99], [10.2, 20, 59, 69]])
    rois = np.concatenate([rois, 4 * rois[1:2]])  # at factor 1 in the cells of the second at factor 4
    sizes = [Sizes(960, 1280), Sizes(240, 320)]
    image, pixels = image_of(240, 320, 0), PixelNorm("RGB")
    batch = prepare_test(image, rois.astype(np.float32), sizes=sizes, pixels=pixels, spatial_scale=1 / 16)
    assert [image.shape[1:3] for image in batch["image"]] == [(960, 1280), (240, 320)]
    np.testing.assert_array_equal(batch["image_size"], [[[960, 1280]], [[240, 320]]])
    for at_size, size in zip(batch["image"], sizes, strict=True):
        np.testing.assert_array_equal(at_size[0], prepare_image(image, size=size, pixels=pixels)["image"])
    assert batch["roi_mask"].sum() == 5  # the last but one falls in the cells of the second
    rois = rois[[0, 1, 2, 3, 5]]
    np.testing.assert_array_equal(batch["level"][0, :5], [1, 0, 0, 1, 1])
    np.testing.assert_array_equal(batch["scale"][0, :5], [1, 4, 4, 1, 1])
    np.testing.assert_array_equal(batch["rois"][0, :5], rois * [[1], [4], [4], [1], [1]])


def test_iterating_ends_with_the_run():
    batches = training_batches()
    assert len(list(batches)) == len(batches)
    for step in (-1, len(batches)):
        with pytest.raises(IndexError):
            batches[step]


def test_epochs_of_several_sizes_may_differ_in_length():
    """Three images at two sizes fill three to four batches of two, by the draws of the epoch."""
    records = [
        Record(str(i), 60, 80, np.array([[1, 2, 30, 40]], np.float32), np.array([1]), np.zeros(1, bool), lambda: None)
        for i in range(3)
    ]
    boxes, stats = {record.image_id: record.boxes for record in records}, np.ones((2, 4), np.float32)
    sizes, maps = (Sizes(60, 80), Sizes(30, 80)), lambda record, mirrored, size: np.float16(size.shorter)
    batches = TrainingBatches(
        records, boxes, {"mean": stats, "std": stats}, sizes, PixelNorm(), 100, flip=True, maps=maps
    )
    assert len({len(batches.plan(epoch)) for epoch in range(20)}) > 1
    assert all(len(set(batches[step]["image"].tolist())) == 1 for step in range(100))
