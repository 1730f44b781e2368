"""Feed damaged and hostile files to every reader, and count what they do:

    python benchmarks/fuzz.py [--mutants 1000] [--seed 0] [--without-crafted] [--keep FOLDER] [TARGET ...]

A file may be read, or refused in one line that names it. Anything else is a fault: another exception, more than 10
seconds of the processor, a minute of waiting, more than 2 GB, the end of the process, a program started, a connection,
or a file opened elsewhere. A child process reads file after file, and is replaced after each fault, so that others do
not suffer from it; the file is then read again in a process of its own. Faults are printed, kept in FOLDER, and end in
exit status 1.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from fuzz_layouts import LAYOUT_TARGETS
from fuzz_mutants import mutate
from fuzz_targets import FILE_TARGETS, Target, small_model
from fuzz_workdirs import WORKDIR_TARGETS

from frcnn_jax.errors import InputError

SECONDS, WAITING, BYTES = 10, 60, 2 << 30
FILES, KEPT = 200, 500 << 20  # after which a child is replaced: files that it read, and bytes that it holds
TARGETS = {**FILE_TARGETS, **WORKDIR_TARGETS, **LAYOUT_TARGETS}


def cases(target: Target, mutants: int, seed: int, crafted: bool) -> Iterator[tuple[str, bytes | None]]:
    """Yield names and contents: the seeds, what is no file, the crafted files and mutants of the seeds."""
    seeds = target.seeds()
    yield from ((f"seed {i}", content) for i, content in enumerate(seeds))
    yield from ((name, None) for name in NO_FILES)
    yield from target.crafted().items() if crafted else ()
    rng = random.Random(seed)
    for i in range(mutants):
        yield f"mutant {i}", mutate(rng.choice(seeds), rng.choice(seeds), rng)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}


class Reader:
    """A child process that reads files of a target, in folders of their own."""

    def __init__(self, target: Target) -> None:
        self.files = 0
        self._connection, other = multiprocessing.Pipe()
        self._process = os.fork()
        if self._process == 0:
            self._connection.close()
            _serve(target, other)
        other.close()

    def read(self, path: Path) -> tuple[str, int]:
        """Return "read", "refused: LINE" or "fault: WHY", and how many bytes the process holds of what it has read."""
        self.files += 1
        self._connection.send(path)
        if not self._connection.poll(WAITING):
            return f"fault: it takes more than {WAITING} seconds", 0
        try:
            found: tuple[str, int] = self._connection.recv()
        except EOFError:
            status = self.end()
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
                return f"fault: it takes more than {SECONDS} seconds of the processor", 0
            return f"fault: the process ended ({status})", 0
        return found

    def end(self) -> int:
        """Kill the process, if it is there, and return its status."""
        if self._connection.closed:
            return 0
        self._connection.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process, signal.SIGKILL)
        return os.waitpid(self._process, 0)[1]


def outcomes(name: str, files: Iterator[tuple[str, bytes | None]]) -> Iterator[tuple[str, bytes | None, str]]:
    """Yield each case, its content and "read", "refused: LINE" or "fault: WHY"."""
    target = TARGETS[name]
    reader = None
    try:
        for case, content in files:
            reader = reader or Reader(target)
            text, kept = _try(reader, target, case, content)
            if text.startswith("fault") or kept > KEPT or reader.files == FILES:
                reader.end()
                reader = None
            if text.startswith("fault"):
                alone = outcome(target, case, content)
                text = alone if alone.startswith("fault") else f"{text} (not when it is read alone)"
            yield case, content, text
    finally:
        if reader:
            reader.end()


def outcome(target: Target, case: str, content: bytes | None) -> str:
    """Read a file in a process of its own."""
    reader = Reader(target)
    try:
        return _try(reader, target, case, content)[0]
    finally:
        reader.end()


def _try(reader: Reader, target: Target, case: str, content: bytes | None) -> tuple[str, int]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    path = folder / target.file
    if content is None:
        NO_FILES[case](path)
    else:
        path.write_bytes(content)
    text, kept = reader.read(path)
    shutil.rmtree(folder)
    if case.startswith("seed") and text != "read":
        text = f"fault: a valid file: {text}"
    return text.replace(str(folder), "FOLDER"), kept


def _serve(target: Target, connection: Any) -> NoReturn:
    """Read each file that is asked for, in the child process."""
    try:
        os.setsid()
        warnings.simplefilter("ignore")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of libraries in C
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch = Watch()
        sys.addaudithook(watch)
        _, begin = _memory()
        while True:
            path = connection.recv()
            watch.folder, watch.forbidden = str(path.parent), []
            text = _read(target, path)
            connection.send((f"fault: {watch.forbidden[0]}" if watch.forbidden else text, _memory()[1] - begin))
    finally:
        os._exit(0)


def _memory() -> tuple[int, int]:
    """Return the bytes that this process may use and those that it does use."""
    size, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
    return size * resource.getpagesize(), resident * resource.getpagesize()


def _limit(kind: int, value: int) -> None:
    """Set a limit of this process, which may be set again."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _read(target: Target, path: Path) -> str:
    _limit(resource.RLIMIT_AS, _memory()[0] + BYTES)
    _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            target.read(path)
    except (InputError, OSError) as error:
        return _refusal(error, path.parent)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = ([frame for frame in frames if "frcnn_jax/" in frame.filename] or frames)[-1]
        text = str(error)[:200].encode(errors="backslashreplace").decode()
        return f"fault: {type(error).__name__}: {text!r} at {where.filename}:{where.lineno}"
    return "read"


