"""Worker processes that end with the process that started them."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of processes that inherit nothing, and end with this one."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)


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


def _exit_later(*_: Any) -> None:
    timer = threading.Timer(5, os._exit, [1])
    timer.daemon = True
    timer.start()
