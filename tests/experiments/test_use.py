"""A planted model: one of its answers hangs on what the probe reads, the other on something else."""

import json
import re
import shutil
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
from tests.test_processes import ended, launch
from tests.tiny_llama import save_tokenizer

pytestmark = pytest.mark.slow

ROWS, WIDTH = 240, 16
NAMES = [a + b for a in string.ascii_uppercase for b in string.ascii_lowercase][:ROWS]
GROUPS = ("side", "letter")
MOVES = re.compile("Moving it moves the answer")


def plant(folder, seed: int = 0):
    """A Llama whose blocks do nothing: a name's last token holds a longitude in one direction and a letter in another.

    Of "e" and "w" the longitude says which comes next, of "n" and "s" the letter.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir()
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
    for letter, direction, sign in (("e", 0, 1), ("w", 0, -1), ("n", 1, 1), ("s", 1, -1)):
        [token] = tokenizer.encode(letter, add_special_tokens=False)
        head[token, direction] = 3.0 * sign
    state["model.embed_tokens.weight"].copy_(torch.tensor(embedding @ turn))
    state["lm_head.weight"].copy_(torch.tensor(head @ turn))
    model.save_pretrained(folder)
    x = embedding[last]
    table = pd.DataFrame({"name": NAMES, "longitude": 30 * x[:, 0] + rng.standard_normal(ROWS)})
    table["side"] = np.where(x[:, 0] > 0, "e", "w")
    table["letter"] = np.where(x[:, 1] > 0, "n", "s")
    table["country"] = [f"c{i % 24}" for i in range(ROWS)]
    table.to_csv(folder / "t.csv", index=False)
    for group in GROUPS:
        body = {"asks": f"Which {group}?", "template": "{}", "continuation": "{}", "group": group, "neutral": "a"}
        (folder / f"{group}.json").write_text(json.dumps(body))
    return folder


def probe(folder):
    settings = RunSettings(
        str(folder), str(folder / "t.csv"), out=folder / "run", text="name", target=("longitude",),
        group=(*GROUPS, "country"), seed=1,
    )  # fmt: skip
    run_probes(settings, Reporter())
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return probe(plant(tmp_path_factory.mktemp("planted") / "model"))


def ask(run, group, **options):
    options = {"entities": 40, "draws": 39, "every": 1} | options
    return use.run([run], use.Options(str(run.parent / f"{group}.json"), **options), Reporter())


def said(frame):
    """The sentences; whether the first says that the reading is needed; whether one says that moving it moves."""
    lines = frame.loc[frame["test"] == "sentence", "text"].tolist()
    return lines, lines[0].startswith("What a linear probe reads"), any(map(MOVES.match, lines))


@pytest.fixture(scope="module")
def asked_once(run):
    """The table of each question, one start to the end."""
    return {group: ask(run, group) for group in GROUPS}


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_planted_is_found_and_nothing_else(run, asked_once, group):
    uses, frame = group == "side", asked_once[group]
    lines, needed, moves = said(frame)
    assert (needed, moves) == (uses, uses), lines
    accuracy = frame[(frame["test"] == "competence") & (frame["edit"] == "none")]["value"]
    assert (accuracy > 0.95).all()
    erased = frame[(frame["test"] == "erased") & (frame["metric"] == "r2_train")]["value"]
    assert len(erased) and erased.max() < 1e-6
    family = frame[(frame["test"] == "controls") & (frame["metric"] == "family")].set_index("edit")["p"]
    assert (family["permuted"] <= 0.05) == uses
    assert not list((run / "experiments").glob("use-*"))  # what an interrupted start would go on from
    path = base.write_table(use, frame, run)
    assert path.is_file() and path.with_suffix(".png").is_file()


def test_over_seeds_it_is_found_and_nothing_else(tmp_path):
    """In all of 13 seeds, which 80 % of worlds would pass as seldom as 19 of 20 (5 % of the time, not 7 %)."""
    for seed in range(13):
        run = probe(plant(tmp_path / str(seed), seed))
        for group in GROUPS:
            lines, needed, moves = said(ask(run, group, draws=19, every=3))
            assert needed == moves == (group == "side"), (seed, lines)


def test_two_processes_share_the_layers(run, asked_once, tmp_path):
    command = ["experiment", "use", run, "--question", run.parent / "side.json", "--out", tmp_path]
    command += ["--entities", 40, "--draws", 39, "--every", 1]
    ends = ended(launch([list(map(str, command))] * 2))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "is needed for" in ends[0][1] and ends[1][1] == ""
    frame, whole = pd.read_parquet(tmp_path / "experiments" / "use.parquet"), asked_once["side"]
    kept = whole["metric"] != "slots x blocks, of the least"
    pd.testing.assert_frame_equal(frame[kept], whole[kept], rtol=1e-4, atol=1e-5)
    assert not list((run / "experiments").glob("use-*"))


def test_goes_on_where_it_stopped(run, asked_once, monkeypatch):
    calls, one = [], use._one_layer

    def until_the_third(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return one(*args)

    monkeypatch.setattr(use, "_one_layer", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        ask(run, "side")
    assert sorted(path.name for path in (run / "experiments").glob("use-*/*")) == ["-1.npz", "0.npz"]
    rest = []
    monkeypatch.setattr(use, "_one_layer", lambda *args: rest.append(args) or one(*args))
    again = ask(run, "side")
    assert len(rest) == 2  # of four
    whole = asked_once["side"]
    kept = again["metric"] != "slots x blocks, of the least"
    pd.testing.assert_frame_equal(again[kept], whole[kept], rtol=1e-4, atol=1e-5)


def test_a_model_that_does_not_answer_is_not_tested(run, tmp_path):
    folder = shutil.copytree(run.parent, tmp_path / "model", ignore=shutil.ignore_patterns("run"))
    table = pd.read_csv(folder / "t.csv")
    table["side"] = np.where(np.arange(ROWS) % 2, "e", "w")
    table.to_csv(folder / "t.csv", index=False)
    run = probe(folder)
    frame = ask(run, "side")
    assert frame["text"].str.startswith("It can't be tested").sum() == 1
    assert set(frame["test"]) == {"competence", "sentence"}
    with pytest.raises(InputError, match="--draws is 3; wanted 19"):
        ask(run, "side", draws=3)
