"""Feed damaged and hostile files to every reader, and count what they do:

    python benchmarks/fuzz.py [--mutants 1000] [--seed 0] [--without-crafted] [--keep FOLDER] [TARGET ...]

A file may be read, or refused in one line that names it. Anything else is a fault: another exception, more than 10
seconds, more than 2 GB, the end of the process, a program started, a connection, or a file opened elsewhere. Each
file is read in a process of its own. Faults are printed, kept in FOLDER, and end in exit status 1.
"""

import argparse
import contextlib
import io
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz_layouts import LAYOUT_TARGETS
from fuzz_mutants import mutate
from fuzz_targets import FILE_TARGETS, Target, small_model

from frcnn_jax.errors import InputError

SECONDS, BYTES = 10, 2 << 30
TARGETS = {**FILE_TARGETS, **LAYOUT_TARGETS}


def cases(target: Target, mutants: int, seed: int, crafted: bool) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents: the seeds, the crafted files and mutants of the seeds."""
    seeds = target.seeds()
    yield from ((f"seed {i}", content) for i, content in enumerate(seeds))
    yield from target.crafted().items() if crafted else ()
    rng = random.Random(seed)
    for i in range(mutants):
        yield f"mutant {i}", mutate(rng.choice(seeds), rng.choice(seeds), rng)


def outcome(target: Target, content: bytes, folder: Path) -> str:
    """Read a file in a child process; return "read", "refused: LINE" or "fault: WHY"."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.close(receive)
            text = _read(target, content, folder)
            os.write(send, text.encode(errors="backslashreplace")[:60_000])
        finally:
            os._exit(0)
    os.close(send)
    received, deadline = b"", time.monotonic() + SECONDS
    while select.select([receive], [], [], max(deadline - time.monotonic(), 0))[0]:
        part = os.read(receive, 65536)
        if not part:
            break
        received += part
    else:
        os.killpg(child, signal.SIGKILL)
        received = f"fault: it takes more than {SECONDS} seconds".encode()
    os.close(receive)
    _, status, usage = os.wait4(child, 0)
    if not received:
        return f"fault: the process ended ({status})"
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if usage.ru_maxrss - own > BYTES >> 10:
        return f"fault: {usage.ru_maxrss >> 10} MB of memory"
    return received.decode()


def _read(target: Target, content: bytes, folder: Path) -> str:
    """Read a file in this process; it becomes useless for anything else."""
    warnings.simplefilter("ignore")
    path = folder / target.file
    path.write_bytes(content)
    forbidden: list[str] = []
    sys.addaudithook(lambda event, arguments: _watch(event, arguments, folder, forbidden))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of libraries in C
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            target.read(path)
        text = "read"
    except (InputError, OSError) as error:
        text = _refusal(error, folder)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "frcnn_jax/" in frame.filename] or [
            where
        ]
        text = f"fault: {type(error).__name__}: {str(error)[:200]!r} at {own[-1].filename}:{own[-1].lineno}"
    return f"fault: {forbidden[0]}" if forbidden else text


def _refusal(error: BaseException, folder: Path) -> str:
    line, cause = str(error), error.__context__
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


def _watch(event: str, arguments: tuple[Any, ...], folder: Path, forbidden: list[str]) -> None:
    if event in _STARTS:
        forbidden.append(f"{event} {arguments!r}"[:200])
    elif event == "open" and isinstance(arguments[0], str):
        writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wa+x")
        secret = arguments[0].startswith(("/etc/passwd", "/etc/other", "/dev/zero"))
        if secret or (writes and not arguments[0].startswith((str(folder), "/dev/null"))):
            forbidden.append(f"opens {arguments[0]}")


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
        for i, (case, content) in enumerate(cases(TARGETS[name], args.mutants, args.seed, not args.without_crafted)):
            folder = Path(tempfile.mkdtemp(prefix="fuzz"))
            text = outcome(TARGETS[name], content, folder)
            shutil.rmtree(folder)
            if case.startswith("seed") and text != "read":
                text = f"fault: a valid file: {text}"
            counts[text.partition(":")[0]] += 1
            if text.startswith("fault") or args.verbose:
                print(f"  {name}, {case}: {text.replace(str(folder), 'FOLDER')[:400]}", flush=True)
            if text.startswith("fault") and args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                (args.keep / f"{name}-{i}-{TARGETS[name].file}".replace(" ", "-")).write_bytes(content)
        shown = ", ".join(f"{counts[kind]} {kind}" for kind in ("read", "refused", "fault"))
        print(f"{name}: {shown}, {time.monotonic() - begin:.0f} s", flush=True)
        total += counts
    print(f"{total.total()} files: {total['read']} read, {total['refused']} refused, {total['fault']} faults")
    sys.exit(bool(total["fault"]))


if __name__ == "__main__":
    main()
