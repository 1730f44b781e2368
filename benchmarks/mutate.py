"""Mutation test: put one fault at a time into the numerics and the data path, and see whether a test fails.

    python benchmarks/mutate.py --out FOLDER [--count 300] [--seed 0] [--jobs 2] [--again] [FILE ...]

Of all mutants that the rules in `mutations` make of PACKAGES, or of the FILEs in them, a random sample is tested. Each
runs the tests that killed other mutants of its file, then the test files that can notice it: those that import the
mutated module or mirror its package, first the one that is named after it, then those that import one of its importers;
slow tests are those of the files that import the module itself, or else mirror its package. The first failure ends the
run. FOLDER/mutants.jsonl gets a line per mutant; a run that was interrupted goes on from there, and with --again
survivors are tested once more. Those that mutate.toml gives a reason for count as survivors without a test. A table and
the survivors end the output.

Existing tools do not fit: mutmut leaves constants and defaults outside of functions alone and forks a process that has
imported jax; cosmic-ray runs the same command for each of several thousand mutants.
"""

import ast
import contextlib
import copy
import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from bench_inputs import cpu_name
from tqdm import tqdm

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.errors import InputError, run_main

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ops", "models", "data", "proposals", "training", "evaluation")
REASONS = Path(__file__).with_suffix(".toml")
FAST, SLOW, EVERY = "not slow", "slow and not nightly", "not nightly"
TIMEOUT = 1800  # seconds per stage; a mutant that takes longer is killed
MEMORY = 16 << 30  # bytes per process; a mutant that takes more is killed

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or,
    ast.Or: ast.And, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
# Texts, types and looks are not mutated, nor is zip's check, nor arguments whose order does not matter swapped
SKIPPED_CALLS = {"print", "tqdm", "warn", "InputError", "DamagedError", "ValueError", "TypeError", "TypeVar"}
SKIPPED_CALLS |= {"grid", "legend", "set_xlim", "set_ylim"}
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list"}
SKIPPED_KEYWORDS = {"strict", "linewidth", "marker", "color", "figsize", "dpi", "fontsize", "bbox_inches"}
COMMUTATIVE = {"maximum", "minimum", "add", "multiply", "logical_and", "logical_or", "max", "min", "array_equal"}


@dataclass(frozen=True)
class Mutant:
    """A replacement in a file."""

    path: str
    line: int
    source: str  # the line's text
    rule: str
    before: str
    after: str
    span: tuple[int, int]  # in bytes

    @property
    def key(self) -> str:
        """What identifies the mutant as long as its line does not change."""
        return f"{self.path}: {self.source} [{self.rule}: {self.before} -> {self.after}]"


# Rules


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def mutations(node: ast.AST, modules: set[str]) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Yield the rule, what it replaces and by what, for each mutation of a node; `modules` are imported names."""
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in OPERATORS:
            yield "operator", node, _with(node, op=OPERATORS[type(op)]())
        case ast.Compare(ops=[op, *rest]):
            yield "comparison", node, _with(node, ops=[OPERATORS[type(op)](), *rest])
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "operator", node, operand
        case ast.Constant(value=bool(value)):
            yield "constant", node, ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "constant", node, ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", node, ast.Constant(value * 2 or 1.0)
        case ast.If(test=test) | ast.While(test=test) if not isinstance(test, ast.Compare):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)
        case ast.IfExp(body=body, orelse=orelse):
            yield "swapped branches", node, _with(node, body=orelse, orelse=body)
        case ast.Slice(upper=ast.expr() as upper) if not isinstance(upper, ast.Constant):
            yield "off by one", upper, ast.BinOp(upper, ast.Add(), ast.Constant(1))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield "dropped statement", node, ast.Pass()
        case ast.Call(func=func, args=args, keywords=keywords):
            plain = not any(isinstance(arg, ast.Starred) for arg in args)
            if isinstance(func, ast.Name) and func.id == "range" and plain:
                yield "off by one", args[-1], ast.BinOp(args[-1], ast.Sub(), ast.Constant(1))
            commutes = ast.unparse(func).rsplit(".")[-1] in COMMUTATIVE
            if len(args) > 1 and plain and not commutes and ast.unparse(args[0]) != ast.unparse(args[1]):
                yield "swapped arguments", node, _with(node, args=[args[1], args[0], *args[2:]])
            if isinstance(func, ast.Attribute) and not (isinstance(func.value, ast.Name) and func.value.id in modules):
                yield "dropped call", node, func.value
            elif len(args) == 1 and plain and not keywords:
                yield "dropped call", node, args[0]
            for keyword in keywords:
                if keyword.arg and keyword.arg not in SKIPPED_KEYWORDS:
                    yield "dropped argument", node, _with(node, keywords=[k for k in keywords if k is not keyword])


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that may be mutated."""
    if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".")[-1] in SKIPPED_CALLS:
        return
    yield node
    if not isinstance(node, ast.Raise) and not (isinstance(node, ast.keyword) and node.arg in SKIPPED_KEYWORDS):
        for name, value in ast.iter_fields(node):
            if name not in SKIPPED_FIELDS:
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from _walk(child)


