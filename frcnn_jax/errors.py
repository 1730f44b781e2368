"""Exceptions for a user's mistake and for a signal, and `run_main`, which reports them in one line."""

import atexit
import gc
import io
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h


_LONGEST = 3000  # characters of a message
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # characters that terminals obey


class InputError(ValueError):
    """Invalid input. The text is one line: what was expected, what was given, and where."""

    def __init__(self, text: str):
        """Escape line ends and what terminals obey, as names in a file may hold, and cut the middle of a long text."""
        text = CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} .. {text[-_LONGEST // 2 :]}")


class Interrupted(KeyboardInterrupt):
    """Interruption by a signal; running the same command again resumes the work."""


def run_main(main: Callable[[Sequence[str]], Any]) -> None:
    """Run a command line, and report expected failures by one line on stderr and an exit status.

    InputError, OSError and a jax without devices exit with status 1, `Interrupted` with 75. Any other exception keeps
    its traceback. Messages of libraries about the same failures are silenced for the process.

    Args:
        main: The command; takes the command-line arguments.
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
    """Silence orbax's report of each save, and its threads' report of a failed one, which `run_main` prints."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.excepthook, sys.unraisablehook = (partial(_report, hook) for hook in (sys.excepthook, sys.unraisablehook))


def _report(hook: Callable[..., None], *report: Any) -> None:
    """Call an exception hook, except for errors that orbax and tensorstore raise in background threads."""
    error = report[1] if len(report) > 1 else report[0].exc_value
    if not isinstance(error, RuntimeError | ValueError) or threading.current_thread() is threading.main_thread():
        hook(*report)


def _exit_without_teardown(code: int) -> None:
    """Skip XLA's teardown, which crashes if one of its threads is still compiling."""
    gc.collect()  # releases the semaphores of worker processes
    sys.stdout.flush()
    os._exit(code)


def _missing_devices() -> str | None:
    """Return the reason why jax finds no device; None if it finds one."""
    if "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:  # may be an assertion without text
        names = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")
        given = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        return ": ".join(filter(None, ["jax finds no device", given, " ".join(str(error).split())]))
    return None
