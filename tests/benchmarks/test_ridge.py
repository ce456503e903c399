"""The ridge benchmark on small problems: engines agree, and its table follows from its file."""

import json

import numpy as np
import pytest

from benchmarks import ridge, tables
from tests import compiling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    settings = ridge.Settings(
        shape=(2, 300, 16),
        square=(1, 200, 24),
        wide=(1, 30, 40),
        engine=("jaxprobe", "jaxprobe float64", "floor", "scikit-learn float64", "numpy float64"),
        rounds=1,
        growth=False,
        out=tmp_path_factory.mktemp("results") / "ridge.json",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", compiling.FLAGS)  # one device, as on the machines that are measured
        found = ridge.main(settings)
    assert json.loads(settings.out.read_text()) == json.loads(json.dumps(found))
    return found


def test_every_engine_chooses_the_same_penalties(result):
    assert [(case["layers"], case["rows"], case["dimensions"]) for case in result["cases"]] == [
        (2, 300, 16),
        (1, 200, 24),
        (1, 30, 40),
    ]
    for case in result["cases"]:
        for name in ("jaxprobe", "scikit-learn float64", "numpy float64"):
            assert case["engines"][name]["same_alpha"] == 1, name
        assert case["engines"]["numpy float64"]["error_difference"] < 1e-8
        assert case["engines"]["jaxprobe"]["error_difference"] < 1e-4


def test_its_table_follows_from_its_file(result):
    lines = tables.ridge_table(result).splitlines()
    assert lines[0] == "| choosing and fitting | 2 × 300 × 16 | 1 × 200 × 24 | 1 × 30 × 40 |"
    assert len([line for line in lines if line.startswith("| ")]) == 6  # himalaya and others did not run
    assert "the same penalty" not in lines[-1] and "for 100% of the states" in lines[-1]


def test_scikit_learn_on_tensors_chooses_the_same_penalties(tmp_path):
    """The engine for GPUs, whose tensors are on this machine's CPU where there is none."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 300, 16)).astype(np.float32)
    y = x[0, :, :2] + rng.normal(size=(300, 2))
    folder = tmp_path / "problem"
    ridge.write_problem(folder, x, (y - y.mean(0)) / y.std(0))
    answers = {}
    for name in ("scikit-learn array API", "scikit-learn"):
        engine = ridge.Engine(name, folder)
        answers[name] = engine.fit()["alpha"]
        engine.close()
    assert answers["scikit-learn array API"] == pytest.approx(answers["scikit-learn"], rel=1e-6)
