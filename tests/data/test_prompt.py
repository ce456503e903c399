import pytest

from jaxprobe.data.prompt import COMMON_PROMPTS, PROMPTS, Prompt, find_prompt
from jaxprobe.errors import InputError


def test_the_papers_prompts():
    """Gurnee & Tegmark's table of prompts, written down a second time."""
    templates = {name: {p.name: p.template for p in prompts} for name, prompts in PROMPTS.items()}
    del templates["cities"]
    assert templates == {
        "world_place": {
            "empty": "{}",
            "empty_all_caps": "{}",
            "random": "{}",
            "coords": "What are the lat/lon coordinates of {}",
        },
        "us_place": {
            "empty": "{}",
            "random": "{}",
            "coords": "What are the lat/lon coordinates of {}",
            "where_us": "Where in the United States is {}",
        },
        "nyc_place": {
            "empty": "{}",
            "random": "{}",
            "where_is": "Where is {}",
            "where_nyc": "Where in New York City is {}",
        },
        "historical_figure": {"empty": "{}", "random": "{}", "when": "When did {}", "when_all_caps": "When did {}"},
        "art": {"empty": "{}", "random": "{}", "empty_all_caps": "{}", "release": "When was the release date of {}"},
        "headline": {
            "empty": "{}",
            "empty_wo_period": "{}",
            "when": "Publication date of: {}",
            "when_wo_period": "Publication date of: {}",
        },
    }


def test_names_say_what_a_prompt_does():
    for prompt in {p for prompts in PROMPTS.values() for p in prompts}:
        assert (prompt.random_tokens == 10) == (prompt.name == "random")
        assert (prompt.spelling == "all_caps") == prompt.name.endswith("_all_caps")
        assert (prompt.spelling == "no_full_stop") == prompt.name.endswith("_wo_period")


def test_spellings():
    texts = ["Köln", "Straße 7", "It ends."]
    assert Prompt("p").spell(texts) == texts
    assert Prompt("p", spelling="all_caps").spell(texts) == ["KÖLN", "STRASSE 7", "IT ENDS."]
    assert Prompt("p", spelling="no_full_stop").spell(texts) == ["Köln", "Straße 7", "It ends"]


def test_prompts_in_words():
    words = {p.name: p.wording for prompts in PROMPTS.values() for p in prompts}
    assert (
        words["empty"] == "{}" and words["where_is"] == "Where is {}" and words["random"] == "10 random tokens, then {}"
    )
    assert words["when_all_caps"] == "When did {} in capitals"
    assert words["empty_wo_period"] == "{} without its full stop"
    assert find_prompt("art", "random_per_row").wording == "10 random tokens (new for each row), then {}"


def test_headlines_have_no_random_prompt():
    with pytest.raises(InputError, match="random_per_row"):
        find_prompt("headline", "random_per_row")


def test_a_template_of_ones_own():
    assert find_prompt("art", "Who made {}?") == Prompt("Who made {}?", "Who made {}?")
    assert find_prompt("art", "{}").name == "empty"
    assert find_prompt("my_table", "coords") in COMMON_PROMPTS


@pytest.mark.parametrize("prompt", ["coordinates", "from {} to {}", "", "{name}"])
def test_a_template_without_exactly_one_place_is_refused(prompt):
    with pytest.raises(InputError, match=r"empty, empty_all_caps, random, coords"):
        find_prompt("world_place", prompt)
