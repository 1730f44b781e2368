"""SIGINT and SIGTERM while something runs that must not be cut short just anywhere."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from frcnn_jax.errors import Interrupted


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM only set what is yielded, so that the loop ends between two steps."""
    came: list[int] = []
    with _on_signals(came.append):
        yield lambda: bool(came)


@contextlib.contextmanager
def signals_raise(text: str) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Interrupted` with this text; a moment later where Python would drop it, as in a
    callback of its garbage collection."""
    hook = sys.unraisablehook

    def interrupt(_: int) -> None:
        raise Interrupted(text)

    def again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Interrupted):
            main = threading.main_thread().ident
            threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGTERM]).start()
        else:
            hook(dropped)

    sys.unraisablehook = again
    try:
        with _on_signals(interrupt):
            yield
    finally:
        sys.unraisablehook = hook


@contextlib.contextmanager
def _on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    former = {s: signal.signal(s, lambda number, _: handle(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
