"""Every command of the README and docs/, run as it stands there, page after page, in a folder empty at first."""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import started

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# In the order of reading: a page goes on with the runs of those before it.
FIRST = [ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in ("guide", "experiments"))]
PAGES = FIRST + [path for path in sorted((ROOT / "docs").glob("*.md")) if path not in FIRST]
# What a command begins with -> why it is not run here.
NOT_RUN = {
    "scripts/demo": "tests/test_demo.py runs it",
    "scripts/test": "is what runs this",
    "pip install": "tests/test_packaging.py installs",
    "jaxprobe paper": "needs the paper's tables, which are not in the repository",
    "jaxprobe experiment use": "takes minutes; tests/experiments/test_use.py asks planted models",
    "jaxprobe plan": "needs one of them too, and libtpu",
    "scripts/launch_local": "tests/test_processes.py runs it",
    "sbatch": "needs a SLURM cluster",
    "scripts/launch_tpu": "needs a Cloud TPU slice",
}


class Block(NamedTuple):
    """A fenced block: its page, its language, its text and the line it begins on."""

    page: str
    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    return [
        Block(page.name, match[1], match[2], text[: match.start()].count("\n") + 1)
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if match[1] != "text"
    ]


def commands(block: Block) -> list[str]:
    """The commands of a block of bash, those that go on over lines as one."""
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def bare(command: str) -> str:
    """A command without its comment and its spaces."""
    return " ".join(command.partition("  #")[0].split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One device, as a user has, and a `jaxprobe` whose imports are done; the true one is run by tests/test_demo.py."""
    programs = tmp_path_factory.mktemp("bin")
    started.put_on_path(programs)
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "XLA_FLAGS": ""}


@pytest.fixture(scope="module")
def done():
    """Commands that ran already: what two pages say is run once."""
    return set()


def test_what_is_not_run_is_there():
    every = [command for block in blocks() if block.language == "bash" for command in commands(block)]
    assert len(every) > 20
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in every)] == []


@pytest.mark.parametrize("block", blocks(), ids=lambda block: f"{block.page} line {block.line}")
def test_blocks_run_as_written(block, folder, environment, done):
    assert block.language in ("bash", "python")
    if block.language == "bash":
        runnable = [command for command in commands(block) if not command.startswith(tuple(NOT_RUN))]
        if not runnable:
            pytest.skip("; ".join(sorted({NOT_RUN[start] for start in NOT_RUN if start in block.text})))
        runnable = [command for command in runnable if bare(command) not in done]
        if not runnable:
            return
        script = ["bash", "-euo", "pipefail", "-c", "\n".join(runnable)]
        result = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)
    else:
        runnable = []
        result = started.run([], program=block.text, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    done.update(map(bare, runnable))
    if any(
        command.startswith("jaxprobe doctor") for command in runnable
    ):  # which also exits with 0 where it had nothing to compare with
        assert "ok    parity       8 names x 32 states against Hugging Face PyTorch" in result.stdout
