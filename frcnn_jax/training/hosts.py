"""Training in several processes, joined by `jax.distributed`: consistency checks, and an end for all of them at once.

With a single process these functions do nothing.
"""

import contextlib
import hashlib
import os
import re
import socket
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.typing import ArrayLike

from frcnn_jax.errors import InputError, Interrupted

EXIT_TIMEOUT = 10  # seconds to wait for the other processes


def join_processes(coordinator: str | None, count: int | None, index: int | None, *, timeout: int) -> None:
    """Call `jax.distributed.initialize`, but exit with one line and status 1 where jax would abort.

    Args:
        coordinator: Address and port of process 0; None for what jax finds in the cluster's environment, as in the
            next two.
        count: Number of processes.
        index: Index of this process.
        timeout: Seconds within which all processes must join.

    Raises:
        InputError: Jax finds no cluster, or the coordinator's port is in use.
    """
    if coordinator and index == 0:  # jax crashes on a port in use
        try:
            socket.create_server(("", int(coordinator.rsplit(":", 1)[1]))).close()
        except OSError as error:
            raise InputError(f"--coordinator {coordinator}: can't use this port ({error})") from None

    def give_up() -> None:
        address = coordinator or "the coordinator that jax found"
        print(f"error: not all processes joined at {address} within {timeout} s", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=timeout + 60)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"jax can't join the processes: {error}") from None
    finally:
        timer.cancel()


@contextlib.contextmanager
def exit_together() -> Iterator[None]:
    """Give the other processes EXIT_TIMEOUT seconds to exit, too, when this one does.

    Without it jax waits for minutes and then aborts.
    """
    try:
        yield
    except BaseException as end:
        if not jax.distributed.is_initialized():
            raise
        if not isinstance(end, SystemExit):
            sys.excepthook(type(end), end, end.__traceback__)
        sys.stdout.flush()
        shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(EXIT_TIMEOUT)
        os._exit(end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 1)


def all_gather(value: ArrayLike) -> np.ndarray:
    """Stack a value of the same shape from each of the P processes: `(P, ...)`."""
    own = np.asarray(value)
    return own[None] if jax.process_count() == 1 else np.reshape(process_allgather(own), (-1, *own.shape))


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Raise InputError in every process if the body raises InputError or OSError in one of them."""
    failure = None
    try:
        yield
    except (InputError, OSError) as error:
        failure = error
    failed = all_gather(failure is not None)
    if failure:
        raise failure
    if failed.any():
        raise InputError(f"process {failed.argmax()} failed; see its output")


def check_consistent(settings: str, workdir: Path) -> None:
    """Check that all processes have the same config, number of devices and results, or lack of results.

    Args:
        settings: The config as text.
        workdir: The folder that may hold results.json.

    Raises:
        InputError: They differ; raised in every process.
    """
    devices = Counter(device.process_index for device in jax.devices())
    for process, count in devices.items():
        if count != devices[0]:
            raise InputError(
                f"process {process} has {count} devices, process 0 has {devices[0]}; expected equal numbers"
            )
    digests = all_gather(np.frombuffer(hashlib.sha256(settings.encode()).digest(), np.uint8))
    if (differs := (digests != digests[0]).any(axis=1)).any():
        raise InputError(f"the configs of process {differs.argmax()} and process 0 differ")
    finished = all_gather((workdir / "results.json").exists())
    _require_shared(workdir, finished == finished[0])


def check_shared(workdir: Path) -> None:
    """Check that all processes see the same folder, by a temporary file of process 0.

    Raises:
        InputError: They don't; raised in every process.
    """
    if jax.process_count() == 1:
        return
    token = np.frombuffer(uuid.uuid4().bytes, np.uint8)
    path = workdir / f"shared-{bytes(broadcast_one_to_all(token)).hex()}"
    with fail_together():
        if jax.process_index() == 0:
            path.touch()
    seen = all_gather(path.exists())
    if jax.process_index() == 0:
        path.unlink()
    _require_shared(workdir, seen)


def _require_shared(workdir: Path, same: np.ndarray) -> None:
    if not same.all():
        raise InputError(f"{workdir}: not shared: process {same.argmin()} and process 0 see different folders")


@contextlib.contextmanager
def interrupt_on_peer_loss() -> Iterator[None]:
    """Raise `Interrupted` if another process ends or becomes unreachable."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:  # XLA raises either
        if jax.process_count() == 1 or not re.match("[A-Z_]{5,}: ", str(error)):
            raise
        reason = f"another process ended or is unreachable ({error})"
        raise Interrupted(f"{reason}; run the same commands to resume from the last checkpoint") from None


def any_stopped(stopped: bool, step: int, every: int) -> bool:
    """Return whether to stop after a step: with several processes all stop at the next multiple of `every`."""
    if jax.process_count() == 1:
        return stopped
    return step % every == 0 and bool(all_gather(stopped).any())
