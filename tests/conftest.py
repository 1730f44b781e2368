"""Fixtures of several test files, and the environment of the test processes and the programs that they start."""

# ruff: noqa: E402 (the environment comes before jax)
import json
import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the processes share the cores
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.update(dict.fromkeys(("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))

import jax
import numpy as np
import pytest
from hypothesis import settings

from frcnn_jax.config import get_config
from frcnn_jax.data.synthetic import CLASS_NAMES
from frcnn_jax.models.networks import get_network
from frcnn_jax.training.checkpoint import Checkpoints


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is nightly is slow: `-m 'not slow'` leaves it out, too."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference results and photographs that lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data in {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def common(tmp_path_factory, worker_id) -> Path:
    """A folder that all test processes share; a `FileLock` in it lets one of them make what is costly."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def model_and_variables():
    """The tiny network, untrained."""
    model = get_network("tiny").build(len(CLASS_NAMES))
    canvas, sizes = np.zeros((1, 64, 64, 3), np.float32), np.array([[64, 64]], np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), canvas, sizes, np.zeros((1, 1, 4), np.float32))
    # heads that say something, and statistics that matter
    noise = iter(jax.random.split(jax.random.key(1), 9))
    head = variables["params"]["head"]
    for name, scale in (("cls_score", 0.3), ("bbox_pred", 0.1)):
        head[name]["kernel"] = jax.random.normal(next(noise), head[name]["kernel"].shape) * scale
    stats = {"mean": np.full((7, 4), 0.05, np.float32), "std": np.full((7, 4), 0.2, np.float32)}
    return model, {"params": variables["params"], "box_stats": stats}


@pytest.fixture(scope="session")
def workdir(model_and_variables, tmp_path_factory):
    """A workdir of it, at step 7; not to be written to."""
    folder = tmp_path_factory.mktemp("w")
    (folder / "config.json").write_text(json.dumps({**get_config().to_dict(), "class_names": CLASS_NAMES}))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, model=jax.tree.map(jax.numpy.asarray, model_and_variables[1]), optimizer={"m": np.zeros(1)})
    return folder


# the first example compiles: no deadline. "steady" takes the same examples in every run; "thorough" takes new ones, and
# a failure prints the case and the line that repeats it
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("thorough", deadline=None, derandomize=False, max_examples=1000, print_blob=True)
settings.load_profile("steady")
