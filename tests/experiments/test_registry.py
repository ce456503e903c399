"""Experiments, predictions and the paper's tables on whole runs of a tiny model, as a user calls them."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from jaxprobe.cli import main as cli
from jaxprobe.errors import InputError
from jaxprobe.experiments import base, blocks, controls, dateline, entity_types, layers, prompts, registry
from jaxprobe.extract.store.reader import open_activations
from jaxprobe.host.progress import Reporter, TerminalReporter
from jaxprobe.results.results import Run
from jaxprobe.runs.execute import run
from jaxprobe.runs.paper import PUBLISHED, plan_runs, run_paper
from jaxprobe.runs.predict import conformal_width, predict
from jaxprobe.runs.several import load, run_all
from jaxprobe.settings import RunConfig
from tests.tiny_llama import save_model

NAMES = ["Paris", "Lima", "Oslo", "Rome", "Quito", "Accra", "Delhi", "Kyoto", "Perth", "Cairo"]
SAME_PROBE = 1e-6  # fitted twice, from float32 states: sums in another order


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, NAMES)
    return str(folder)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Small tables with the columns of two of the paper's."""
    folder, rng, count = tmp_path_factory.mktemp("tables"), np.random.default_rng(0), 80
    common = {"is_test": [i % 4 == 0 for i in range(count)], "entity_type": [NAMES[i % 2] for i in range(count)]}
    world = common | {
        "name": [f"{NAMES[i % 10]} {i // 10}" for i in range(count)],
        "latitude": rng.uniform(-60, 70, count),
        "longitude": rng.uniform(-180, 180, count),
        "country": [NAMES[(i + i // 4) % 4] for i in range(count)],
    }
    art = common | {
        "creator": [NAMES[i // 2 % 5] for i in range(count)],
        "title": [str(i) for i in range(count)],
        "release_date": [f"{1950 + i % 40}-07-01" for i in range(count)],
        "decade": [str(1950 + i % 40 // 10 * 10) for i in range(count)],
    }
    pd.DataFrame(world).to_csv(folder / "world_place.csv", index=False)
    pd.DataFrame(art).to_csv(folder / "art.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def runs(model, tables, tmp_path_factory):
    """World places under two prompts, and works of art."""
    folder = tmp_path_factory.mktemp("runs")
    settings = [("world_place", "empty"), ("world_place", "coords"), ("art", "empty")]
    return [
        run(RunConfig(model, table, folder / f"{table}-{prompt}", prompt=prompt, data_dir=tables, mesh="data=1")).path
        for table, prompt in settings
    ]


def table_of(experiment, *paths, **options):
    return experiment.run(paths, experiment.Options(**options), Reporter())


def test_an_experiment_has_one_name_and_says_what_it_asks():
    assert base.name_of(entity_types) == "entity_types" and registry.load("entity_types") is entity_types
    for name in registry.EXPERIMENTS:
        experiment = registry.load(name)
        assert base.name_of(experiment) == name and 20 < len(registry.summary(experiment)) < 240
        assert experiment.Options() == experiment.Options()  # every option has a default
    code = "import sys, jaxprobe.experiments.registry; print('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.slow
def test_an_experiment_is_that_of_the_stored_states(runs, capsys):
    world = runs[0]
    cli.main(["experiment", "blocks", str(world), "--group", "country"])
    written = pd.read_parquet(world / "experiments" / "blocks.parquet")
    opened = Run(world)
    states = open_activations(world / "activations")
    names = dict(model=opened.model, prompt="empty", seed=0, run=str(world))
    expected = blocks.measure_groups(states, opened.table, opened.headline_layer, "country", **names)
    pd.testing.assert_frame_equal(written, expected)
    csv = pd.read_csv(world / "experiments" / "blocks.csv")
    np.testing.assert_allclose(csv["value"], expected["value"])
    printed = capsys.readouterr()
    assert "held_out" in printed.out and "without each country: 4 groups in " in printed.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blocks", "entity_types", "controls", "dateline", "layers"])
def test_a_terminal_shows_one_task_at_a_time(name, runs):
    """Two bars at once are an error of rich's."""
    experiment = registry.load(name)
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert len(experiment.run(runs[:1], experiment.Options(), TerminalReporter(terminal)))


@pytest.mark.slow
def test_a_run_writes_the_controls_of_its_headline_layer(runs):
    opened = Run(runs[2])
    written = opened.controls
    names = dict(model=opened.model, prompt="empty")
    at = opened.activations, opened.table, opened.headline_layer
    pd.testing.assert_frame_equal(written, controls.measure(*at, **names))
    assert {"none", "ngrams", "permuted", "group_mean_decade", "within_creator"} <= set(written["control"])
    # The probe's own row is the one in the scores.
    score = opened.scores.query("layer == @opened.headline_layer and split == 'test' and metric == 'r2'")
    ours = written.query("control == 'none' and resampled == 'rows' and metric == 'r2'")
    np.testing.assert_allclose(ours["value"], score["value"], atol=SAME_PROBE)
    np.testing.assert_allclose(ours["ci_low"], score["ci_low"], atol=SAME_PROBE)


@pytest.mark.slow
def test_every_experiment_runs_from_the_command_line(runs, capsys):
    world, coords, art = map(str, runs)
    for name, paths, column in (
        ("layers", (world, coords, art), "depth"),
        ("prompts", (world, coords), "train_prompt"),
        ("entity-types", (world, art), "train_on"),
        ("dateline", (world,), "target_form"),
        ("controls", (art,), "control"),
        ("nonlinear", (art,), "probe"),
    ):
        cli.main(["experiment", name, *paths])
        assert column in capsys.readouterr().out
    frame = pd.read_parquet(runs[0] / "experiments" / "layers.parquet")
    assert frame.loc[frame["layer"] == "embed", "depth"].eq(0).all()
    assert sorted(set(frame["depth"])) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    # The second prompt stands beside the first; works of art stand beside nothing.
    beside = frame[~frame["compared_with"].isin(["", "embed"])]
    assert set(beside["prompt"]) == {"coords"} and set(beside["resampled"]) >= {"rows", "country"}
    folder = runs[0] / "experiments"
    assert {path.stem for path in folder.glob("*.png")} == {path.stem for path in folder.glob("*.svg")}
    assert {"layers", "prompts", "entity_types-1", "entity_types-2", "dateline"} <= {
        p.stem for p in folder.glob("*.png")
    }


@pytest.mark.slow
def test_sizes_of_a_suite_are_one_command_with_a_picture(tables, tmp_path, capsys):
    """Three random models, the deepest in the middle: R2 by relative depth, and by the number of parameters."""
    paths, counts = [], []
    # All of one width, so that the probes' programs are compiled once.
    for name, mlp_width, blocks_of in (("suite-large", 256, 2), ("suite-small", 32, 2), ("suite-middle", 64, 4)):
        sizes = {"hidden_size": 32, "intermediate_size": mlp_width, "num_hidden_layers": blocks_of}
        hugging_face = save_model(tmp_path / name, NAMES, heads=4, kv_heads=2, sizes=sizes)
        head = hugging_face.lm_head.weight.numel()  # which no state needs
        counts.append(sum(parameter.numel() for parameter in hugging_face.parameters()) - head)
        options = dict(data_dir=tables, mesh="data=1", store=False)  # states are not needed
        paths.append(run(RunConfig(str(tmp_path / name), "world_place", tmp_path / f"run-{name}", **options)).path)
    cli.main(["experiment", "layers", *map(str, paths)])
    assert "parameters" in capsys.readouterr().out
    frame = pd.read_parquet(paths[0] / "experiments" / "layers.parquet")
    sizes = frame.drop_duplicates("run").set_index("model")["parameters"]
    assert sizes.to_dict() == dict(zip(("suite-large", "suite-small", "suite-middle"), counts, strict=True))
    assert sorted(set(frame.loc[frame["model"] == "suite-middle", "depth"])) == [0, 0.25, 0.5, 0.75, 1]
    (figure,) = layers.figures(frame)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["suite-small", "suite-middle", "suite-large"]
    dots = sorted(
        (line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[-1].lines if line.get_marker() == "o"
    )
    chosen = frame[
        frame["headline"] & (frame["metric"] == "r2") & (frame["target"] == "mean") & (frame["split"] == "test")
    ]
    chosen = chosen[(chosen["compared_with"] == "") & (chosen["resampled"] == "rows")].sort_values("parameters")
    np.testing.assert_allclose(dots, chosen[["parameters", "value"]].to_numpy())
    assert (paths[0] / "experiments" / "layers.png").is_file()


@pytest.mark.slow
def test_depth_is_of_the_whole_model_whatever_was_read(model, tables, tmp_path):
    read = run(RunConfig(model, "art", tmp_path / "run", data_dir=tables, mesh="data=1", layers=(0,))).path
    frame = table_of(layers, read)
    assert frame.loc[frame["layer"] == "0", "depth"].to_numpy() == pytest.approx(1 / 3)  # the model has three blocks


def test_labels_to_hold_out_choose_their_columns(runs):
    table = Run(runs[0]).table
    both = replace(table, groups=dict(table.groups) | {"half": np.where(np.arange(80) // 4 % 2, "Paris", "Atlantis")})
    columns = base.usable_groups(both)
    assert set(columns) >= {"country", "half"}
    label = table.groups["country"][0]
    assert blocks.columns_with(both, columns, ["Atlantis"]) == ("half",)
    assert "country" in blocks.columns_with(both, columns, [label])
    assert "No group of table world_place has 'Rio' (its groups: " in refused(
        lambda: table_of(blocks, runs[0], held=("Rio",))
    )


@pytest.mark.slow
def test_random_weights_are_the_same_for_the_same_seed_and_stand_beside_the_trained(runs):
    opened = Run(runs[0])
    random = controls.random_states(opened, "1")["1"]
    assert controls.random_states(opened, "mlp.1")["mlp.1"].shape == (80, 128)
    assert random.shape == opened.activations["1"].shape and np.abs(random - opened.activations["1"]).max() > 0.01
    frame = table_of(controls, runs[0], state="1", random_weights=True)
    row = frame.query("control == 'random_weights' and metric == 'r2' and target == 'mean'").iloc[0]
    test, targets = opened.table.is_test, opened.table.targets
    probe = Ridge(row["alpha"]).fit(random[~test].astype(np.float64), targets[~test])
    assert row["value"] == pytest.approx(r2_score(targets[test], probe.predict(random[test])), abs=1e-4)


@pytest.mark.slow
def test_predictions_for_test_rows_are_those_of_the_run(runs):
    for path in (runs[1], runs[2]):
        opened = Run(path)
        stored = opened.predictions.query("layer == @opened.headline_layer").iloc[:3]
        texts = [opened.table.texts[row] for row in stored["row"]]
        frame = predict(path, texts)
        for target in opened.table.target_names:
            # The states come from another batch, in float32.
            np.testing.assert_allclose(frame[target], stored[f"predicted_{target}"], rtol=1e-4, atol=1e-3)
        if opened.table.is_place:
            errors = opened.predictions.query("layer == @opened.headline_layer")["error_km"]
            assert frame["radius_km"].nunique() == 1
            # 20 test rows: the 19th smallest of their errors.
            assert frame["radius_km"][0] == pytest.approx(np.sort(errors)[18], rel=1e-5)
        else:
            half = (frame["release_date_high"] - frame["release_date_low"]) / 2
            found = opened.predictions.query("layer == @opened.headline_layer")
            errors = np.abs(found["predicted_release_date"] - opened.table.targets[found["row"], 0])
            np.testing.assert_allclose(half, np.sort(errors)[18], rtol=1e-4)


@pytest.mark.slow
def test_unit_vectors_are_fitted_and_degrees_come_back(model, tables, tmp_path):
    config = RunConfig(model, "world_place", tmp_path / "run", data_dir=tables, mesh="data=1", unit_vectors=True)
    opened = Run(run(config).path)
    table, headline = opened.table, opened.headline_layer
    x, test = opened.activations[headline].astype(np.float64), table.is_test
    latitude, longitude = np.radians(table.targets.T)
    points = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
    )
    scores = opened.scores.query("layer == @headline and split == 'test' and metric == 'r2'")
    probe = Ridge(scores["alpha"].iloc[0]).fit(x[~test], points[~test])
    east, north, up = probe.predict(x[test]).T
    expected = np.degrees([np.arctan2(up, np.hypot(east, north)), np.arctan2(north, east)]).T
    stored = opened.predictions.query("layer == @headline")
    np.testing.assert_allclose(stored[["predicted_latitude", "predicted_longitude"]], expected, rtol=1e-3, atol=0.02)
    mean = scores.loc[scores["target"] == "mean", "value"].item()
    assert mean == pytest.approx(r2_score(table.targets[test], expected), abs=1e-4)
    # The controls and a prediction for a name are those of the same probe.
    controlled = opened.controls
    real = controlled.query("control == 'none' and resampled == 'rows' and metric == 'r2' and target == 'mean'")
    assert real["value"].item() == pytest.approx(mean, abs=SAME_PROBE)
    permuted = controlled.query("control == 'permuted' and metric == 'r2' and target == 'mean'")
    assert permuted["value"].item() < 0.1
    frame = predict(tmp_path / "run", [table.texts[row] for row in stored["row"][:3]])
    np.testing.assert_allclose(frame[["latitude", "longitude"]], expected[:3], rtol=1e-3, atol=0.05)


def test_intervals_hold_what_they_promise():
    rng = np.random.default_rng(0)
    errors = rng.standard_exponential((4000, 20))
    inside = [errors[i, -1] <= conformal_width(errors[i, :-1]) for i in range(4000)]
    # 19 errors: the 18th of them, so 90 % exactly; the bound is 4 deviations of a binomial.
    assert abs(np.mean(inside) - 0.9) < 4 * np.sqrt(0.09 / 4000)
    assert conformal_width(np.arange(9.0)) == 8 and np.isinf(conformal_width(np.arange(8.0)))


def test_predict_prints_its_table(runs, capsys):
    cli.main(["predict", str(runs[0]), "--text", "Oslo 3", "Lima"])
    printed = capsys.readouterr().out
    assert "Oslo 3" in printed and "radius_km" in printed and "90 %" in printed


@pytest.mark.slow
def test_the_papers_tables_stand_beside_the_papers_numbers(model, tables, tmp_path):
    planned = [(config.dataset, config.prompt) for config in plan_runs(model, tmp_path, tables, (), None)]
    assert planned == [("world_place", "empty"), ("world_place", "coords"), ("art", "empty"), ("art", "release")]
    only_art, heard = tmp_path / "tables", Reporter()
    only_art.mkdir()
    (only_art / "art.csv").write_bytes((tables / "art.csv").read_bytes())
    frame = run_paper(model, tmp_path / "paper", only_art, (), 60, reporter=heard)
    assert list(frame["dataset"] + "/" + frame["prompt"]) == ["art/empty", "art/release"]
    assert (frame["rows"] == 60).all() and list(frame["llama2_7b"]) == [0.788, 0.788]
    for _, row in frame.iterrows():
        scores = pd.read_parquet(tmp_path / "paper" / row["dataset"] / row["prompt"] / "scores.parquet")
        wanted = dict(layer=row["layer"], split="test", metric="r2", target="mean")
        for column, cell in wanted.items():
            scores = scores[scores[column] == cell]
        assert scores["value"].item() == pytest.approx(row["r2"], abs=SAME_PROBE)
    tables_written = {path.stem for path in (tmp_path / "paper" / "experiments").glob("*.csv")}
    assert tables_written == {"layers", "prompts", "blocks", "entity_types", "controls", "paper"}
    assert "2 of 2 runs to do" in heard.lines[0] and "What differs" in heard.lines[-1]
    # What is finished is not done again; random weights are a further control of the first prompt.
    again = run_paper(model, tmp_path / "paper", only_art, (), 60, True, heard)
    assert any("0 of 2 runs to do" in line for line in heard.lines)
    assert list(again["random_weights"].isna()) == [False, True]
    pd.testing.assert_frame_equal(again.drop(columns="random_weights"), frame)


def test_the_papers_numbers_are_all_there():
    assert len(PUBLISHED) == 6
    # Every table's R2 grows with the model in the paper.
    assert all(list(row) == sorted(row) for row in PUBLISHED.values())


def test_paper_refuses_prompts_and_folders_without_tables(model, tables, tmp_path):
    with pytest.raises(InputError, match="Prompt where is of none of the tables world_place, art"):
        plan_runs(model, tmp_path, tables, ("coords", "where"), None)
    assert [config.dataset for config in plan_runs(model, tmp_path, tables, ("coords",), None)] == ["world_place"]
    with pytest.raises(InputError, match="None of the paper's tables"):
        plan_runs(model, tmp_path, tmp_path, (), None)


def refused(call):
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def test_runs_that_cannot_be_used_are_refused_with_the_command_that_helps(runs, tmp_path):
    world, _, art = runs
    assert "Take runs that differ in the prompt only" in refused(lambda: table_of(prompts, world, art))
    assert "Runs named more than once: " in refused(lambda: table_of(prompts, world, world))
    assert "config.json is missing, so" in refused(lambda: Run(tmp_path))
    assert "has no group 'kind'; it has country" in refused(lambda: table_of(blocks, world, group=("kind",)))
    assert "No text to predict for" in refused(lambda: predict(world, [" "]))
    config = json.loads((world / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = refused(lambda: Run(tmp_path).activations)
    assert "has no stored states. Make them with: jaxprobe run --config" in message and "--store --out" in message
    del config["result"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "is not finished. Go on with: jaxprobe run --config" in refused(lambda: Run(tmp_path))


@pytest.mark.slow
def test_a_finished_run_needs_its_table_no_more(model, tables, tmp_path, monkeypatch):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "art.csv").write_bytes((tables / "art.csv").read_bytes())
    monkeypatch.chdir(tmp_path)
    options = dict(text="title", target=("release_date",), group=("decade",), mesh="data=1")
    finished = run(RunConfig(model, "tables/art.csv", tmp_path / "run", **options)).path
    (folder / "art.csv").unlink()
    monkeypatch.chdir("/")
    table = Run(finished).table
    assert table.name == "art" and table.units == ("year",) and table.texts[:3] == ("0", "1", "2")
    expected = pd.read_csv(tables / "art.csv")
    middle = [int(day[:4]) + 181 / 365 for day in expected["release_date"]]
    assert table.targets[:, 0] == pytest.approx(middle, abs=2e-3)
    found = set(table_of(entity_types, finished, group="decade")["test_on"])
    assert found and found <= set(expected["decade"].astype(str))


@pytest.mark.slow
def test_runs_that_differ_in_nothing_but_seed_or_fit_stay_apart(runs, model, tables, tmp_path):
    """They have one model, table and prompt: every table and figure tells them apart by their folder."""
    options = dict(data_dir=tables, mesh="data=1")
    other = run(RunConfig(model, "world_place", tmp_path / "other", unit_vectors=True, **options)).path
    both = (runs[0], other)
    frame = table_of(entity_types, *both)
    assert (
        frame.groupby("run").ngroups == 2
        and not frame.duplicated(["run", "train_kind", "train_on", "test_on", "target", "metric"]).any()
    )
    for experiment, of in ((entity_types, both), (dateline, both), (controls, both)):
        drawn = experiment.figures(table_of(experiment, *of))
        titles = [" ".join(text.get_text() for text in figure.texts) for figure in drawn]
        assert len(drawn) == 2 and all(path.name in title for path, title in zip(of, titles, strict=True))
    (figure,) = layers.figures(table_of(layers, *both))
    lines = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(lines) == 2 and all(line.endswith(path.name) for path, line in zip(both, lines, strict=True))
    assert all(len(axes.lines) == 2 for axes in figure.axes)
    message = refused(lambda: table_of(prompts, *both))
    assert f"{other} and {runs[0]} differ in unit_vectors (True, False). Take runs" in message


def test_no_run_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["experiment", "blocks"])
    assert stop.value.code == 2 and "No run to look at" in capsys.readouterr().err


@pytest.mark.slow
def test_the_paper_reads_its_model_once_and_only_for_states_that_are_missing(model, tables, tmp_path, monkeypatch):
    loaded, checked, asked = [], [], []
    monkeypatch.setattr("jaxprobe.runs.several.load", lambda *given: (loaded.append(1), load(*given))[1])
    for module in ("prepare", "execute"):
        monkeypatch.setattr(f"jaxprobe.runs.{module}.check_memory", lambda *given: checked.append(len(loaded)))
    monkeypatch.setattr("jaxprobe.runs.several.check_space", lambda path, size: asked.append(size))
    configs = plan_runs(model, tmp_path, tables, ("empty",), None)
    paths = [directory.path for directory in run_all(configs, Reporter())]
    # Each run before any weights are read, and then once more as they are: never with them in memory.
    assert len(loaded) == 1 and checked == [0] * len(paths) + [1]
    files = [file for path in paths for file in (path / "activations").rglob("*") if file.is_file()]
    assert 0.9 < sum(file.stat().st_size for file in files) / asked[0] <= 1  # of small states most is around them
    for path in paths:
        (path / "scores.parquet").unlink()
    run_all(configs, Reporter())
    assert len(loaded) == 1 and all((path / "scores.parquet").is_file() for path in paths)
