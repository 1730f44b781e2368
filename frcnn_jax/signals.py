"""SIGINT and SIGTERM while something runs that must not be cut short just anywhere."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from frcnn_jax.errors import Interrupted


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM only set what is yielded, so that the loop ends between two steps."""
    came: list[int] = []
    with _on_signals(came.append):
        yield lambda: bool(came)


def agreed(stopped: Callable[[], bool], step: int, every: int) -> bool:
    """Whether to stop after a step; of several processes all do, at a multiple of `every`, if one is told to."""
    if jax.process_count() == 1:
        return stopped()
    return step % every == 0 and bool(process_allgather(np.array([stopped()])).any())


@contextlib.contextmanager
def signals_raise(text: str) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Interrupted` with this text."""

    def interrupt(_: int) -> None:
        raise Interrupted(text)

    with _on_signals(interrupt):
        yield


@contextlib.contextmanager
def _on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    former = {s: signal.signal(s, lambda number, _: handle(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
