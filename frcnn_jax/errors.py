"""Exceptions for a user's mistake and for a signal, and `run_main`, which ends a command line with one line of text."""

import atexit
import gc
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h


class InputError(ValueError):
    """Unusable input. The text is one line: what was expected, what was given, and where."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; running the same command again resumes it."""


def run_main(main: Callable[[Sequence[str]], Any]) -> None:
    """Run a command line, and turn expected failures into one line on stderr and an exit status.

    It owns the process: it silences what libraries print about failures that end in such a line.

    Args:
        main: Takes the arguments. InputError, OSError or a jax without devices exit with 1, `Interrupted` with 75;
            any other exception keeps its traceback.
    """
    _silence_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does; file names may not be UTF-8
    try:
        main(sys.argv[1:])
        return
    except (InputError, OSError) as error:
        text, code = f"error: {error}", 1
    except KeyboardInterrupt as interrupt:
        text = f"interrupted{': ' if str(interrupt) else ''}{interrupt}"
        code = RESUMABLE if isinstance(interrupt, Interrupted) else 1
        atexit.register(_exit_without_teardown, code)
    except Exception:
        if not (reason := _missing_devices()):
            raise
        text, code = f"error: {reason}", 1
    print(text, file=sys.stderr)
    sys.exit(code)


def _silence_libraries() -> None:
    """Drop orbax's reports of each save, and what its threads print after a failed one, which `run_main` reports."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.excepthook, sys.unraisablehook = (partial(_report, hook) for hook in (sys.excepthook, sys.unraisablehook))


def _report(hook: Callable[..., None], *report: Any) -> None:
    """Pass an exception to a hook unless it is one that orbax and tensorstore raise in a background thread."""
    error = report[1] if len(report) > 1 else report[0].exc_value
    if not isinstance(error, RuntimeError | ValueError) or threading.current_thread() is threading.main_thread():
        hook(*report)


def _exit_without_teardown(code: int) -> None:
    """Skip XLA's teardown, which crashes if one of its threads is still compiling."""
    gc.collect()  # releases the semaphores of worker processes
    sys.stdout.flush()
    os._exit(code)


def _missing_devices() -> str | None:
    """Return why jax has no devices on this machine; None if it has."""
    if "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:  # may be an assertion without text
        names = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")
        given = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        return ": ".join(filter(None, ["jax finds no device", given, " ".join(str(error).split())]))
    return None
