"""States made elsewhere: exported and fitted again they score as the run did, whatever they are called."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import jaxprobe
from jaxprobe.cli.main import main
from jaxprobe.errors import InputError
from jaxprobe.extract.store.plain import PlainStates
from jaxprobe.results.results import Run


@pytest.mark.slow
@pytest.mark.parametrize("form", ["states.safetensors", "states"])
def test_exported_states_score_as_the_run_did(finished, tmp_path, form):
    main(["export", str(finished.path), "--out", str(tmp_path / form), "--quiet"])
    table = tmp_path / ("states.csv" if "." in form else "states/table.csv")
    out = tmp_path / "again"
    main(["fit", str(tmp_path / form), "--dataset", str(table), "--group", "side", "--out", str(out), "--quiet"])
    ours, again = Run(finished).scores, Run(out).scores
    keys = ["layer", "target", "split", "metric"]
    both = ours.merge(again, on=keys, suffixes=("", "_again"), validate="one_to_one")
    assert len(both) == len(ours)
    for column in ("value", "ci_low", "ci_high", "alpha"):
        np.testing.assert_allclose(both[column], both[f"{column}_again"], rtol=1e-9, equal_nan=True)
    assert Run(out).headline_layer == Run(finished).headline_layer and (out / "report.html").is_file()
    assert set(Run(out).controls["control"]) == set(Run(finished).controls["control"])


@pytest.mark.slow
def test_states_of_any_name_are_numbered_in_their_order(tmp_path):
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"name": [f"n{i}" for i in range(60)], "size": rng.normal(size=60)})
    table.to_csv(tmp_path / "t.csv", index=False)
    x = rng.normal(size=(60, 8)).astype(np.float32)
    x[:, 0] = table["size"]
    states = {"clip.visual.3": rng.normal(size=(60, 8)), "clip.visual.9": x}
    made = jaxprobe.probe(states, jaxprobe.load_table(str(tmp_path / "t.csv")), tmp_path / "run")
    assert made.layers == ("0", "1") and made.headline_layer == "1"
    assert any("1 is 'clip.visual.9'" in note for note in made.notes)
    assert made.score("1", "r2").value > 0.9
    with pytest.raises(InputError, match="states of your own"):
        jaxprobe.predict_names(made.path, ["n1"])


@pytest.mark.slow
def test_a_second_call_does_nothing_and_other_states_are_refused(tmp_path, capsys):
    rng = np.random.default_rng(2)
    pd.DataFrame({"name": [f"n{i}" for i in range(40)], "size": rng.normal(size=40)}).to_csv(
        tmp_path / "t.csv", index=False
    )
    np.save(tmp_path / "s.npy", rng.normal(size=(2, 40, 6)))
    command = ["fit", str(tmp_path / "s.npy"), "--dataset", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run")]
    main(command)
    capsys.readouterr()
    main(command)
    assert "nothing to do" in capsys.readouterr().err
    np.save(tmp_path / "s.npy", rng.normal(size=(2, 40, 6)))
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "belongs to another run" in capsys.readouterr().err


def write(folder, kind):
    match kind:
        case "text":
            (folder / "s.npy").write_text("no array")
        case "objects":
            np.save(folder / "s.npy", np.array([{"a": 1}] * 3), allow_pickle=True)
        case "one axis":
            np.save(folder / "s.npy", np.zeros(5))
        case "strings":
            np.save(folder / "s.npy", np.array([["a", "b"]]))
        case "rows differ":
            save_file({"0": np.zeros((3, 2)), "1": np.zeros((4, 2))}, folder / "s.safetensors")
        case "truncated":
            save_file({"0": np.zeros((30, 20))}, folder / "s.safetensors")
            (folder / "s.safetensors").write_bytes((folder / "s.safetensors").read_bytes()[:100])
        case "an empty folder":
            (folder / "s").mkdir()
        case "another file":
            (folder / "s.pt").write_bytes(b"")
    return next(folder.glob("s*"), folder / "s.npy")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "can't be read as a NumPy array"),
        ("objects", "can't be read as a NumPy array"),
        ("one axis", r"wanted numbers \[row, dimension\]"),
        ("strings", "wanted numbers"),
        ("rows differ", "differ in their rows"),
        ("truncated", "can't be read as safetensors"),
        ("an empty folder", "there are none"),
        ("another file", "no .npy or .safetensors"),
        ("nothing", "There is no"),
    ],
)
def test_files_that_hold_no_states(tmp_path, kind, words):
    with pytest.raises(InputError, match=words):
        PlainStates(write(tmp_path, kind))


def test_rows_that_are_not_the_tables(tmp_path):
    pd.DataFrame({"name": ["a", "b", "c"] * 5, "size": range(15)}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match="have 14 rows; the table has 15"):
        jaxprobe.probe({"0": np.zeros((14, 3))}, jaxprobe.load_table(str(tmp_path / "t.csv")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
