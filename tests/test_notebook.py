"""The notebook as a user runs it, on a tiny model: every cell, and what the cells show."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_llama import save_model

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parent.parent / "scripts/probe_your_own_table.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The executed code cells: source -> its outputs."""
    folder = tmp_path_factory.mktemp("notebook")
    save_model(folder / "model", ["Paris", "Reykjavik"])
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    (parameters,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    assert 'model_name = "demo"' in "".join(parameters["source"])
    parameters["source"] = [f"model_name = {str(folder / 'model')!r}"]
    (folder / "notebook.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    command = [sys.executable, "-m", "jupyter", "execute", "--output=done", "notebook.ipynb"]
    environment = {**os.environ, "XLA_FLAGS": ""}  # one device, as a user has it
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    done = json.loads((folder / "done.ipynb").read_text(encoding="utf-8"))
    return {"".join(cell["source"]): cell["outputs"] for cell in done["cells"] if cell["cell_type"] == "code"}


def of(cells, last_line):
    """The outputs of the cell that ends with a line, or with one that begins so."""
    last = {source.splitlines()[-1]: outputs for source, outputs in cells.items()}
    (line,) = [line for line in last if line == last_line] or [line for line in last if line.startswith(last_line)]
    return last[line]


def html(outputs):
    return "".join("".join(output["data"].get("text/html", "")) for output in outputs if "data" in output)


def test_tables_models_and_fits_are_shown_as_tables(cells):
    assert "EntityTable(places: " in html(of(cells, "table")) and "São Paulo" not in html(of(cells, "table"))
    assert "3 layers" not in html(of(cells, "model")) and "embed, 0 to 2" in html(of(cells, "model"))
    shown = html(of(cells, "probes"))
    assert shown.count("<tr") == 5 and shown.count("font-weight:bold") == 1  # a head, and four states
    (fit,) = of(cells, "probes.fit")
    assert fit["data"]["text/plain"] == ["RidgeFit(4 layers, width 64, 2 targets)"]  # probes know no HTML


def test_progress_is_a_line_for_each_task(cells):
    lines = ["".join(output["data"]["text/plain"]) for output in of(cells, "{name")]
    assert any(re.match(r"extract: [\d,]+ entities in [\d.]+ s \([\d,]+ entities/s\)", line) for line in lines), lines


def test_a_run_shows_its_figures_inline(cells):
    outputs = of(cells, "run")
    assert html(outputs).count("data:image/png;base64,") == 2
    assert "Report: runs/places-model-Where-is/report.html" in html(outputs)
    said = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert "entities" in said and "TFLOP" in said


def test_frames_hold_numbers(cells):
    assert "ngrams" in html(of(cells, "controls[["))
    predicted = html(of(cells, "jaxprobe.predict_names"))
    assert "Reykjavik" in predicted and "radius_km" in predicted
