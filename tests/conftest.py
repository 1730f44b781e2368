"""Shared data for tests that compare with independent programs; where it is absent they skip and say so."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import settings

from frcnn_jax.config import get_config
from frcnn_jax.data.synthetic import CLASS_NAMES
from frcnn_jax.models.networks import get_network
from frcnn_jax.training.checkpoint import Checkpoints

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference results and photographs that lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data in {SHARED.name}/ beside the checkout")
    return SHARED


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


# the first example compiles: no deadline. The same examples in every run.
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("steady")
