"""Imports point down one list, so that the package can be read from the top and never back."""

import ast
from pathlib import Path

import jaxprobe

PACKAGE = Path(jaxprobe.__file__).parent
# A module may import from earlier ranks; equal ranks are siblings and never import each other (a folder is one module).
RANKS = [
    {"errors"},
    {"files", "display", "distributed"},
    {"config", "mesh", "progress", "rundir", "moments"},
    {"data", "models", "probes"},
    {"extract"},
    {"experiments"},
    {"report"},
    {"run", "experiment", "predict", "doctor", "plan"},
    {"paper", "output"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# The report reads result files only.
REPORT_MAY_USE = {"errors", "files", "rundir", "report"}


def imports():
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxprobe."):
                yield path.relative_to(PACKAGE), module, node.module.split(".")[1]


def test_imports_point_down():
    found = list(imports())
    assert len(found) > 30
    wrong = [
        f"{path} imports {target}"
        for path, module, target in found
        if module not in ("__init__",) and target != module and RANK[target] >= RANK[module]
    ]
    assert not wrong


def test_the_report_reads_result_files_only():
    assert not [
        f"{path}: {target}" for path, module, target in imports() if module == "report" and target not in REPORT_MAY_USE
    ]
