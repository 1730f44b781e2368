"""Test that killed trainings end bit-identical to an undisturbed one:

    python benchmarks/kill_test.py --out DIR [--kills 20] [--steps 600] [--seed 0]

It trains a small network in DIR/undisturbed, and again in DIR/killed, where it kills the process by SIGKILL at random
moments and restarts it each time. Parameters, optimizer state, metrics and scores must be bit-identical at the end;
measured times are not compared.
"""

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

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.errors import InputError, run_main
from frcnn_jax.training.checkpoint import saved_steps
from frcnn_jax.training.logs import read_metrics
from frcnn_jax.workdir import read_results

FIELDS = {
    "train_images": 6, "val_images": 2, "workers": 1, "learning_rate": 0.001, "learning_rate_drops": "()",
    "log_every": 4, "checkpoint_every": 10, "eval_every": 50, "keep_best": 1, "pictures": 1,
}  # fmt: skip
TIMES = ("images_per_second", "data_seconds", "device_seconds", "memory_gib", "seconds_per_image")  # not compared


def start(workdir: Path, steps: int) -> subprocess.Popen:
    fields = [f"--config.{name}={value}" for name, value in {**FIELDS, "steps": steps}.items()]
    command = [sys.executable, "-m", "frcnn_jax.train", "--workdir", str(workdir), *fields]
    with open(workdir.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def finish(process: subprocess.Popen, workdir: Path) -> None:
    if process.wait():
        raise InputError(f"training failed with status {process.returncode}: see {workdir.with_suffix('.log')}")


def run_undisturbed(workdir: Path, steps: int) -> tuple[float, float]:
    """Train, and return the seconds to the first logged step and from there to the end."""
    began = time.perf_counter()
    process = start(workdir, steps)
    while process.poll() is None and not read_metrics(workdir):
        time.sleep(0.1)
    first = time.perf_counter()
    finish(process, workdir)
    return first - began, time.perf_counter() - first


def event_files(workdir: Path) -> list[Path]:
    return sorted((workdir / "tensorboard").glob("*"))


def last_logged(workdir: Path) -> int:
    return max((int(row["step"]) for row in read_metrics(workdir)), default=0)


def wait_for_step(process: subprocess.Popen, workdir: Path, old_files: int, step: float, seconds: float) -> None:
    """Wait up to `seconds` until the process, whose event file follows `old_files` others, has logged `step`."""
    end = time.perf_counter() + seconds
    while process.poll() is None and time.perf_counter() < end:
        trains = any(b"loss" in file.read_bytes() for file in event_files(workdir)[old_files:])
        if trains and last_logged(workdir) >= step:
            return
        time.sleep(0.05)


def run_killed(workdir: Path, steps: int, kills: int, startup: float, rng: random.Random) -> None:
    """Train under random kills: a third during startup, the others within a second after a random step."""
    for kill, step in enumerate(sorted(rng.uniform(0, 0.9 * steps) for _ in range(kills)), 1):
        old_files = len(event_files(workdir))
        process, began = start(workdir, steps), time.perf_counter()
        if rng.random() < 1 / 3:
            wait_for_step(process, workdir, old_files, 0, seconds=rng.uniform(0, startup))
            seconds = 0.0
        else:
            wait_for_step(process, workdir, old_files, step, seconds=math.inf)
            seconds = rng.uniform(0, 1)
        try:
            process.wait(seconds)
            raise InputError(f"training ended with status {process.returncode} before kill {kill}; use more --steps")
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


def final_state(workdir: Path) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of everything that must be identical."""
    step = max(saved_steps(workdir))
    for item in ("model", "optimizer"):
        tree = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / item).absolute())
        for path, array in jax.tree_util.tree_leaves_with_path(tree):
            yield f"{item}{jax.tree_util.keystr(path)}", np.asarray(array).tobytes()
    for row in [*read_metrics(workdir), read_results(workdir) or {}]:
        yield f"row of step {row['step']}", {name: value for name, value in row.items() if name not in TIMES}


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    args = parser.parse_args(argv)
    check_at_least(0, kills=args.kills)
    if args.out.exists():
        raise InputError(f"{args.out} exists; name another folder")
    args.out.mkdir(parents=True)
    startup, training = run_undisturbed(args.out / "undisturbed", args.steps)
    print(f"undisturbed: {startup:.1f} s to the first logged step, {training:.1f} s to the end", flush=True)
    run_killed(args.out / "killed", args.steps, args.kills, startup, random.Random(args.seed))
    killed, undisturbed = (list(final_state(args.out / name)) for name in ("killed", "undisturbed"))
    if [name for name, _ in killed] != [name for name, _ in undisturbed]:
        raise InputError("the killed run has other arrays or rows than the undisturbed one")
    if differ := [name for (name, one), (_, other) in zip(killed, undisturbed, strict=True) if one != other]:
        raise InputError(f"{len(differ)} of {len(killed)} differ from the undisturbed run, the first: {differ[0]}")
    arrays = sum(isinstance(value, bytes) for _, value in killed)
    print(f"{args.kills} kills: the same bits in {arrays} arrays and {len(killed) - arrays} rows")


if __name__ == "__main__":
    run_main(main)
