"""The one exception for a user's mistake, and the edge where it becomes one clear line."""

import sys
from collections.abc import Callable, Sequence
from typing import Any


class InputError(ValueError):
    """What was given can't be used. The text says what was expected, what came, and where."""


def run_main(main: Callable[[Sequence[str]], Any]) -> None:
    """Runs a command line; a user's mistake or a failing disk is one line and exit code 1."""
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as interrupt:
        sys.exit(f"interrupted{': ' if str(interrupt) else ''}{interrupt}")
