"""The loop with stand-ins for the step, the batches, the clock and the checkpoints."""

import os
import signal
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from frcnn_jax.errors import InputError, Interrupted
from frcnn_jax.training.logs import read_metrics
from frcnn_jax.training.loop import Schedule, train

LAST = 10


class Run:
    """What a loop of ten steps does: step n has loss n and takes batch n - 1; waiting for a batch takes a second, for a
    step's metrics three, as it runs meanwhile, a score 100."""

    def __init__(self, tmp_path, monkeypatch):
        self.workdir, self.now, self.taken, self.scored = tmp_path, 0.0, [], []
        self.bad, self.stop_at = {}, None
        self.checkpoints = mock.Mock(scores={})
        monkeypatch.setattr("frcnn_jax.training.loop.prefetch", self.prefetch)
        monkeypatch.setattr("frcnn_jax.training.loop.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("frcnn_jax.training.loop.jax.device_get", self.wait)

    def wait(self, metrics):
        self.now += 3
        return metrics

    def prefetch(self, batches, *, start, workers):
        self.workers = workers
        for batch in batches[start:]:
            self.now += 1
            yield batch

    def step(self, state, batch, key):
        self.taken.append(batch)
        at = state.step + 1
        if at == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        params = {"w": np.float32(self.bad.get(("w", at), at))}
        next_state = SimpleNamespace(step=at, params=params, variables=at, opt_state=-at)
        return next_state, {"loss": np.float32(self.bad.get(("loss", at), at))}

    def score(self, variables):
        self.now += 100
        self.scored.append(variables)
        return variables / 100

    def __call__(self, *, start=0, scored=None, watch=None, **schedule):
        class Batches(list):
            images_per_batch = 6

        state = SimpleNamespace(step=start, params={"w": np.float32(0)}, variables=start, opt_state=-start)
        return train(
            state,
            self.step,
            Batches(range(LAST)),
            None,
            schedule=Schedule(**schedule),
            learning_rate=lambda count: 0.5 * count,
            checkpoints=self.checkpoints,
            workdir=self.workdir,
            out=self.workdir,
            score=self.score,
            scored=scored,
            data_workers=3,
            watch=watch,
        )

    @property
    def saved(self):
        assert all(
            call.kwargs == {"model": call.args[0], "optimizer": -call.args[0]}
            for call in self.checkpoints.save.call_args_list
        )
        return [call.args[0] for call in self.checkpoints.save.call_args_list]


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Run(tmp_path, monkeypatch)


def test_what_is_logged_saved_and_scored_by_hand(run):
    """A checkpoint writes the row that is due; scores come before the last step, which the caller scores."""
    assert run(log_every=2, checkpoint_every=3, eval_every=5).step == LAST
    assert run.workers == 3
    assert run.taken == list(range(LAST))
    assert run.saved == [3, 5, 6, 9, 10]
    assert run.scored == [5]
    assert run.checkpoints.scores == {5: 0.05}
    rows = read_metrics(run.workdir)
    assert [row for row in rows if "map" in row] == [{"step": 5, "map": 0.05}]
    rows = {row["step"]: row for row in rows if "map" not in row}
    assert {step: row["loss"] for step, row in rows.items()} == {2: 1.5, 3: 3, 4: 4, 5: 5, 6: 6, 8: 7.5, 9: 9, 10: 10}
    assert {step: row["learning_rate"] for step, row in rows.items()} == {s: 0.5 * (s - 1) for s in rows}


def test_rates_and_times_by_hand(run, monkeypatch):
    """Two steps of four seconds each; the time of a score and of writing a profile does not count."""
    monkeypatch.setattr("frcnn_jax.training.loop.jax.profiler.start_trace", lambda folder: None)
    monkeypatch.setattr("frcnn_jax.training.loop.jax.profiler.stop_trace", lambda: run.score(0))
    run(log_every=100, checkpoint_every=2, eval_every=4, profile=(5, 5))
    assert run.scored == [4, 0, 8]
    rows = [row for row in read_metrics(run.workdir) if "map" not in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    for row in rows:
        assert row["images_per_second"] == 2 * 6 / 8
        assert row["data_seconds"] == 1
        assert row["device_seconds"] == 3
        assert 0.1 < row["memory_gib"] < 100


def test_warnings_are_said_beside_the_output(run, monkeypatch, capsys):
    monkeypatch.setattr(run, "prefetch", lambda batches, **_: ({"labels": at} for at in batches))
    monkeypatch.setattr("frcnn_jax.training.loop.prefetch", run.prefetch)
    watch = SimpleNamespace(
        batch=lambda labels: ["no foreground"] * (labels == 3), loss=lambda loss: ["it rises"] * (loss == 5)
    )
    run(watch=watch)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if "warning" in line] == ["warning: no foreground", "warning: it rises"]


def test_a_run_goes_on_where_it_stood(run):
    """A score that is missing at its first step is made up for; scores of before are known to the checkpoints."""
    run(start=4, scored={2: 0.5, 3: None}, eval_every=4, checkpoint_every=100)
    assert run.taken == [4, 5, 6, 7, 8, 9]
    assert run.scored == [4, 8]
    assert run.checkpoints.scores == {2: 0.5, 4: 0.04, 8: 0.08}
    assert run.saved == [8, 10]


@pytest.mark.parametrize(
    ("start", "scored", "every", "expected"),
    [(4, {4: 0.5}, 4, [8]), (4, {4: None}, 4, [8]), (0, {}, 5, [5]), (10, {}, 5, []), (3, {}, 0, [])],
)
def test_no_score_twice_and_none_at_the_ends(run, start, scored, every, expected):
    run(start=start, scored=scored, eval_every=every)
    assert run.scored == expected


@pytest.mark.parametrize(
    ("bad", "value", "saved", "text"),
    [
        (("loss", 4), np.nan, [3], "at step 4; the last good checkpoint is step 3"),
        (("loss", 6), np.inf, [3], "at step 6; the last good checkpoint is step 3"),
        (("w", 3), np.nan, [], "at step 3; there is no checkpoint yet"),
    ],
)
def test_what_is_not_finite_is_not_saved(run, bad, value, saved, text):
    run.bad[bad] = value
    with pytest.raises(InputError, match=f"loss or parameters are not finite {text}"):
        run(checkpoint_every=3)
    assert run.saved == saved


@pytest.mark.parametrize(
    ("scores", "stop_after", "end"),
    [
        ([3, 2, 1, 0, 0], 0, 10),
        ([3, 2, 2, 9, 9], 2, 6),  # two without a better one
        ([3, 3, 4, 4, 4], 2, 10),  # an equal one is no better; the last step is scored too
        ([None, None, None, 1, 2], 2, 6),
        ([1, None, 2, None, 1], 2, 10),
    ],
)
def test_training_stops_without_a_better_score(run, scores, stop_after, end):
    run.score = lambda step: run.scored.append(step) or scores[step // 2 - 1]
    assert run(eval_every=2, stop_after=stop_after).step == end
    assert run.scored == list(range(2, end + bool(stop_after), 2))[: end // 2]
    assert run.saved[-1] == end


def test_a_run_that_had_stopped_takes_no_step(run):
    assert run(start=6, scored={2: 0.3, 4: 0.2, 6: None}, eval_every=2, stop_after=2).step == 6
    assert not run.taken
    assert run(start=4, scored={2: 0.3}, eval_every=2, stop_after=1).step == 4  # its score was missing
    assert run.scored == [4]


def test_without_a_score_nothing_is_scored(run):
    run.score = None
    run(start=5, eval_every=5)
    assert run.saved == [10]


@pytest.mark.parametrize("every", [0, 4])
def test_a_signal_saves_and_interrupts(run, every):
    run.stop_at = 4
    with pytest.raises(Interrupted, match=f"step 4 is saved in {run.workdir}"):
        run(eval_every=every)
    assert run.saved == [4]
    assert not run.scored


@pytest.mark.parametrize(
    ("profile", "stop_at", "first", "end"),
    [((), None, None, None), ((2, 4), None, 2, 4), ((9, 12), None, 9, 10), ((2, 4), 3, 2, 3), ((1, 1), None, 1, 1)],
)
def test_a_profile_spans_its_steps(run, monkeypatch, capsys, profile, stop_at, first, end):
    """The first of them has not been taken when the trace starts, the last has when it ends."""
    traced = []
    start, stop = (lambda folder: traced.append((folder, len(run.taken) + 1))), lambda: traced.append(len(run.taken))
    monkeypatch.setattr("frcnn_jax.training.loop.jax.profiler.start_trace", start)
    monkeypatch.setattr("frcnn_jax.training.loop.jax.profiler.stop_trace", stop)
    run.stop_at = stop_at
    if stop_at:
        with pytest.raises(Interrupted):
            run(profile=profile)
    else:
        run(profile=profile)
    assert traced == ([(str(run.workdir / "profile"), first), end] if first else [])
    assert (f"writing the profile of steps {first} to {end} to " in capsys.readouterr().out) == bool(first)
