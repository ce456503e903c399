"""What tests/started.py starts is what Python starts: codes, output, variables, signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import started

pytestmark = pytest.mark.slow


def test_it_says_and_ends_as_a_start_of_python(tmp_path):
    arguments = ["run", "--model", "demo", "--dataset", "nowhere", "--out", "new"]
    true = subprocess.run([sys.executable, "-m", "jaxprobe", *arguments], cwd=tmp_path, capture_output=True, text=True)
    found = started.run(arguments, cwd=tmp_path)
    assert true.returncode == 2 and "nowhere" in true.stderr
    assert (found.returncode, found.stdout, found.stderr) == (true.returncode, true.stdout, true.stderr)
    started.put_on_path(tmp_path)
    script = f"./jaxprobe {' '.join(arguments)} || echo $?; echo from a pipe | ./jaxprobe --version | cat"
    found = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.startswith("2\njaxprobe ") and found.stderr == true.stderr


def test_it_has_what_it_was_given_and_no_threads(monkeypatch):
    program = """
import atexit, os, sys, threading, jax
assert len(os.listdir("/proc/self/task")) == threading.active_count() == 1
assert not jax._src.xla_bridge.backends_are_initialized()
atexit.register(print, "the end")
print(sys.argv[1:], os.getcwd(), os.environ.get("ONLY_HERE"), os.environ.get("HOME"), len(jax.devices()))
sys.exit(7)
"""
    monkeypatch.delenv("HOME")  # which the server has
    env = os.environ | {"ONLY_HERE": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    found = started.run(["a b", ""], program=program, env=env, cwd="/")
    assert (found.returncode, found.stdout) == (7, "['a b', ''] / 1 None 3\nthe end\n"), found.stderr
    refused = started.run(["--version"], env={**os.environ, "JAX_ENABLE_X64": "1"})
    assert refused.returncode == 1 and "start Python itself" in refused.stderr and not refused.stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_hears_signals(number):
    process = started.Process([], program="import time\nprint('here', flush=True)\ntime.sleep(60)")
    while not os.fstat(process._files[0].fileno()).st_size:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    true = subprocess.Popen(
        [sys.executable, "-Sc", "import time\nprint(flush=True)\ntime.sleep(60)"], stdout=-1, stderr=-1
    )
    assert true.stdout.readline()
    true.send_signal(number)
    true.communicate()
    assert out == "here\n" and process.returncode == true.returncode and err.count("KeyboardInterrupt") == (number == 2)
