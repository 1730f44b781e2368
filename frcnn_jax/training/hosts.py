"""Several processes of one training, joined by `jax.distributed`: what they must have alike, and how they end together.
With one process all of it is nothing."""

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from frcnn_jax.errors import InputError, Interrupted

PATIENCE = 10  # seconds


def join_processes(coordinator: str | None, count: int | None, own: int | None, *, timeout: int) -> None:
    """`jax.distributed.initialize`. Where not all come within `timeout` seconds, one line and exit code 1: jax would
    abort.

    Raises:
        InputError: jax finds no cluster, or the coordinator's port is in use.
    """
    if coordinator and own == 0:  # a port in use crashes jax
        try:
            socket.create_server(("", int(coordinator.rsplit(":", 1)[1]))).close()
        except OSError as error:
            raise InputError(f"--coordinator {coordinator}: its port can't be used ({error})") from None
    where = f"at {coordinator}" if coordinator else "at the coordinator that jax found"

    def give_up() -> None:
        print(f"error: not all processes have met {where} within {timeout} s", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(coordinator, count, own, initialization_timeout=timeout + 60)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"jax can't join the processes: {error}") from None
    finally:
        timer.cancel()


@contextlib.contextmanager
def leave_together() -> Iterator[None]:
    """An exit inside waits for the other processes to leave, too, but only some seconds: jax would wait for minutes
    and then abort."""
    try:
        yield
    except BaseException as end:
        if not jax.distributed.is_initialized():
            raise
        if not isinstance(end, SystemExit):
            sys.excepthook(type(end), end, end.__traceback__)
        sys.stdout.flush()
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(PATIENCE)
        os._exit(end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 1)


def from_all(value: Any) -> np.ndarray:
    """What each of the P processes gives, a number or an array: `(P, ...)`."""
    own = np.asarray(value)
    return own[None] if jax.process_count() == 1 else np.reshape(process_allgather(own), (-1, *own.shape))


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Inside, what is wrong in one process ends all of them."""
    failure = None
    try:
        yield
    except (InputError, OSError) as error:
        failure = error
    failed = from_all(failure is not None)
    if failure:
        raise failure
    if failed.any():
        raise InputError(f"process {failed.argmax()} can't go on; it says why")


def check_alike(config: Mapping[str, Any], workdir: Path) -> None:
    """InputError, in all processes, unless all have the same config, as many devices and the same results in the
    workdir, if any: they would train apart."""
    devices = Counter(device.process_index for device in jax.devices())
    for process, count in devices.items():
        if count != devices[0]:
            raise InputError(f"process {process} has {count} devices, process 0 has {devices[0]}; all need as many")
    digests = from_all(np.frombuffer(hashlib.sha256(json.dumps(config, sort_keys=True).encode()).digest(), np.uint8))
    if (differ := (digests != digests[0]).any(axis=1)).any():
        raise InputError(f"process {differ.argmax()} was given another config than process 0")
    finished = from_all((workdir / "results.json").exists())
    if (differ := finished != finished[0]).any():
        raise InputError(_not_shared(workdir, differ))


def check_shared(workdir: Path) -> None:
    """InputError, in all processes, unless they see the same folder: process 0 leaves a file there for a moment."""
    if jax.process_count() == 1:
        return
    token = np.frombuffer(uuid.uuid4().bytes, np.uint8)
    path = workdir / f"shared-{bytes(broadcast_one_to_all(token)).hex()}"
    with all_or_none():
        if jax.process_index() == 0:
            path.touch()
    seen = from_all(path.exists())
    if jax.process_index() == 0:
        path.unlink()
    if not seen.all():
        raise InputError(_not_shared(workdir, ~seen))


def _not_shared(workdir: Path, differ: np.ndarray) -> str:
    return f"{workdir}: process {differ.argmax()} sees another folder than process 0; they have to share it"


@contextlib.contextmanager
def losses_said() -> Iterator[None]:
    """Inside, the loss of another process is an interruption."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:  # both, of XLA
        if jax.process_count() == 1 or not re.match("[A-Z_]{5,}: ", str(error)):
            raise
        what = f"another process has ended or can't be reached ({error})"
        raise Interrupted(f"{what}; the same commands go on from the last checkpoint") from None


def any_stopped(stopped: bool, step: int, every: int) -> bool:
    """Whether to stop after a step; of several processes all do, at a multiple of `every`, if one is told to."""
    if jax.process_count() == 1:
        return stopped
    return step % every == 0 and bool(from_all(stopped).any())
