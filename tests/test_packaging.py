"""The wheel that users install: what is in it, what it needs, and the demo run by it from another folder."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Imported where they are installed, and nowhere needed.
OPTIONAL = {"torch", "IPython", "gcsfs"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it; the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("build")
    anywhere = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")
    at_the_top = shutil.ignore_patterns("build", "dist", "runs", "demo-run*")  # the package has a room called runs

    def left_out(at: str, names: list[str]) -> set[str]:
        return anywhere(at, names) | (at_the_top(at, names) if Path(at) == ROOT else set())

    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    # Without isolation: setuptools is in the test environment, and nothing is downloaded.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,), (wheel,) = (list((folder / "dist").glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    return sdist, wheel


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """A new environment in which jaxprobe is the wheel, and everything else is that of the tests.

    A download of everything takes minutes and a network; scripts/demo makes such an environment on every clean clone,
    and `test_every_import_is_of_a_declared_dependency` holds what it would be made from. The line of a .pth file adds
    the tests' packages without the editable jaxprobe, which is a .pth file of its own there.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        built[1],
    ]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    paths = {sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}
    (packages / "of_the_tests.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    return folder


def test_every_file_of_the_package_is_in_the_wheel_and_the_sdist(built):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "jaxprobe").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(built[1]) as wheel:
        assert {name for name in wheel.namelist() if name.startswith("jaxprobe/")} == files
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert files | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_every_import_is_of_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w.-]+", need)[0].lower().replace("-", "_") for need in project["dependencies"]}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in (ROOT / "jaxprobe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"jaxprobe"} - OPTIONAL:
                providers = {name.lower().replace("-", "_") for name in distributions.get(top, [])}
                if not providers & declared:
                    undeclared.add(f"{path.name}: {top}")
    assert not undeclared


def test_the_installed_wheel_runs_the_demo(environment, tmp_path):
    settings = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
    run = lambda *command: subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    where = run(environment / "bin/python", "-c", "import jaxprobe, torch; print(jaxprobe.__file__)")
    assert where.stdout.startswith(str(environment)), where.stderr
    result = run(environment / "bin/jaxprobe", "demo", "--limit", "100")
    assert result.returncode == 0, result.stderr
    assert "SmolLM2-135M-Instruct" in result.stdout
    assert (tmp_path / "demo-run-100/report.html").is_file()
    assert "compile: " in result.stderr and "extract: 100 entities" in result.stderr
