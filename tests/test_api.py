"""The public names: there, typed, described, and not hidden by modules."""

import ast
import inspect
import subprocess
import sys

import pytest

import jaxprobe


@pytest.mark.parametrize("name", jaxprobe.__all__)
def test_public_names_are_typed_and_described(name):
    value = getattr(jaxprobe, name)
    assert inspect.getdoc(value), name
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        assert all(p.annotation is not inspect.Parameter.empty for p in named), name
        assert signature.return_annotation is not inspect.Signature.empty
        assert "Raises:" in inspect.getdoc(value) or name == "list_datasets"


def test_editors_and_type_checkers_see_every_public_name():
    """The names stand twice in __init__.py: for those who read it, and for Python, which imports them on first use."""
    body = ast.parse(inspect.getsource(jaxprobe)).body
    (block,) = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    read = {alias.asname: f"{node.module}:{alias.name}" for node in block.body for alias in node.names}
    used = {name: f"{module}:{name}" if ":" not in module else module for name, module in jaxprobe._PUBLIC.items()}
    assert read == used


@pytest.mark.slow
def test_public_names_stay_what_they_are_when_modules_are_imported():
    """`jaxprobe.runs.execute` would be the module or the function, by what was imported before."""
    probe = (
        "import jaxprobe, jaxprobe.cli.main, jaxprobe.runs.paper, jaxprobe.runs.predict, jaxprobe.cli.doctor\n"
        "import types\n"
        "print([name for name in jaxprobe.__all__ if isinstance(getattr(jaxprobe, name), types.ModuleType)])"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
