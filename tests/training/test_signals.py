import gc
import os
import signal
import time

import pytest

from frcnn_jax.errors import Interrupted
from frcnn_jax.training.signals import defer_signals, interrupt_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_noted_and_handlers_put_back(number):
    former = signal.getsignal(number)
    with defer_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), number)
        assert stopped()
    assert signal.getsignal(number) is former


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_raise_within_those_that_are_noted(number):
    with defer_signals() as stopped:
        with pytest.raises(Interrupted, match="go on later"), interrupt_on_signals("go on later"):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stopped()


def test_a_signal_in_the_garbage_collection_is_not_lost():
    def collecting(phase, _):
        if phase == "start" and not sent:
            sent.append(phase)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # the handler runs here, where what it raises is dropped

    def collect():
        with interrupt_on_signals("go on later"):
            gc.collect()
            time.sleep(10)

    sent = []
    gc.callbacks.append(collecting)
    try:
        with pytest.raises(Interrupted, match="go on later"):
            collect()
    finally:
        gc.callbacks.remove(collecting)
    assert sent
