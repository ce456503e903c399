"""The configurations that ship with the package against what is published of their models."""

import dataclasses

import pytest

from jaxprobe.models.published import find_published, published_models

# Numbers in all tensors of the published files, the output head included.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-12b": 11_766_034_176,  # of its text model
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096,
    "olmo-2-7b": 7_298_617_344,
    "phi-4": 14_659_507_200,
    "pythia-1.4b": 1_414_647_808,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
}


def test_every_configuration_has_a_published_size():
    assert set(published_models()) == set(PARAMETERS)
    names = list(published_models())
    assert names.index("pythia-1.4b") < names.index("pythia-6.9b") < names.index("pythia-12b")


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_files(name):
    short, config = find_published(name)
    assert short == name and dataclasses.replace(config, head=True).parameter_count() == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name.startswith("llama")])
def test_constants_of_llamas(name):
    _, config = find_published(name)
    assert config.head_width == 128 and config.norm_epsilon == 1e-5
    assert config.context == (4096 if name.startswith("llama-2") else 131_072)
    # The slowest pair turns by theta^-(126/128); Llama 3.1 stretches it by 8.
    theta, stretch = (10_000, 1) if name.startswith("llama-2") else (500_000, 8)
    assert config.rotaries[0].frequencies[-1] == pytest.approx(theta ** (-126 / 128) / stretch)


@pytest.mark.parametrize(
    ("name", "longest"),
    [("mistral-7b", 4096), ("qwen2.5-7b", 131_072), ("gemma-2-9b", 4096), ("gemma-3-12b", 1024), ("phi-4", 16_384)],
)
def test_the_longest_prompt(name, longest):
    assert find_published(name)[1].longest_prompt == longest


def test_hub_names_are_known_and_others_are_not():
    assert find_published("meta-llama/Llama-2-7b-hf")[0] == "llama-2-7b"
    assert find_published("meta-llama/Llama-3.1-405B")[0] == "llama-3.1-405b"
    assert find_published("llama-2-7b-chat") is None
