"""What divides over a mesh runs; what does not is refused with a mesh that does."""

import math

import pytest

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models.divide import fit_config
from tests.tiny_llama import llama_config


def config(kv_heads=8, queries_per_kv=2, mlp_width=128, vocabulary=96, width=64):
    return llama_config(
        kv_heads=kv_heads,
        queries_per_kv=queries_per_kv,
        mlp_width=mlp_width,
        vocabulary=vocabulary,
        width=width,
    )


def sizes(mesh):
    return {"data": 1, "fsdp": 1, "model": 1} | parse_mesh(mesh)


@pytest.mark.parametrize("mesh", ["data=7", "model=8", "data=3,fsdp=4,model=2", "fsdp=64"])
def test_what_divides_is_left_as_it_is(mesh):
    assert fit_config(config(), sizes(mesh)) == config()


REFUSED = [
    (
        {"kv_heads": 8, "queries_per_kv": 8},
        "model=16",
        "K=8 key/value heads do not divide over mesh axis 'model' of size 16. "
        "Use --mesh data=2,model=8, or --replicate-kv.",
    ),
    # Copies are no way out where the queries can't be dealt out over them.
    ({"kv_heads": 3, "queries_per_kv": 3}, "model=8", "of size 8. Use --mesh data=8."),
    ({"mlp_width": 100}, "data=2,model=8", "F=100 MLP units do not divide over mesh axis 'model' of size 8. "
     "Use --mesh data=4,model=4."),
    ({"vocabulary": 97}, "model=2", "V=97 vocabulary entries do not divide .* Use --mesh data=2."),
    ({"width": 66}, "fsdp=4,model=2", "D=66 columns of width do not divide over mesh axis 'fsdp' of size 4. "
     "Use --mesh data=2,fsdp=2,model=2."),
    # One mesh for all that does not fit.
    ({"mlp_width": 100, "vocabulary": 98}, "model=8", "F=100 .* V=98 .* Use --mesh data=4,model=2."),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "mesh", "message"), REFUSED)
def test_what_does_not_divide_is_refused_with_a_mesh_that_does(changes, mesh, message):
    with pytest.raises(InputError, match=message) as error:
        fit_config(config(**changes), sizes(mesh))
    advised = sizes(str(error.value).split("--mesh ")[1].split()[0].rstrip(".,"))
    assert fit_config(config(**changes), advised) == config(**changes)
    assert math.prod(advised.values()) == math.prod(sizes(mesh).values())


@pytest.mark.parametrize(
    ("kv_heads", "queries_per_kv", "model", "expected"),
    [(2, 8, 4, (4, 4, 2)), (2, 8, 16, (16, 1, 8)), (8, 8, 16, (16, 4, 2)), (4, 3, 6, (12, 1, 3)), (8, 2, 4, (8, 2, 1))],
)
def test_copies_of_key_and_value_heads_on_request(kv_heads, queries_per_kv, model, expected):
    """As few as divide; every query keeps a head, and none is lost."""
    whole = config(kv_heads, queries_per_kv, mlp_width=96)
    found = fit_config(whole, sizes(f"model={model}"), replicate_kv=True)
    assert (found.kv_heads, found.queries_per_kv, found.kv_copies) == expected
    assert found.kv_heads * found.queries_per_kv == kv_heads * queries_per_kv


def test_copies_that_would_not_divide_either():
    with pytest.raises(InputError, match=r"Nor do copies of them \(--replicate-kv\), for 9 query heads. Use --mesh"):
        fit_config(config(3, 3), sizes("model=8"), replicate_kv=True)


def test_a_mesh_object_will_do():
    assert fit_config(config(), make_mesh({"data": 2, "model": 4}).shape) == config()
