import os
import signal

import pytest

from frcnn_jax.errors import Interrupted
from frcnn_jax.signals import signals_raise, stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_noted_and_handlers_put_back(number):
    former = signal.getsignal(number)
    with stop_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), number)
        assert stopped()
    assert signal.getsignal(number) is former


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_raise_within_those_that_are_noted(number):
    with stop_signals() as stopped:
        with pytest.raises(Interrupted, match="go on later"), signals_raise("go on later"):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stopped()
