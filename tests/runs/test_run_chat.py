"""Runs whose prompt is in a chat template."""

import json

import numpy as np
import pytest

import jaxprobe
from jaxprobe.data.prompt import Prompt
from jaxprobe.errors import InputError
from jaxprobe.host.progress import Reporter
from jaxprobe.mesh import make_mesh
from jaxprobe.results.results import Run
from jaxprobe.runs.execute import run
from jaxprobe.runs.predict import predict
from jaxprobe.settings import RunSettings

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


def set_template(folder, template):
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"chat_template": template}))


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory, settings_of_heights):
    """Settings of a run in a chat, its run, what was said, and the model's folder."""
    folder = tmp_path_factory.mktemp("run")
    settings = settings_of_heights(folder, prompt="At {}!", chat=True)
    set_template(folder / "model", TEMPLATE)
    heard = Reporter()
    return settings, Run(run(settings, heard)), heard, folder / "model"


def test_the_states_are_those_of_the_whole_text(chat_run):
    settings, made, heard, _ = chat_run
    model = jaxprobe.load_model(settings.model, mesh=make_mesh({"data": 1}), dtype="float32")
    # BOS is prepended where a text is no chat, so this is the same text.
    plain = jaxprobe.extract_states(model, made.table, Prompt("whole", "[At {}!]"))
    for state, values in made.activations.items():
        np.testing.assert_allclose(values, plain[state], rtol=1e-5, atol=1e-6)
    note = "By the tokenizer's chat template the model reads '<s>[At {}!]', the name being in {}."
    assert note in made.notes and note in heard.lines
    assert made.prompt == "At {}!, chat" and made.wording == "At {}! (in a chat)"
    assert made.config["inputs"]["prompt"] == "<s>[At {}!]"


def test_another_template_is_another_run_and_predictions_keep_the_runs(chat_run):
    settings, made, _, folder = chat_run
    set_template(folder, TEMPLATE.replace("[{{", "({{"))
    try:
        with pytest.raises(InputError, match=r"prompt|another run"):
            run(settings)
        found, _ = made.predicted(made.headline_layer)
        predicted = predict(made, list(made.test_entities["text"]))["height"]
        np.testing.assert_allclose(predicted, found[:, 0], rtol=1e-4, atol=1e-4)
    finally:
        set_template(folder, TEMPLATE)


def test_what_a_chat_cannot_be(chat_run, tmp_path):
    settings, _, _, folder = chat_run
    changed = lambda **values: RunSettings(**{**vars(settings), "out": tmp_path / "run", **values})
    with pytest.raises(InputError, match="--prepend and --chat both say"):
        run(changed(prepend="<s>"))
    set_template(folder, None)
    try:
        with pytest.raises(InputError, match="no chat template"):
            run(changed())
    finally:
        set_template(folder, TEMPLATE)
    assert not (tmp_path / "run").exists()
