"""The benchmark's side of the worker processes."""

import json
import subprocess
import sys
from typing import Any

from benchmarks import machine


class Process:
    """A worker of one framework and dtype."""

    def __init__(self, framework: str, dtype: str, model: str):
        command = [sys.executable, "-m", "benchmarks.worker", framework, dtype, model]
        self.name = f"{framework}-{dtype}"
        self.loaded: dict[str, Any] = {}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=machine.worker_environment()
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended while it ran {command}; its own message stands above.")
        return json.loads(answer)

    def load(self) -> None:
        """Loads the model; what the worker says of itself is then in ``loaded``."""
        self.loaded = self.ask("load")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
