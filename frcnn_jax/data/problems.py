"""Problems in a user's data, and what happens to them.

Readers pass each problem, an InputError that names the file and the box, to `on_problem`. The default, `stop`, raises
it. If a handler returns, the reader skips that object or image and continues.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from frcnn_jax.errors import InputError

OnProblem = Callable[[InputError], None]


def stop(problem: InputError) -> None:
    """Raise the problem: the default `on_problem`."""
    raise problem


@contextmanager
def problem_handler(on_error: str, what: str) -> Iterator[OnProblem]:
    """Yield an `on_problem`, and report on stderr, in one line at the end, what it made readers skip.

    Args:
        on_error: "stop" raises the first problem; "skip" counts them.
        what: Named in that line, such as "train split".
    """
    problems: list[InputError] = []
    yield stop if on_error == "stop" else problems.append
    if problems:
        print(f"{what}: skipped {len(problems)} objects, boxes or images; the first: {problems[0]}", file=sys.stderr)


def noting(problems: list[InputError], on_problem: OnProblem) -> OnProblem:
    """Return a handler that appends to `problems` before it calls `on_problem`."""

    def handle(problem: InputError) -> None:
        problems.append(problem)
        on_problem(problem)

    return handle


@dataclass(slots=True)  # faster than @contextmanager: entered once per object
class ReportTo:
    """Block whose InputError goes to `on_problem`, prefixed with `where`; if that returns, the block ends."""

    on_problem: OnProblem
    where: object = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, problem: object, traceback: object) -> bool:
        if not isinstance(problem, InputError):
            return False
        self.on_problem(InputError(f"{self.where}: {problem}") if self.where else problem)
        return True
