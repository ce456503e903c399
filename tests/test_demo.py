"""scripts/demo as a user runs it, with fewer cities: the score table, the report, and figures that show something."""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    # The environment that the tests run in has all that the demo installs.
    environment = {**os.environ, "JAXPROBE_VENV": sys.prefix, "COLUMNS": "100"}
    environment.pop("XLA_FLAGS", None)
    result = subprocess.run(
        [ROOT / "scripts/demo", "--limit", "600", "--out", out],
        capture_output=True,
        text=True,
        env=environment,
        cwd=out.parent,
    )
    assert result.returncode == 0, result.stderr
    return out, result


def test_prints_scores_on_stdout_and_the_rest_on_stderr(demo):
    out, result = demo
    assert "embed" in result.stdout and "95 % interval" in result.stdout
    assert f"Report: {out}/report.html" in result.stderr.replace("\n", "")
    assert "instruct variant, in 4 bits" in result.stderr


def test_report_and_figures_are_there_and_not_blank(demo):
    out, _ = demo
    page = (out / "report.html").read_text()
    assert "GeoNames" in page and "SmolLM2-135M-Instruct" in page
    for name in ("map", "r2_by_layer"):
        picture = matplotlib.image.imread(out / f"figures/{name}.png")
        assert picture[..., :3].std() > 0.05
        assert (out / f"figures/{name}.svg").stat().st_size > 10_000


def test_the_map_is_in_the_middle_layers_and_not_in_the_last_token(demo):
    out, _ = demo
    config = json.loads((out / "config.json").read_text())
    assert config["result"]["headline_layer"] != "embed"
    assert config["result"]["peak_memory_bytes"] < 3e9
