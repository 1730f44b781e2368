"""Handling of problems in a user's data.

Readers pass each problem, an InputError that names the file and the box, to `on_problem`. The default, `stop`, raises
it. If a handler returns, the reader skips that object or image and continues.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from frcnn_jax.errors import InputError

OnProblem = Callable[[InputError], None]


class CorrectedError(InputError):
    """A flaw that the reader corrected, such as a box one pixel over the border; `stop` lets it pass.

    Attributes:
        kind: What was corrected, in the plural, such as "boxes clipped".
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def stop(problem: InputError) -> None:
    """Raise the problem unless it is a `CorrectedError`: the default `on_problem`."""
    if not isinstance(problem, CorrectedError):
        raise problem


def count_corrections(problems: Iterable[Exception]) -> list[str]:
    """Return a line per kind of `CorrectedError`: how many there are, and the first."""
    found: dict[str, dict[str, None]] = {}  # texts: a problem of both splits counts once
    for problem in problems:
        if isinstance(problem, CorrectedError):
            found.setdefault(problem.kind, {})[str(problem)] = None
    return [f"{kind}: {len(texts)}; the first: {next(iter(texts))}" for kind, texts in found.items()]


@contextmanager
def problem_handler(on_error: str, what: str) -> Iterator[OnProblem]:
    """Yield an `on_problem`; at the end, report on stderr what readers skipped, and what they corrected.

    Args:
        on_error: "stop" raises the first problem, and says how to skip it; "skip" counts them.
        what: Name of the data in these lines, such as "train split".
    """
    problems: list[InputError] = []
    yield noting(problems, _stop_with_advice) if on_error == "stop" else problems.append
    for line in count_corrections(problems):
        print(f"{what}: {line}", file=sys.stderr)
    if skipped := [problem for problem in problems if not isinstance(problem, CorrectedError)]:
        print(f"{what}: skipped {len(skipped)} objects, boxes or images; the first: {skipped[0]}", file=sys.stderr)


_ADVICE = " (frcnn check-dataset lists all; --config.on_error=skip leaves them out)"


def _stop_with_advice(problem: InputError) -> None:
    if not isinstance(problem, CorrectedError):
        raise InputError(str(problem).removesuffix(_ADVICE) + _ADVICE)  # a `ReportTo` around another passes it on again


def noting(problems: list[InputError], on_problem: OnProblem) -> OnProblem:
    """Return a handler that appends to `problems` before it calls `on_problem`."""

    def handle(problem: InputError) -> None:
        problems.append(problem)
        on_problem(problem)

    return handle


@dataclass(slots=True)  # faster than @contextmanager: entered once per object
class ReportTo:
    """Context that passes an InputError to `on_problem`, prefixed with `where`; if that returns, the block ends."""

    on_problem: OnProblem
    where: object = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, problem: object, traceback: object) -> bool:
        if not isinstance(problem, InputError):
            return False
        self.on_problem(InputError(f"{self.where}: {problem}") if self.where else problem)
        return True