def find_mutants(path: Path) -> list[Mutant]:
    """Return all mutants of a file."""
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    tree = ast.parse(content)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.asname or alias.name for node in imports for alias in node.names}
    mutants: dict[str, Mutant] = {}
    for node in _walk(tree):
        for rule, old, new in mutations(node, modules):
            where: Any = old
            begin = starts[where.lineno - 1] + where.col_offset
            end = starts[where.end_lineno - 1] + where.end_col_offset
            after = ast.unparse(ast.fix_missing_locations(new))
            if isinstance(new, ast.expr) and not isinstance(new, ast.Constant):
                after = f"({after})"
            source, before = lines[where.lineno - 1].decode().strip(), content[begin:end].decode()
            mutant = Mutant(path.relative_to(ROOT).as_posix(), where.lineno, source, rule, before, after, (begin, end))
            mutants.setdefault(mutant.key, mutant)
    return list(mutants.values())


def draw(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return a random sample that depends on no other mutant, so that it hardly changes with the code."""
    return sorted(mutants, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest())[:count]


# Tests


def _imported(path: Path) -> set[str]:
    """Return the modules of this project that a file imports, and for tests those of the names of `frcnn_jax`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0, names=aliases):
                names |= {module, *(f"{module}.{alias.name}" for alias in aliases)}
            case ast.Attribute(value=ast.Name(id="frcnn_jax"), attr=attr):
                names.add(f"frcnn_jax.{attr}")
    return names


def _public() -> dict[str, str]:
    """Return the module of each name of `frcnn_jax`, and of each name of `frcnn_jax.ops`."""
    stub = ast.parse((ROOT / "frcnn_jax/__init__.pyi").read_text())
    return {
        f"frcnn_jax.{alias.name}": f"frcnn_jax.{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def named_after(test: str, module: str) -> int:
    """Return how many dots into a module's name the part lies after which a test file is named; 0 for none."""
    parts = [part.strip("_") for part in module.split(".")]
    name = Path(test).stem.removeprefix("test_")
    return parts.index(name) if name in parts else 0


def noticing_tests() -> dict[str, list[tuple[list[str], str]]]:
    """Return by module the runs of tests that can notice a fault in it, each as files and a marker."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "frcnn_jax").rglob("*.py")
    }
    public = _public()
    imports = {name: {public.get(m, m) for m in _imported(path)} & modules.keys() for name, path in modules.items()}
    helpers = {path.stem: _imported(path) for path in (ROOT / "tests").rglob("*.py") if path.stem[:5] != "test_"}
    tests = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        found = _imported(path)
        found |= {name for helper in found & helpers.keys() for name in helpers[helper]}
        tests[path.relative_to(ROOT).as_posix()] = {public.get(name, name) for name in found}
    runs = {}
    for module in modules:
        importers = {name for name, found in imports.items() if module in found}
        direct = [test for test, found in tests.items() if module in found]
        mirrors = [test for test in tests if test.split("/")[1:-1] == module.split(".")[1:-1][:1]]
        indirect = [test for test, found in tests.items() if found & importers and test not in direct]
        near = sorted({*mirrors, *direct}, key=lambda test: ((test not in mirrors) + (test not in direct), test))
        near.sort(key=lambda test: -named_after(test, module))
        far = [test for test in indirect if test not in near]
        runs[module] = [(near, FAST), (far, FAST), (direct or near, SLOW)]
    return runs


def killers(mutant: Mutant, failures: dict[str, str | None]) -> list[str]:
    """Return the tests that killed other mutants of the file, the last ones first."""
    own = [failure or "" for key, failure in list(failures.items()) if key.startswith(f"{mutant.path}: ")]
    tests = [failure.removeprefix("FAILED ") for failure in reversed(own) if failure.startswith("FAILED ")]
    return list(dict.fromkeys(tests))[:8]


def run_tests(copy_of: Path, files: Sequence[str], marker: str, cache: Path) -> str | None:
    """Return the first failure of test files, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "--no-header", "--tb=no", "-m", marker, *files]
    environment = {
        **os.environ, "PYTHONPATH": str(copy_of), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }  # fmt: skip
    process = subprocess.Popen(
        command, cwd=copy_of, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        process.wait()
    if process.returncode in (0, 5) or "ERROR: not found" in output:  # 5: no test has this marker
        return None
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "INTERNALERROR"))]
    return failed[0].split(" - ")[0] if failed else f"status {process.returncode}"


