import pytest

from jaxprobe.cost.chips import CHIPS, parse_topology
from jaxprobe.errors import InputError


def test_machines():
    slice_ = parse_topology("v5p:2x2x4")
    assert (slice_.chip.name, slice_.count, slice_.hosts) == ("TPU v5p", 16, 4)
    gpus = parse_topology("h100:8")
    assert (gpus.chip.platform, gpus.count, gpus.hosts) == ("gpu", 8, 1)
    assert (slice_.chip.usable_memory, gpus.chip.usable_memory) == (95, 60)


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:8x", "v9:2x2", "h100:0", "8"])
def test_unreadable_topologies(text):
    with pytest.raises(InputError, match="is not a chip and a shape"):
        parse_topology(text)


def test_every_chip_names_its_source():
    assert all(chip.source and chip.bfloat16 > chip.float32 > 0 for chip in CHIPS.values())
