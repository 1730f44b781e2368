"""The exceptions for a user's mistake and for a signal, and the edge where they become one clear line."""

import atexit
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

GO_ON_LATER = 75  # EX_TEMPFAIL of sysexits.h


class InputError(ValueError):
    """What was given can't be used. The text says what was expected, what came, and where."""


class Interrupted(KeyboardInterrupt):
    """A signal came; nothing is lost, and the same command goes on later."""


def run_main(main: Callable[[Sequence[str]], Any]) -> None:
    """Runs a command line; a user's mistake, a failing disk or a jax without devices is one line and exit code 1,
    `Interrupted` 75."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files may be no UTF-8
    try:
        main(sys.argv[1:])
        return
    except (InputError, OSError) as error:
        text, code = f"error: {error}", 1
    except KeyboardInterrupt as interrupt:
        text = f"interrupted{': ' if str(interrupt) else ''}{interrupt}"
        code = GO_ON_LATER if isinstance(interrupt, Interrupted) else 1
        atexit.register(_end_without_teardown, code)
    except Exception:
        if not (reason := _no_devices()):
            raise
        text, code = f"error: {reason}", 1
    print(text, file=sys.stderr)
    sys.exit(code)


def _end_without_teardown(code: int) -> None:
    """XLA's crashes while one of its threads still compiles."""
    gc.collect()  # workers' semaphores are given back
    sys.stdout.flush()
    os._exit(code)


def _no_devices() -> str | None:
    """Why jax can't be used on this machine; None where it can."""
    if "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:  # an assertion without text, too
        given = [
            f"{name}={os.environ[name]}" for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES") if name in os.environ
        ]
        return ": ".join(filter(None, ["jax finds no device", ", ".join(given), " ".join(str(error).split())]))
    return None
