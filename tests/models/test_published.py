"""The configurations that ship with the package against what is published of their models."""

import pytest

from jaxprobe.models.published import find_published, published_models

# Numbers in all tensors of the published files, the output head included.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
}


def test_every_configuration_has_a_published_size():
    assert list(published_models()) == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_constants(name):
    short, config = find_published(name)
    assert short == name
    assert config.parameter_count() + config.vocabulary * config.width == PARAMETERS[name]
    assert config.head_width == 128 and config.norm_epsilon == 1e-5
    assert config.context == (4096 if name.startswith("llama-2") else 131_072)
    # The slowest pair turns by theta^-(126/128); Llama 3.1 stretches it by 8.
    theta, stretch = (10_000, 1) if name.startswith("llama-2") else (500_000, 8)
    assert config.rotaries[0].frequencies[-1] == pytest.approx(theta ** (-126 / 128) / stretch)


def test_hub_names_are_known_and_others_are_not():
    assert find_published("meta-llama/Llama-2-7b-hf")[0] == "llama-2-7b"
    assert find_published("meta-llama/Llama-3.1-405B")[0] == "llama-3.1-405b"
    assert find_published("llama-2-7b-chat") is None
