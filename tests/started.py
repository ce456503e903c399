"""Processes that run jaxprobe without the seconds of its imports: a server that has them is forked for each.

Nearly all of a start is imports (JAX, transformers with PyTorch, pandas, Orbax): 5 s. The server does them once, asks
JAX for no device and has no threads of its own; a fork of it, with its own arguments, variables, folder, files and
signals, takes a twentieth of a second, and ends as Python ends. What such a process can't show is tested by starts of
Python itself: what is imported when, variables that are read by an import (a start with others of these is refused),
and the processes of a job, whose sets each have another order.

This file is the server too (`started.py serve SOCKET`), and a `jaxprobe` for shell scripts (`started.py jaxprobe SOCKET
ARGUMENT...`).
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = "from jaxprobe.cli.main import main\nmain()"
# Beside all of jaxprobe: what its functions import.
LAZY = ("matplotlib.figure", "sklearn.feature_extraction.text", "torch", "transformers.integrations.gguf")
# Variables that are read by imports.
READ_BY_IMPORTS = ("JAX_", "HF_", "PYTHON", "OMP_", "OPENBLAS_")
NUMBER = struct.Struct("q")


class Process:
    """As `subprocess.Popen`, a fork of the server. It writes into files: no pipe is ever full.

    Args:
      arguments: of the command line, or what ``program`` finds in ``sys.argv[1:]``.
      program: Python, run as ``python -c`` would; default: the command line.
      env: all of its variables; default: those of this process.
    """

    def __init__(self, arguments, *, program=COMMAND, env=None, cwd=None):
        self.returncode = None
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  (communicate closes them)
        with open(os.devnull) as nothing:
            self._connection, self.pid = _start(_server(), program, arguments, env, cwd, (nothing, *self._files))

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("jaxprobe", timeout)
            self.returncode = os.waitstatus_to_exitcode(_number(self._connection))
            self._connection.close()
        return self.returncode

    def communicate(self, timeout=None):
        """(stdout, stderr), once it has ended; asked for once."""
        self.wait(timeout)
        texts = []
        for file in self._files:
            with file:
                file.seek(0)
                texts.append(file.read().decode())
        return tuple(texts)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(arguments, **options):
    """Starts one and waits for its end: as `subprocess.run` of a text that is captured."""
    process = Process(arguments, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def put_on_path(folder):
    """Writes a `jaxprobe` into a folder, which a shell script then finds: a fork of the server as well."""
    script = Path(folder, "jaxprobe")
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" jaxprobe "{_server()}" "$@"\n')
    script.chmod(0o755)


@functools.cache
def _server():
    """The socket of the server, which ends with this process."""
    folder = tempfile.mkdtemp(prefix="jaxprobe-started-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        command = [sys.executable, __file__, "serve", str(listener.fileno())]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return path


def _start(path, program, arguments, env, cwd, files):
    """A connection to who waits for the new process, and its pid."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    words = [program, [os.fspath(word) for word in arguments], dict(env or os.environ), os.fspath(cwd or os.getcwd())]
    data = json.dumps(words).encode()
    socket.send_fds(connection, [NUMBER.pack(len(data))], [file.fileno() for file in files])
    connection.sendall(data)
    return connection, _number(connection)


def _number(connection):
    return NUMBER.unpack(_receive(connection, NUMBER.size))[0]


def _receive(connection, size):
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise RuntimeError("the server of tests/started.py is gone: what it wrote on stderr says why")
        data += more
    return data


def _serve(listener):
    """Forks for each who asks, until who started it is gone; in a fork, gives the program that it is to run."""
    del sys.path[0]  # this file's folder
    begun = dict(os.environ)
    jaxprobe = importlib.import_module("jaxprobe")
    names = [found.name for found in pkgutil.walk_packages(jaxprobe.__path__, "jaxprobe.")]
    for name in [*(name for name in names if not name.endswith("__main__")), *LAZY]:
        importlib.import_module(name)
    assert not sys.modules["jax"]._src.xla_bridge.backends_are_initialized()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while not select.select([listener, sys.stdin], [], [])[0].count(sys.stdin):
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _fork(connection, begun)
        connection.close()
    return ""


def _fork(connection, begun):
    """Makes the process that is asked for; this one waits for it, and tells the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, NUMBER.size, 3)
    program, arguments, env, cwd = json.loads(_receive(connection, *NUMBER.unpack(size)))
    if pid := os.fork():
        for file in files:
            os.close(file)
        connection.sendall(NUMBER.pack(pid))
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(NUMBER.pack(status))
        os._exit(0)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    read = lambda variables: {name: value for name, value in variables.items() if name.startswith(READ_BY_IMPORTS)}
    if read(env) != read(begun):
        sys.exit(f"The server was started with {read(begun)}: start Python itself for {read(env)}")
    os.chdir(cwd)
    by_imports = {name: value for name, value in os.environ.items() if name not in begun}
    os.environ.clear()
    os.environ.update(by_imports | env)
    sys.argv = ["jaxprobe", *arguments]
    return program


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        exec(_serve(socket.socket(fileno=int(sys.argv[2]))), {"__name__": "__main__"})
    else:
        connection, pid = _start(sys.argv[2], COMMAND, sys.argv[3:], None, None, (sys.stdin, sys.stdout, sys.stderr))
        forward = lambda number, _: os.kill(pid, number)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, forward)
        code = os.waitstatus_to_exitcode(_number(connection))
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        sys.exit(code)
