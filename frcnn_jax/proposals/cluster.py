"""Selective search on a Dask cluster."""

import logging
import socket
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager
from urllib.parse import urlsplit

from frcnn_jax.errors import InputError


@contextmanager
def dask_executor(scheduler: str, *, timeout: float = 30) -> Iterator[Executor]:
    """Yield an executor for `search_images` on a Dask cluster, which reassigns the images of a worker that dies.

    Workers load the images and write the cache under the same absolute paths as here.

    Args:
        scheduler: Its address, such as "tcp://10.0.0.1:8786".
        timeout: Seconds to wait for the scheduler, and for a first worker.

    Raises:
        InputError: Distributed is not installed, the scheduler doesn't answer or is lost, it has no worker, or an
            image's workers died repeatedly.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise InputError("a Dask cluster needs the package distributed: pip install 'frcnn_jax[dask]'") from None
    try:
        address = urlsplit(scheduler)
        socket.create_connection((address.hostname, address.port), timeout).close()  # Client retries unknown hosts
        client = Client(scheduler, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{scheduler}: no Dask scheduler answers ({_first_line(error)})") from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # the lines below say it shorter
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError:
            raise InputError(f"{scheduler}: the Dask scheduler has no workers") from None
        try:
            yield client.get_executor()
        except CancelledError:
            raise InputError(f"{scheduler}: lost the Dask scheduler; run again to resume from the cache") from None
        except KilledWorker as error:
            raise InputError(f"{scheduler}: {_first_line(error)}; run again to resume from the cache") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
