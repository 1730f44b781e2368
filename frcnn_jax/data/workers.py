"""Worker processes that end with the process that began them."""

import multiprocessing
import os
import signal
import threading
from typing import Any


def end_with_parent() -> None:
    """Called in a worker. It does not notice by itself that its parent was killed; Ctrl-C and a scheduler's SIGTERM,
    which come to it as well, are for the parent to act on first."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(*_: Any) -> None:
    """By itself, if the parent has not ended it before."""
    timer = threading.Timer(5, os._exit, [1])
    timer.daemon = True
    timer.start()
