"""Planted models: in one the answer hangs on what the probe reads, in the other on something else."""

import json
import string

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from jaxprobe.errors import InputError
from jaxprobe.experiments import base, use
from jaxprobe.host.progress import Reporter
from jaxprobe.runs.execute import run as run_probes
from jaxprobe.settings import RunSettings
from tests.tiny_llama import save_tokenizer

pytestmark = pytest.mark.slow

ROWS, WIDTH = 240, 16
NAMES = [a + b for a in string.ascii_uppercase for b in string.ascii_lowercase][:ROWS]


def plant(folder, uses: bool, seed: int = 0):
    """A Llama whose blocks do nothing: a name's last token holds a longitude in one direction and a letter in another.

    The next token is "e" or "w": by the longitude where the model ``uses`` it, else by the letter.
    """
    rng = np.random.default_rng(seed)
    size = save_tokenizer(folder, NAMES * 20)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    last = [tokenizer.encode(name, add_special_tokens=False)[-1] for name in NAMES]
    vocabulary = -(-size // 8) * 8
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    state = model.state_dict()
    embedding = rng.standard_normal((vocabulary, WIDTH))
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    for name, values in state.items():
        if "o_proj" in name or "down_proj" in name:
            values.zero_()
    head = np.zeros((vocabulary, WIDTH))
    for sign, letter in ((1, "e"), (-1, "w")):
        [token] = tokenizer.encode(letter, add_special_tokens=False)
        head[token, 0 if uses else 1] = 3.0 * sign
    state["model.embed_tokens.weight"].copy_(torch.tensor(embedding @ turn))
    state["lm_head.weight"].copy_(torch.tensor(head @ turn))
    model.save_pretrained(folder)
    x = embedding[last]
    answer = np.where(x[:, 0 if uses else 1] > 0, "e", "w")
    table = pd.DataFrame({"name": NAMES, "longitude": 60 * x[:, 0] + rng.standard_normal(ROWS), "side": answer})
    table["country"] = [f"c{i % 24}" for i in range(ROWS)]
    table.to_csv(folder / "t.csv", index=False)
    body = {"asks": "Which side?", "template": "{}", "continuation": "{}", "group": "side", "neutral": "a"}
    (folder / "side.json").write_text(json.dumps(body))
    return folder


def probe(folder):
    settings = RunSettings(
        str(folder), str(folder / "t.csv"), out=folder / "run", text="name", target=("longitude",),
        group=("side", "country"), seed=1,
    )  # fmt: skip
    run_probes(settings, Reporter())
    return folder / "run"


def ask(run, folder, **options):
    options = {"entities": 40, "draws": 39, "every": 1} | options
    return use.run([run], use.Options(str(folder / "side.json"), **options), Reporter())


@pytest.mark.parametrize("uses", [True, False])
def test_what_is_planted_is_found_and_nothing_else(tmp_path, uses):
    folder = plant(tmp_path, uses)
    run = probe(folder)
    frame = ask(run, folder)
    [*said] = frame.loc[frame["test"] == "sentence", "text"]
    assert ("is needed for" in said[0] and not said[0].startswith("It was not found")) == uses, said
    assert any("Moving it moves the answer" in line for line in said) == uses, said
    accuracy = frame[(frame["test"] == "competence") & (frame["edit"] == "none")]["value"]
    assert (accuracy > 0.95).all()
    erased = frame[(frame["test"] == "erased") & (frame["metric"] == "r2_train")]["value"]
    assert len(erased) and erased.max() < 1e-6
    family = frame[(frame["test"] == "controls") & (frame["metric"] == "family")].set_index("edit")["p"]
    assert (family["permuted"] <= 0.05) == uses
    assert not list((run / "experiments").glob("use-*"))  # what an interrupted start would go on from
    path = base.write_table(use, frame, run)
    assert path.is_file() and path.with_suffix(".png").is_file()


def test_goes_on_where_it_stopped(tmp_path, monkeypatch):
    folder = plant(tmp_path, True)
    run = probe(folder)
    whole = ask(run, folder, draws=19)
    done, one = [], use._one_layer

    def until_the_third(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[2])
        return one(*args)

    monkeypatch.setattr(use, "_one_layer", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        ask(run, folder, draws=19)
    rest = []
    monkeypatch.setattr(use, "_one_layer", lambda *args: rest.append(args[2]) or one(*args))
    again = ask(run, folder, draws=19)
    assert done == [-1, 0] and rest == [1, 2]
    kept = again["metric"] != "slots x blocks, of the least"
    pd.testing.assert_frame_equal(again[kept], whole[kept], rtol=1e-4, atol=1e-5)


def test_a_model_that_does_not_answer_is_not_tested(tmp_path):
    folder = plant(tmp_path, True)
    table = pd.read_csv(folder / "t.csv")
    table["side"] = np.where(np.arange(ROWS) % 2, "e", "w")
    table.to_csv(folder / "t.csv", index=False)
    frame = ask(probe(folder), folder)
    assert frame["text"].str.startswith("It can't be tested").sum() == 1
    assert set(frame["test"]) == {"competence", "sentence"}
    with pytest.raises(InputError, match="--draws is 3; wanted 19"):
        ask(folder / "run", folder, draws=3)
