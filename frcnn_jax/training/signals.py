"""SIGINT and SIGTERM during training: deferred to the end of a step, or raised as `Interrupted`."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from frcnn_jax.errors import Interrupted


@contextlib.contextmanager
def defer_signals() -> Iterator[Callable[[], bool]]:
    """Defer SIGINT and SIGTERM: yield a function that returns whether one has arrived."""
    received: list[int] = []
    with _on_signals(received.append):
        yield lambda: bool(received)


@contextlib.contextmanager
def interrupt_on_signals(message: str) -> Iterator[None]:
    """Raise `Interrupted(message)` on SIGINT and SIGTERM.

    If Python discards the exception, as in a callback of its garbage collector, it is raised again shortly after.
    """
    hook = sys.unraisablehook

    def interrupt(_: int) -> None:
        raise Interrupted(message)

    def raise_again(discarded: Any) -> None:
        if isinstance(discarded.exc_value, Interrupted):
            main = threading.main_thread().ident
            threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGTERM]).start()
        else:
            hook(discarded)

    sys.unraisablehook = raise_again
    try:
        with _on_signals(interrupt):
            yield
    finally:
        sys.unraisablehook = hook


@contextlib.contextmanager
def _on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    previous = {s: signal.signal(s, lambda number, _: handle(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