def _refusal(error: BaseException, folder: Path) -> str:
    line, cause = str(error).encode(errors="backslashreplace").decode(), error.__context__
    while cause:
        if isinstance(cause, MemoryError) and "parser" not in str(cause):
            return f"fault: it asks for more than 2 GB ({line})"
        cause = cause.__context__
    if str(folder) not in line:
        return f"fault: the line does not name the file: {line}"
    if "\n" in line or len(line) > 4000:
        return f"fault: not one line: {line}"
    return f"refused: {line}"


_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind")


class Watch:
    """An audit hook that notes what no reader may do."""

    def __init__(self) -> None:
        self.folder = ""
        self.forbidden: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS:
            self.forbidden.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[0], str):
            writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wa+x")
            secret = arguments[0].startswith(("/etc/passwd", "/etc/other", "/dev/zero"))
            if secret or (writes and not arguments[0].startswith((self.folder, "/dev/null"))):
                self.forbidden.append(f"opens {arguments[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all: {', '.join(TARGETS)}")
    parser.add_argument("--mutants", type=int, default=1000, help="mutants of each target; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants; default: %(default)s")
    parser.add_argument("--keep", type=Path, help="folder for the files of faults")
    parser.add_argument("--without-crafted", action="store_true", help="leave out the crafted files")
    parser.add_argument("--verbose", action="store_true", help="print every outcome")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # jax computes nothing before
    small_model()
    total: Counter[str] = Counter()
    for name in args.targets or TARGETS:
        counts: Counter[str] = Counter()
        begin = time.monotonic()
        files = cases(TARGETS[name], args.mutants, args.seed, not args.without_crafted)
        for i, (case, content, text) in enumerate(outcomes(name, files)):
            counts[text.partition(":")[0]] += 1
            if text.startswith("fault") or args.verbose:
                print(f"  {name}, {case}: {text[:400]}", flush=True)
            if text.startswith("fault") and args.keep and content is not None:
                args.keep.mkdir(parents=True, exist_ok=True)
                (args.keep / f"{name}-{i}-{TARGETS[name].file}".replace(" ", "-")).write_bytes(content)
        shown = ", ".join(f"{counts[kind]} {kind}" for kind in ("read", "refused", "fault"))
        seconds = time.monotonic() - begin
        print(f"{name}: {shown}, {counts.total() / seconds:.0f} files per second", flush=True)
        total += counts
    shown = ", ".join(f"{total[kind]} {kind}" for kind in ("read", "refused", "fault"))
    print(f"{total.total()} files, seed {args.seed}: {shown}")
    sys.exit(bool(total["fault"]))


if __name__ == "__main__":
    main()
