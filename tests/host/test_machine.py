"""What is free on this machine, with a limit on addresses as `ulimit -v` sets it."""

import subprocess
import sys

from jaxprobe.host.machine import free_memory, product_rate


def test_a_limit_on_addresses_is_seen():
    code = (
        "import resource; from jaxprobe.host.machine import free_memory; before = free_memory();"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 10**8, used + 10**8));"
        "print(before > 10**8, 0.5e8 < free_memory() <= 10**8)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_free_memory_and_the_rate_of_a_product():
    assert 1e6 < free_memory() < 1e15
    assert 1e9 < product_rate() < 1e15 and product_rate() == product_rate()  # timed once
