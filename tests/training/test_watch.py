import numpy as np
import pytest

from frcnn_jax.training.watch import Watch

NONE, ONE, TWO = (np.array([[0, 0, label]]) for label in (0, 1, 2))


def make_watch(*, objects=(0, 5, 5), epoch=120, foreground=16, fresh=True):
    return Watch(("cat", "dog"), np.array(objects), epoch=epoch, foreground=foreground, fresh=fresh)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "their images have no objects"),
        ({"objects": (0, 0, 0)}, "the train split has no objects"),
        ({"foreground": 0}, "fg_fraction of the RoIs of an image rounds to 0"),
    ],
)
def test_no_foreground_in_100_steps_is_said_once(options, reason):
    watch = make_watch(epoch=10**6, **options)
    said = [watch.batch(labels) for labels in [ONE] + [NONE] * 100 + [ONE] + [NONE] * 300]
    assert [(i, text) for i, text in enumerate(said) if text] == [(100, [f"no foreground RoI in 100 steps: {reason}"])]


def test_foreground_every_now_and_then_is_enough():
    watch = make_watch(objects=(0, 5, 0))
    assert not any(watch.batch(ONE if step % 100 == 0 else NONE) for step in range(1000))


@pytest.mark.parametrize(("epoch", "at"), [(120, 119), (3, 99)])
def test_a_class_that_is_never_drawn_is_said_after_an_epoch(epoch, at):
    watch = make_watch(epoch=epoch)
    said = [watch.batch(ONE) for _ in range(400)]
    ((found, (text,)),) = ((i, texts) for i, texts in enumerate(said) if texts)
    assert found == at
    assert text.startswith(f"class 'dog': no RoI of its 5 objects in the first {at + 1} steps: ")
    watch = make_watch(epoch=epoch, objects=(0, 5, 0))  # `train` says at the start that there are no dogs
    assert not any(watch.batch(ONE) for _ in range(400))
    watch = make_watch(epoch=epoch)
    assert not any(watch.batch(TWO if step == 7 else ONE) for step in range(400))


@pytest.mark.parametrize(
    ("losses", "advice"),
    [
        (np.full(900, 2.0), "2.000 at first and 2.000 now: change learning_rate"),
        (np.linspace(2, 3, 900), "lower learning_rate"),
        (np.linspace(2, 1.99, 900), "change learning_rate"),
        (np.concatenate([np.linspace(2, 1, 20), np.full(880, 1.0)]), ""),
        (np.linspace(2, 1, 900), ""),
    ],
)
def test_a_loss_that_does_not_fall_is_said_once(losses, advice):
    watch = make_watch()
    said = [watch.loss(value) for value in losses]
    found = [(i, texts[0]) for i, texts in enumerate(said) if texts]
    assert [i for i, _ in found] == [499] * bool(advice)
    assert all(advice in text for _, text in found)
    assert not any(make_watch(fresh=False).loss(value) for value in losses)
