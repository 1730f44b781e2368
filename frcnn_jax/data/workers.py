"""Worker processes that end with the process that started them, and leave its signals to it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of processes that inherit nothing, and end with this one."""
    return ProcessPoolExecutor(workers, _Context(), end_with_parent)


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM from processes started inside until these call `end_with_parent` (not on Windows).

    A signal to this process inside waits for the end too.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would end the hold
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Make this worker process exit when its parent does, even if the parent is killed.

    Ctrl-C and a scheduler's SIGTERM also reach the worker, but the parent should act on them first: SIGINT is ignored,
    SIGTERM ends the worker after 5 seconds.
    """

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_later)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


class _Process(SpawnProcess):
    def start(self) -> None:
        with held_signals():
            super().start()


class _Context(SpawnContext):
    Process = _Process


def _exit_later(*_: Any) -> None:
    timer = threading.Timer(5, os._exit, [1])
    timer.daemon = True
    timer.start()
