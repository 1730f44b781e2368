"""Worker processes that end with the process that began them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Called in a worker, which does not notice by itself that its parent was killed."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
