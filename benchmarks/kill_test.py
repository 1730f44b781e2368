"""Nothing is lost when training is killed:

    python benchmarks/kill_test.py --out DIR [--kills 20] [--steps 600] [--seed 0]

trains a small network undisturbed in DIR/undisturbed, and again in DIR/killed, where it is killed by SIGKILL at random
moments and started again each time. Both must end with the same parameters, optimizer state, metrics and scores, to
the bit; times that were measured aside.
"""

import argparse
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from frcnn_jax.errors import InputError, run_main
from frcnn_jax.train import read_results
from frcnn_jax.training.checkpoint import saved_steps
from frcnn_jax.training.logs import read_metrics

FIELDS = {
    "train_images": 6, "val_images": 2, "workers": 1, "learning_rate": 0.001, "learning_rate_drops": "()",
    "log_every": 4, "checkpoint_every": 10, "eval_every": 50, "keep_best": 1, "pictures": 1,
}  # fmt: skip


def start(workdir: Path, steps: int) -> subprocess.Popen:
    fields = [f"--config.{name}={value}" for name, value in {**FIELDS, "steps": steps}.items()]
    command = [sys.executable, "-m", "frcnn_jax.train", "--workdir", str(workdir), *fields]
    with open(workdir.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def finish(process: subprocess.Popen, workdir: Path) -> None:
    if process.wait():
        raise InputError(f"training failed with {process.returncode}: see {workdir.with_suffix('.log')}")


def run_undisturbed(workdir: Path, steps: int) -> tuple[float, float]:
    """The seconds to the first logged step, and from there to the end."""
    began = time.perf_counter()
    process = start(workdir, steps)
    while process.poll() is None and not read_metrics(workdir):
        time.sleep(0.1)
    first = time.perf_counter()
    finish(process, workdir)
    return first - began, time.perf_counter() - first


def boards(workdir: Path) -> list[Path]:
    return sorted((workdir / "tensorboard").glob("*"))


def last_logged(workdir: Path) -> int:
    return max((int(row["step"]) for row in read_metrics(workdir)), default=0)


def wait_for_step(process: subprocess.Popen, workdir: Path, former: int, step: float, seconds: float) -> None:
    """Until it has logged one from `step` on itself, in an event file after `former` ones, or for `seconds`."""
    end = time.perf_counter() + seconds
    while process.poll() is None and time.perf_counter() < end:
        trains = any(b"loss" in board.read_bytes() for board in boards(workdir)[former:])
        if trains and last_logged(workdir) >= step:
            return
        time.sleep(0.05)


def run_killed(workdir: Path, steps: int, kills: int, startup: float, rng: random.Random) -> None:
    """A third of the kills comes while it starts, the others in the second after a random step."""
    for kill, step in enumerate(sorted(rng.uniform(0, 0.9 * steps) for _ in range(kills)), 1):
        former = len(boards(workdir))
        process, began = start(workdir, steps), time.perf_counter()
        if rng.random() < 1 / 3:
            wait_for_step(process, workdir, former, 0, seconds=rng.uniform(0, startup))
            seconds = 0.0
        else:
            wait_for_step(process, workdir, former, step, seconds=math.inf)
            seconds = rng.uniform(0, 1)
        try:
            process.wait(seconds)
            raise InputError(f"training ended with {process.returncode} before kill {kill}; give it more --steps")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            seconds = time.perf_counter() - began
        saving = ", while saving" if any((workdir / "checkpoints").glob("*-tmp*")) else ""
        saved = max(saved_steps(workdir), default=None)
        print(
            f"kill {kill} after {seconds:.1f} s: step {last_logged(workdir)} logged, {saved} saved{saving}", flush=True
        )
    finish(start(workdir, steps), workdir)


def compared(workdir: Path) -> Iterator[tuple[str, Any]]:
    """By name, all that must be the same."""
    step = max(saved_steps(workdir))
    for item in ("model", "optimizer"):
        tree = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / item).absolute())
        for path, array in jax.tree_util.tree_leaves_with_path(tree):
            yield f"{item}{jax.tree_util.keystr(path)}", np.asarray(array).tobytes()
    times = ("images_per_second", "data_seconds", "device_seconds", "memory_gib", "seconds_per_image")
    for row in [*read_metrics(workdir), read_results(workdir) or {}]:
        yield f"row of step {row['step']}", {name: value for name, value in row.items() if name not in times}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise InputError(f"{args.out} exists; name another folder")
    args.out.mkdir(parents=True)
    startup, training = run_undisturbed(args.out / "undisturbed", args.steps)
    print(f"undisturbed: {startup:.1f} s to the first logged step, {training:.1f} s from there", flush=True)
    run_killed(args.out / "killed", args.steps, args.kills, startup, random.Random(args.seed))
    ours, undisturbed = (list(compared(args.out / name)) for name in ("killed", "undisturbed"))
    if [name for name, _ in ours] != [name for name, _ in undisturbed]:
        raise InputError("other arrays or rows than those of the undisturbed run")
    if differ := [name for (name, one), (_, other) in zip(ours, undisturbed, strict=True) if one != other]:
        raise InputError(f"{len(differ)} of {len(ours)} differ from the undisturbed run, the first: {differ[0]}")
    arrays = sum(isinstance(value, bytes) for _, value in ours)
    print(f"{args.kills} kills: the same bits in {arrays} arrays and {len(ours) - arrays} rows")


if __name__ == "__main__":
    run_main(main)
