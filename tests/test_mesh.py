import jax
import pytest

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh, parse_mesh, spec


def test_a_mesh_axis_goes_to_the_first_letter_that_asks():
    assert spec("LDKGH") == jax.P(None, "fsdp", "model", None, None)
    assert spec("BTD") == jax.P(("data", "fsdp"), None, None)
    assert spec("VD") == jax.P("model", "fsdp")


def test_sizes_from_text():
    assert parse_mesh("data=2, model=4") == {"data": 2, "model": 4}
    assert dict(make_mesh(parse_mesh("data=2,model=4")).shape) == {"data": 2, "fsdp": 1, "model": 4}
    assert make_mesh().shape["data"] == jax.device_count() == 8


@pytest.mark.parametrize("text", ["data", "rows=2", "data=0", "data=two"])
def test_unreadable_sizes(text):
    with pytest.raises(InputError, match="not an axis and a size"):
        parse_mesh(text)


def test_more_devices_than_there_are():
    with pytest.raises(InputError, match="data=4,model=4 needs 16 devices; 8 are here"):
        make_mesh(parse_mesh("data=4,model=4"))