def test_mutant(mutant: Mutant, copy_of: Path, runs: Sequence[tuple[list[str], str]], cache: Path) -> str | None:
    """Return the failure that the mutant causes, or None if it survives."""
    path = copy_of / mutant.path
    content, (begin, end) = path.read_bytes(), mutant.span
    path.write_bytes(content[:begin] + mutant.after.encode() + content[end:])
    try:
        return next(filter(None, (run_tests(copy_of, files, marker, cache) for files, marker in runs if files)), None)
    finally:
        path.write_bytes(content)


def make_copy(folder: Path) -> Path:
    """Copy the checkout's files that git does not ignore; `shared/` beside it is linked."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "repo" / name)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    return folder / "repo"


# Results


def report(mutants: Sequence[Mutant], failures: dict[str, str | None], reasons: dict[str, str]) -> str:
    """Return the table of rules and the list of survivors, with the reasons why they are harmless."""
    lines, tested = [], [mutant for mutant in mutants if mutant.key in failures]
    count, killed = (Counter(m.rule for m in tested if alive or failures[m.key]) for alive in (True, False))
    lines += [f"{rule:20}{killed[rule]:4} of {count[rule]:4} killed" for rule in sorted(count)]
    share = killed.total() / max(count.total(), 1)
    lines.append(f"{'all':20}{killed.total():4} of {count.total():4} killed, {share:.1%}; {cpu_name()}")
    for mutant in tested:
        if not failures[mutant.key]:
            reason = reasons.get(mutant.key, "NOT EXPLAINED")
            lines.append(f"{mutant.path}:{mutant.line}: {mutant.source}\n    {mutant.rule}: {mutant.before} -> "
                         f"{mutant.after}\n    {reason}")  # fmt: skip
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="files to mutate; all of the packages if none")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--count", type=int, default=300, help="number of mutants; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the sample; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; default: one per core")
    parser.add_argument("--again", action="store_true", help="test again the mutants that survived")
    args = parser.parse_args(argv)
    check_at_least(1, count=args.count, jobs=args.jobs)
    package = ROOT / "frcnn_jax"
    sources = [path for name in PACKAGES for path in sorted((package / name).rglob("*.py"))]
    chosen = [Path(file).resolve() for file in args.files] or sources
    if wrong := [path for path in chosen if path not in sources]:
        raise InputError(f"{wrong[0]}: expected a module of {', '.join(PACKAGES)}")
    mutants = draw([mutant for path in chosen for mutant in find_mutants(path)], args.count, args.seed)

    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "mutants.jsonl"
    rows = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    failures = {row["mutant"]: row["failure"] for row in rows}
    reasons = tomllib.loads(REASONS.read_text()) if REASONS.exists() else {}
    failures |= dict.fromkeys(reasons)
    again = {key for key, failure in failures.items() if not failure and key not in reasons} if args.again else set()
    waiting = [mutant for mutant in mutants if mutant.key not in failures or mutant.key in again]
    tests = noticing_tests()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))  # the fuzzer's tests set their own
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.jobs) as pool, open(log, "a") as out:
        cache = Path(scratch) / "jax"
        if (ROOT / ".pytest_cache/jax").is_dir():
            shutil.copytree(ROOT / ".pytest_cache/jax", cache)
        copies: SimpleQueue[Path] = SimpleQueue()
        for i in range(args.jobs):
            copies.put(make_copy(Path(scratch) / str(i)))

        def test(mutant: Mutant) -> dict[str, Any]:
            copy_of, began = copies.get(), time.monotonic()
            module = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            runs = [(killers(mutant, failures), EVERY), *tests[module]]
            failure = test_mutant(mutant, copy_of, runs, cache)
            copies.put(copy_of)
            return {"mutant": mutant.key, "failure": failure, "seconds": round(time.monotonic() - began, 1)}

        futures = [pool.submit(test, mutant) for mutant in waiting]
        try:
            for future in tqdm(as_completed(futures), "mutants", len(futures), unit="mutant"):
                row = future.result()
                failures[row["mutant"]] = row["failure"]
                print(json.dumps(row), file=out, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    print(report(mutants, failures, reasons))


if __name__ == "__main__":
    run_main(main)
