"""Every command of the README, run as it stands there, from top to bottom, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

README = Path(__file__).parent.parent / "README.md"
# What a command begins with -> why it is not run here.
NOT_RUN = {
    "scripts/demo": "tests/test_demo.py runs it",
    "scripts/test": "is what runs this",
    "pip install": "tests/test_packaging.py installs",
    "jaxprobe paper": "needs the paper's tables, which are not in the repository",
    "jaxprobe plan": "needs one of them too, and libtpu",
    "scripts/launch_local": "tests/test_processes.py runs it",
    "sbatch": "needs a SLURM cluster",
    "scripts/launch_tpu": "needs a Cloud TPU slice",
}


class Block(NamedTuple):
    """A fenced block: its language, its text and the line it begins on."""

    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    text = README.read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], text[: match.start()].count("\n") + 1)
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a block of bash, those that go on over lines as one."""
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_what_is_not_run_is_there():
    every = [command for block in blocks() if block.language == "bash" for command in commands(block)]
    assert len(every) > 10
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in every)] == []


@pytest.mark.parametrize("block", blocks(), ids=lambda block: f"line {block.line}")
def test_blocks_run_as_written(block, folder):
    assert block.language in ("bash", "python")
    if block.language == "bash":
        runnable = [command for command in commands(block) if not command.startswith(tuple(NOT_RUN))]
        if not runnable:
            pytest.skip("; ".join(sorted({NOT_RUN[start] for start in NOT_RUN if start in block.text})))
        arguments = ["bash", "-euo", "pipefail", "-c", "\n".join(runnable)]
    else:
        arguments = [sys.executable, "-c", block.text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(arguments, cwd=folder, env=settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    if "jaxprobe doctor" in block.text:  # which also exits with 0 where it had nothing to compare with
        assert "ok    parity       8 names x 32 states against Hugging Face PyTorch" in result.stdout
