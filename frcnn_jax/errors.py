"""The exceptions for a user's mistake and for a signal, and the edge where they become one clear line."""

import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

GO_ON_LATER = 75  # EX_TEMPFAIL of sysexits.h


class InputError(ValueError):
    """What was given can't be used. The text says what was expected, what came, and where."""


class Interrupted(KeyboardInterrupt):
    """A signal came; nothing is lost, and the same command goes on later."""


def run_main(main: Callable[[Sequence[str]], Any]) -> None:
    """Runs a command line; a user's mistake or a failing disk is one line and exit code 1, `Interrupted` 75."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files may be no UTF-8
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{': ' if str(interrupt) else ''}{interrupt}", file=sys.stderr)
        sys.exit(GO_ON_LATER if isinstance(interrupt, Interrupted) else 1)
