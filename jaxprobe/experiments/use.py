"""Does the model use what the probe reads? The reading is erased or moved, and the model is asked a question.

Tests stand before a sentence (docs/use.md): the unedited model must answer, what is erased must be gone, the loss must
be beyond that of matched control draws, and the words follow from the tests by rule (experiments/verdicts.py). Erasers
and probes are fitted on the run's training rows; the model is asked about test rows that it answers rightly.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd

from jaxprobe.cost.counts import forward_seconds, slot_operations
from jaxprobe.data.sphere import unit_vectors
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.base import check_runs, columns_of
from jaxprobe.experiments.baselines import predict_from_ngrams
from jaxprobe.experiments.questions import Question, read_question
from jaxprobe.experiments.verdicts import Evidence, Mean, mean_of, p_of_family, p_value, sentences
from jaxprobe.extract.continuations import Continuations, read_continuations
from jaxprobe.host.paths import AnyPath, remove_folder, replacing
from jaxprobe.host.processes import check_alike, exchange, is_main
from jaxprobe.host.progress import Reporter
from jaxprobe.models.load import LanguageModel, fit_mesh, read_weights
from jaxprobe.models.placement import place
from jaxprobe.probes.erase import (
    Covariance,
    Edit,
    Kernels,
    apply_edit,
    covariance,
    decompose_kernels,
    erase,
    fit_surface,
    leace,
    orthogonal,
    random_shifts,
    random_subspace,
    removed_variance,
    steer,
    surface_at,
    with_targets,
)
from jaxprobe.probes.metrics import r2
from jaxprobe.probes.mlp import fit_mlp, predict_mlp
from jaxprobe.probes.ridge import RidgeFit, fit_ridge, predict_layer
from jaxprobe.results.results import Run
from jaxprobe.sites import Site

TOGETHER = True  # several processes may share the work
POOL = 8  # test rows that are asked first, for each entity that is wanted
FEWEST = 20  # entities that are answered rightly, below which nothing is tested
SHIFTS = 20  # random differences of states for each entity; draws are put together from these
LATER = 10  # permuted erasers at all later layers
PROBE_ROWS = 1500  # rows of the probes that look for what is left, and of erasers that are fitted in order
REWORDED = 5  # permuted erasers under the reworded question
SHARE_OF_EDITS = 0.8  # of the time, the edited draws'; the rest are probes, all later layers, and the head
FOLDS = 5  # of groups that an eraser is fitted without
ERASURES = ("leace", "shrunk", "orthogonal", "other_groups", "answers", "unrelated", "spelling", "interchange")
SHIFTED = ("least_norm", "covariance", "half", "twice", "surface", "answer_means", "random_shift", "elsewhere")


@dataclass(frozen=True)
class Options:
    """What is asked, and how much of it."""

    question: str = "country"
    """country, continent, north_south, east_west, decade, or a JSON file of the same kind."""
    entities: int = 200
    """At most so many test rows that the model answers rightly."""
    every: int = 3
    """Of the stored layers every so many-th is edited, and the embedding."""
    draws: int = 100
    """Control draws of each kind at each layer."""


class _Asked(NamedTuple):
    """The entities that are asked about, and what is known of the answers."""

    names: list[str]  # C answers
    rows: np.ndarray  # [E] table rows
    right: np.ndarray  # [E] the right answer of each
    goal: np.ndarray  # [E] another answer, towards which the reading is moved
    groups: np.ndarray  # [E] labels for the bootstrap over groups
    places: np.ndarray  # [C, T] mean target of each answer's training rows, in deviations


def run(runs: Sequence[AnyPath], options: Options, reporter: Reporter) -> pd.DataFrame:
    """`measure` for each run. Raises InputError as it does, and where an option can't be used."""
    problems = [
        f"--{name} is {value}; wanted {least} or more."
        for name, value, least in (
            ("entities", options.entities, FEWEST),
            ("every", options.every, 1),
            ("draws", options.draws, 19),
        )
        if value < least
    ]
    if problems:
        raise InputError(*problems)
    question = read_question(options.question)
    return pd.concat([measure(Run(path), question, options, reporter) for path in check_runs(runs)], ignore_index=True)


def measure(run: Run, question: Question, options: Options, reporter: Reporter) -> pd.DataFrame:
    """All tests of one question for one finished run with stored states.

    What each layer gave is kept in the run's folder until all is done, so that an interrupted start goes on. Of several
    processes each has the model on its own devices and takes some layers; the first one puts them together.

    Returns:
      A tidy table, a row for each test, layer, edit and metric: value with its 95 % interval, p (against control
      draws, one-sided), n; ``resampled`` is what the interval's bootstrap draws: rows, or the groups they are of.
      Sentences are in rows of test "sentence", column ``text``. In processes after the first: no more than test 1.

    Raises:
      InputError: no stored states, a question that does not fit the table, another model than the run's; processes
        in which the model answers differently.
    """
    run.check_last_token()
    table, states = run.table, run.activations
    names, right = question.answers(table)
    model = _load(run)
    last = model.config.layers - 1
    site = lambda layer: str(Site("embed") if layer < 0 else Site("block", layer))
    # After the last block nothing is left that could read an edit.
    stored = sorted(at.layer for at in map(Site.parse, states) if at.kind == "block" and at.layer < last)
    if not stored:
        raise InputError(f"{run.path} keeps no state that can be edited. Run it without --layers.")
    layers = stored[min(options.every, len(stored)) - 1 :: options.every]
    layers = [-1, *layers] if "embed" in states else layers
    columns = columns_of(run) | {"dataset": run.dataset, "question": question.name}
    frame = _Frame(columns)
    asked = _compete(model, run, question, names, right, options, frame, reporter)
    check_alike(exchange(_key(run, question, options, [] if asked is None else asked.rows.tolist())))
    what = " and ".join(table.target_names)
    if asked is None:
        nothing = Mean(math.nan, math.nan, math.nan)
        frame.say(sentences(what, question.asks, Evidence(False, math.nan, {}, "", nothing, nothing)))
        reporter.say(frame.rows[-1]["text"])
        return frame.table()

    ask = lambda template, neutral: read_continuations(
        model,
        [table.texts[row] for row in asked.rows],
        template,
        [question.continuation.format(name) for name in asked.names],
        layers,
        neutral=neutral,
        between=True,
    )
    engine = ask(question.template, question.neutral)
    reworded = ask(question.reworded, None) if question.reworded else None
    work = Mean(_announce(engine, layers, asked, options, reporter), math.nan, math.nan)
    frame.add("work", "", "", "slots x blocks, of the least", work)
    folder = run.path / "experiments" / f"use-{question.name}-{_key(run, question, options)}"
    spelled = _spelled(table, run.settings.seed)
    places = _sphere(_standard(table)[_some_training_rows(table, run.settings.seed)], table)
    kernels = decompose_kernels(places, (0.25, 0.5, 1.0))  # the places are the same at every layer

    def of_layer(layer: int) -> dict[str, np.ndarray]:
        common = table, question, asked, spelled, kernels, options, run.settings.seed
        make = lambda: _one_layer(engine, reworded, layer, states[site(layer)], *common)
        return _kept(folder / f"{layer}.npz", make)

    mine = layers[jax.process_index() :: jax.process_count()]
    with reporter.task("use", len(mine) + 1, "parts") as advance:
        for layer in mine:
            of_layer(layer)
            advance(1)
        exchange("layers")  # all are there
        if not is_main():
            return frame.table()
        parts = {layer: of_layer(layer) for layer in layers}
        later = _kept(
            folder / "later.npz",
            lambda: _all_later(engine, _training_rows(model, run, question, layers), parts, asked),
        )
        advance(1)
    _tabulate(frame, parts, later, asked, {layer: site(layer) for layer in layers}, what, question, options)
    if folder.is_dir():
        remove_folder(folder)
    for row in frame.rows:
        if row["test"] == "sentence":
            reporter.say(str(row["text"]))
    return frame.table()


def _kept(file: AnyPath, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a file, which is written where there is none yet."""
    if file.is_file():
        with np.load(file, allow_pickle=False) as kept:
            return dict(kept)
    arrays = make()
    with replacing(file) as temporary, open(temporary, "wb") as opened:
        np.savez(opened, **arrays)
    return arrays


def _load(run: Run) -> LanguageModel:
    files = run.open_model(head=True)
    mesh, _ = place(files.config, None, run.settings.dtype, jax.local_devices())  # this process's, not the run's
    return read_weights(fit_mesh(files, mesh, run.settings.replicate_kv), mesh, run.settings.dtype)


def _key(run: Run, question: Question, options: Options, asked: Sequence[int] | None = None) -> str:
    """Of what is kept between two starts, or of what processes must share."""
    chosen = {field.name: getattr(options, field.name) for field in fields(Options)}  # a command has more fields
    body = [run.config.get("fingerprint"), asdict(question), chosen, *([asked] if asked else [])]
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]


# ---- Test 1: does it answer? --------------------------------------------------------------------------------------


def _compete(
    model: LanguageModel,
    run: Run,
    question: Question,
    names: list[str],
    right: np.ndarray,
    options: Options,
    frame: "_Frame",
    reporter: Reporter,
) -> _Asked | None:
    """Asks the unedited model; the entities that it answers rightly, or None where it does not answer well enough."""
    table, rng = run.table, np.random.default_rng(run.settings.seed)
    train, test = ~table.is_test, np.flatnonzero(table.is_test & (right >= 0))
    if len(test) < FEWEST:
        raise InputError(f"{len(test)} test rows have an answer; wanted {FEWEST} or more. Take a larger table.")
    test = np.sort(rng.permutation(test)[: POOL * options.entities])
    answers = [question.continuation.format(name) for name in names]
    with reporter.task("ask", len(test), "entities") as advance:
        engine = read_continuations(
            model, [table.texts[row] for row in test], question.template, answers, [], between=True
        )
        said = engine.clean(everything=False).log_odds(engine.choices)[:, 0].argmax(1)
        advance(len(test))
    correct = said == right[test]
    groups = _groups_of(table, question, right)
    majority = np.bincount(right[test]).max() / len(test)
    chance = 1 / len(names)
    accuracy = mean_of(correct, seed=run.settings.seed)
    by_group = mean_of(correct, groups[test], seed=run.settings.seed)
    frame.add("competence", "", "none", "accuracy", accuracy, n=len(test), resampled="rows")
    frame.add("competence", "", "none", "accuracy", by_group, n=len(test), resampled="groups")
    spelled = _spell(table, train & (right >= 0), test, right)
    for name, value in (("chance", chance), ("majority", majority), ("spelling", spelled)):
        frame.add("competence", "", name, "accuracy", Mean(value, math.nan, math.nan), n=len(test))
    reporter.say(
        f"The model answers {accuracy.value:.3f} [{accuracy.ci_low:.3f}, {accuracy.ci_high:.3f}] of {len(test):,} test "
        f"rows ({len(names)} answers); chance {chance:.3f}, commonest answer {majority:.3f}, spelling {spelled:.3f}."
    )
    known = np.flatnonzero(correct)
    if accuracy.ci_low <= max(chance, majority) or len(known) < FEWEST:
        return None
    rows = np.sort(rng.permutation(test[known])[: options.entities])
    standard = _standard(table)
    places = np.stack(
        [
            standard[train & (right == i)].mean(0) if (train & (right == i)).any() else np.zeros(standard.shape[1])
            for i in range(len(names))
        ]
    )
    goal = (right[rows] + rng.integers(1, len(names), len(rows))) % len(names)
    return _Asked(names, rows, right[rows], goal, groups[rows], places)


def _standard(table: EntityTable) -> np.ndarray:
    """[N, T] targets in standard deviations of the training rows, about their mean."""
    mean, scale = _spread(table)
    return (table.targets - mean) / scale


def _spread(table: EntityTable) -> tuple[np.ndarray, np.ndarray]:
    """(mean [T], standard deviation [T], 1 where there is none) of the training rows' targets."""
    train = table.targets[~table.is_test]
    return train.mean(0), np.where(train.std(0) > 0, train.std(0), 1)


def _groups_of(table: EntityTable, question: Question, right: np.ndarray) -> np.ndarray:
    """[N] what the bootstrap over groups draws: the finest group column, or the answers."""
    columns = [np.asarray(labels).astype(str) for labels in table.groups.values()]
    return max(columns, key=lambda labels: len(np.unique(labels)), default=right.astype(str))


def _spell(table: EntityTable, train: np.ndarray, test: np.ndarray, right: np.ndarray) -> float:
    """Accuracy on the test rows of an answer from the spelling alone: character n-grams and a linear classifier."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    texts = np.asarray(table.texts, object)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=2)
    fitted = LinearSVC(C=0.3).fit(vectorizer.fit_transform(texts[train]), right[train])
    return float((fitted.predict(vectorizer.transform(texts[test])) == right[test]).mean())


def _announce(
    engine: Continuations, layers: Sequence[int], asked: _Asked, options: Options, reporter: Reporter
) -> float:
    """Size and time, before it starts; returns slots times blocks in the least that there can be."""
    config, right = engine.model.config, engine.points_of(asked.right)
    blocks = lambda layers: sum(config.layers - 1 - layer for layer in layers)
    later = [layer for layer in layers if layer >= 0]
    # The edits at every layer; the controls, which look at the right answer alone, at all but the embedding.
    edits, controls = engine.slots_of(len(ERASURES) + len(SHIFTED)), engine.slots_of(options.draws, right)
    draws = 2 * options.draws + SHIFTS
    work, floor = (
        a * blocks(layers) + b * draws / options.draws * blocks(later) for a, b in zip(edits, controls, strict=True)
    )
    seconds = forward_seconds(work * slot_operations(config, 128) / SHARE_OF_EDITS, engine.model.mesh)
    minutes = None if seconds is None else max(1, round(seconds / 60 / jax.process_count()))
    time = "" if minutes is None else f", about {minutes} min at this machine's rate"
    reporter.say(
        f"{len(engine.prefixes)} entities, {len(layers)} layers, {len(ERASURES) + len(SHIFTED)} edits and {draws} "
        f"controls of each at every layer: {work / 1e6:,.1f} million slots x blocks ({work / floor:.2f} of the least "
        f"there can be){time}."
    )
    return work / floor


# ---- One layer ----------------------------------------------------------------------------------------------------


def _one_layer(
    engine: Continuations,
    reworded: Continuations | None,
    layer: int,
    x: np.ndarray,
    table: EntityTable,
    question: Question,
    asked: _Asked,
    spelled: np.ndarray,
    kernels: Kernels,
    options: Options,
    seed: int,
) -> dict[str, np.ndarray]:
    """Every edit and control at one layer; per entity, and for the probes that look for what is left."""
    rng = np.random.default_rng(seed)  # the same at every layer: draw m is the same permutation everywhere
    train = np.flatnonzero(~table.is_test)
    rows = np.asarray(x[train], np.float32).astype(np.float64)
    z = _standard(table)
    own = engine.states(layer).astype(np.float64)
    cov, fit = (
        covariance(rows, z[train]),
        fit_ridge(x[train][None].astype(np.float32), z[train], criterion="generalised"),
    )
    probe = fit.weights[0].astype(np.float64)
    edits = {"leace": leace(cov), "shrunk": erase(cov, probe), "orthogonal": orthogonal(probe, cov.mean)}
    every = {name: apply_edit(edit, own) for name, edit in edits.items()}
    every["other_groups"] = _without_groups(rows, z[train], own, train, table, question, asked)
    _, right = question.answers(table)
    onehot = np.eye(len(asked.names) + 1)[right[train]]
    every["answers"] = apply_edit(leace(with_targets(cov, rows, onehot)), own)
    unrelated = _unrelated(table, z.shape[1])
    every["unrelated"] = apply_edit(leace(with_targets(cov, rows, unrelated[train])), own)
    every["spelling"] = apply_edit(leace(with_targets(cov, rows, spelled[train])), own)
    other = rng.permutation(len(own))
    every["interchange"] = own[np.where(asked.right[other] != asked.right, other, (np.arange(len(own)) + 1) % len(own))]

    goal = asked.places[asked.goal]
    along = lambda target, c: apply_edit(steer(probe, fit.intercept[0], cov.mean, target, c), own)
    every["least_norm"], every["covariance"] = along(goal, None), along(goal, cov)
    step = every["covariance"] - own
    every["half"], every["twice"] = own + step / 2, own + 2 * step
    every["surface"] = own + _along_surface(x, kernels, table, asked, z, seed)
    means = np.stack(
        [rows[right[train] == i].mean(0) if (right[train] == i).any() else cov.mean for i in range(len(asked.names))]
    )
    every["answer_means"] = own + means[asked.goal] - means[asked.right]
    every["random_shift"] = own + random_shifts(rng, rows, np.linalg.norm(step, axis=1))
    every["elsewhere"] = along(goal[rng.permutation(len(goal))], cov)

    names, all_answers = (*ERASURES, *SHIFTED), (tuple(range(len(engine.choices.paths))),) * len(own)
    stacked = lambda names: np.stack([every[name] for name in names], 1)
    erased = engine.edited(layer, stacked(ERASURES), everything=(0, engine.points - 1))
    shifted = engine.edited(layer, stacked(SHIFTED), everything=False, points=all_answers)
    clean = engine.clean(everything=False).log_odds(engine.choices)
    found: dict[str, np.ndarray] = {
        "odds": np.concatenate([said.log_odds(engine.choices) for said in (erased, shifted)], axis=1),
        "clean": clean[:, 0],
        "kl": erased.kl[:, :, [0, -1]],
        "size": np.linalg.norm(stacked(names) - own[:, None], axis=2),
    }
    orders = [rng.permutation(len(train)) for _ in range(options.draws)]
    permuted = _erasers(cov, rows, [z[train][order] for order in orders])
    for part in ("read", "write", "mean"):
        found[f"permuted_{part}"] = np.stack([getattr(edit, part) for edit in permuted[:LATER]])
    if layer >= 0:  # the embedding, which alone tells the spelling, is a rival and is itself not tested
        change = lambda draws: _change(engine, layer, draws, asked)
        found["permuted"] = change(np.stack([apply_edit(edit, own) for edit in permuted], 1))
        removed = removed_variance(edits["leace"], cov)
        subspaces = [random_subspace(rng, cov, edits["leace"].rank, removed) for _ in range(options.draws)]
        found["subspaces"] = change(np.stack([apply_edit(edit, own) for edit in subspaces], 1))
        size = np.linalg.norm(every["leace"] - own, axis=1)
        found["differences"] = change(np.stack([own + random_shifts(rng, rows, size) for _ in range(SHIFTS)], 1))
        if reworded is not None:
            states = reworded.states(layer).astype(np.float64)
            draws = [apply_edit(edit, states) for edit in (edits["leace"], *permuted[:REWORDED])]
            found["reworded"] = _change(reworded, layer, np.stack(draws, 1), asked)
    return found | _what_is_left(x, z, table, cov, edits, fit, unrelated, seed)


def _erasers(cov: Covariance, rows: np.ndarray, targets: Sequence[np.ndarray]) -> list[Edit]:
    """LEACE of several targets [N, T] of the same rows, by one product for all of them."""
    joined = with_targets(cov, rows, np.concatenate(targets, axis=1))
    every = zip(*(np.split(part, len(targets), axis=-1) for part in joined[-3:]), strict=True)
    return [leace(Covariance(*joined[:-3], *own)) for own in every]


def _change(engine: Continuations, layer: int, draws: np.ndarray, asked: _Asked) -> np.ndarray:
    """[E, M] change of the right answer's log-odds with draws [E, M, D] of the states."""
    said = engine.edited(layer, draws, everything=False, points=engine.points_of(asked.right))
    clean = engine.clean(everything=False)
    return _right(said.log_odds(engine.choices), asked) - _right(clean.log_odds(engine.choices), asked)


def _right(odds: np.ndarray, asked: _Asked) -> np.ndarray:
    """[E, M] log-odds of the right answer."""
    return np.take_along_axis(odds, asked.right[:, None, None], 2)[..., 0]


def _without_groups(
    rows: np.ndarray,
    z: np.ndarray,
    own: np.ndarray,
    train: np.ndarray,
    table: EntityTable,
    question: Question,
    asked: _Asked,
) -> np.ndarray:
    """LEACE fitted without the entity's own group, and without those that are left out together with it."""
    labels = _groups_of(table, question, question.answers(table)[1])
    fold_of = {label: i % FOLDS for i, label in enumerate(np.unique(labels))}
    fold = np.array([fold_of[label] for label in labels])
    edited = own.copy()
    for i in range(FOLDS):
        mine, rest = fold[asked.rows] == i, fold[train] != i
        if mine.any() and rest.sum() > rows.shape[1] // 4 + 2:
            edited[mine] = apply_edit(leace(covariance(rows[rest], z[rest])), own[mine])
    return edited


def _unrelated(table: EntityTable, count: int) -> np.ndarray:
    """[N, count] what names look like and nothing of what they name: length, words, vowels, ..."""
    texts = table.texts
    features = np.stack([
        [len(text) for text in texts],
        [text.count(" ") for text in texts],
        [sum(letter in "aeiou" for letter in text.lower()) / max(len(text), 1) for text in texts],
    ], axis=1).astype(float)  # fmt: skip
    return features[:, : min(count, 3)]


def _spelled(table: EntityTable, seed: int) -> np.ndarray:
    """[N, T] what the spelling says of every row: by halves of the rows, each fitted on the other half."""
    half = np.random.default_rng(seed).random(len(table)) < 0.5
    guess = np.zeros(table.targets.shape)
    for left_out in (half, ~half):
        guess[left_out] = predict_from_ngrams(table.texts, table.targets, left_out, seed).predictions
    return guess


def _sphere(values: np.ndarray, table: EntityTable) -> np.ndarray:
    """Standardised targets [N, T] in coordinates whose distance has a meaning: of places, points on the unit sphere."""
    mean, scale = _spread(table)
    return unit_vectors(*(values * scale + mean).T) if table.is_place else values


def _some_training_rows(table: EntityTable, seed: int) -> np.ndarray:
    """PROBE_ROWS of the table's, or all."""
    train = np.flatnonzero(~table.is_test)
    return train[np.random.default_rng(seed).permutation(len(train))[:PROBE_ROWS]]


def _along_surface(
    x: np.ndarray, kernels: Kernels, table: EntityTable, asked: _Asked, z: np.ndarray, seed: int
) -> np.ndarray:
    surface = fit_surface(kernels, np.asarray(x[_some_training_rows(table, seed)], np.float32))
    at = lambda values: surface_at(surface, _sphere(values, table))
    return at(asked.places[asked.goal]) - at(z[asked.rows])


def _what_is_left(
    x: np.ndarray,
    z: np.ndarray,
    table: EntityTable,
    cov: Covariance,
    edits: Mapping[str, Edit],
    fit: RidgeFit,
    unrelated: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Test 2: R2 on training rows by least squares after LEACE, and on test rows by probes fitted anew."""
    rng = np.random.default_rng(seed)
    train, test = (
        np.sort(rng.permutation(np.flatnonzero(rows))[:PROBE_ROWS]) for rows in (~table.is_test, table.is_test)
    )
    erased = apply_edit(edits["leace"], np.asarray(x[~table.is_test], np.float64))
    again = covariance(erased, z[~table.is_test])
    whitened = (again.vectors.T @ again.cross) / np.sqrt(again.values)[:, None]
    found = {"left_train": (whitened**2).sum(0)}
    predicted = lambda fitted, values: predict_layer(fitted, 0, values)
    found["before"] = r2(z[test], predicted(fit, x[test].astype(np.float32)))
    for name, edit in edits.items():
        a, b = (apply_edit(edit, x[rows].astype(np.float32)) for rows in (train, test))
        found[f"left_{name}"] = r2(z[test], predicted(fit_ridge(a[None], z[train], criterion="generalised"), b))
    a, b = (apply_edit(edits["leace"], x[rows].astype(np.float32)) for rows in (train, test))
    spread = np.maximum(a.std(0), 1e-12)
    found["left_mlp"] = r2(
        z[test], predict_mlp(fit_mlp(a[None], z[train], max_epochs=20, weight_decays=(0.1,)), b[None])[0]
    )
    kernel = fit_surface(decompose_kernels(a / spread, (0.5, 1.0)), z[train])
    found["left_kernel"] = r2(z[test], surface_at(kernel, b / spread))
    fitted = fit_ridge(x[train][None].astype(np.float32), unrelated[train], criterion="generalised")
    found["unrelated_r2"] = r2(unrelated[test], predicted(fitted, x[test].astype(np.float32)))
    return found


# ---- All later layers ---------------------------------------------------------------------------------------------


def _training_rows(
    model: LanguageModel, run: Run, question: Question, layers: Sequence[int]
) -> tuple[Continuations, np.ndarray]:
    """A sample of training rows, ready to be edited, and their targets [N, T], in deviations."""
    rows = np.sort(_some_training_rows(run.table, run.settings.seed))
    targets = run.table.targets[rows]
    texts = [run.table.texts[row] for row in rows]
    engine = read_continuations(model, texts, question.template, [" "], [layer for layer in layers if layer >= 0])
    return engine, targets - targets.mean(0)


def _all_later(
    engine: Continuations,
    training: tuple[Continuations, np.ndarray],
    parts: Mapping[int, Mapping[str, np.ndarray]],
    asked: _Asked,
) -> dict[str, np.ndarray]:
    """Change of the right answer's log-odds with an eraser at every edited layer from one on, by that layer.

    The erasers are fitted in order, each on states that were already erased at the layers before it.

    Returns:
      FIRST.entity and FIRST.after, each [E]: at the name's last token, and at that token and all later ones; and
      FIRST.permuted [E, M] of the first layer: permuted erasers, fitted on unedited states.
    """
    layers, found = sorted(layer for layer in parts if layer >= 0), {}
    clean, points = (
        _right(engine.clean(everything=False).log_odds(engine.choices), asked),
        engine.points_of(asked.right),
    )
    rows, z = training

    def change(edits: Mapping[int, tuple[np.ndarray, ...]], where: str) -> np.ndarray:
        said = engine.edited_on_the_way(edits, where=where, everything=False, points=points)
        return (_right(said.log_odds(engine.choices), asked) - clean)[:, 0]

    for i, first in enumerate(layers):
        states, edits = rows.states(first).astype(np.float64), {}
        for layer, following in zip(layers[i:], [*layers[i + 1 :], None], strict=True):
            edits[layer] = leace(covariance(states, z))
            if following is not None:
                erased = apply_edit(edits[layer], states)[:, None].astype(np.float32)
                states = rows.states_after(layer, erased, following)[:, 0].astype(np.float64)
        for where in ("entity", "after"):
            found[f"{first}.{where}"] = change(edits, where)
    permuted = lambda draw: {
        layer: (*(parts[layer][f"permuted_{part}"][draw] for part in ("read", "write", "mean")), 0.0)
        for layer in layers
    }
    draws = range(len(parts[layers[0]]["permuted_read"]))
    found[f"{layers[0]}.permuted"] = np.stack([change(permuted(draw), "entity") for draw in draws], 1)
    return found


# ---- The table ----------------------------------------------------------------------------------------------------


class _Frame:
    """Rows of the tidy table."""

    def __init__(self, columns: Mapping[str, object]):
        self.columns = dict(columns)
        self.rows: list[dict] = []

    def add(
        self,
        test: str,
        layer: str,
        edit: str,
        metric: str,
        mean: Mean,
        *,
        n: int = 0,
        p: float = math.nan,
        resampled: str = "",
    ) -> None:
        self.rows.append(
            self.columns
            | {"test": test, "layer": layer, "edit": edit, "metric": metric}
            | mean._asdict()
            | {"p": p, "n": n, "resampled": resampled, "text": ""}
        )

    def say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.add("sentence", "", "", "", Mean(math.nan, math.nan, math.nan))
            self.rows[-1]["text"] = line

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def _tabulate(
    frame: _Frame,
    parts: Mapping[int, Mapping[str, np.ndarray]],
    later: Mapping[str, np.ndarray],
    asked: _Asked,
    site: Mapping[int, str],
    what: str,
    question: Question,
    options: Options,
) -> None:
    """Rows of every test, and the sentences that follow."""
    names, count = (*ERASURES, *SHIFTED), len(asked.rows)
    index = {name: i for i, name in enumerate(names)}
    effects, counted, draws = {}, {}, {}
    pick = np.random.default_rng(0).integers(0, SHIFTS, (count, options.draws))
    nothing = lambda value: Mean(float(value), math.nan, math.nan)
    for layer, part in parts.items():
        name, clean = site[layer], np.take_along_axis(part["clean"], asked.right[:, None], 1)[:, 0]
        for test, metric in (("left_train", "r2_train"), ("before", "r2"), ("unrelated_r2", "r2")):
            frame.add(
                "erased",
                name,
                {"left_train": "leace", "before": "none"}.get(test, "unrelated"),
                metric,
                nothing(part[test].max() if test == "left_train" else part[test].mean()),
            )
        for left in ("leace", "shrunk", "orthogonal", "mlp", "kernel"):
            frame.add(
                "erased",
                name,
                left if left in index else f"leace, read by {left}",
                "r2",
                nothing(part[f"left_{left}"].mean()),
            )
        change = {edit: _right(part["odds"][:, [i]], asked)[:, 0] - clean for edit, i in index.items()}
        effects[layer] = change
        for edit in ERASURES:
            for resampled, groups in (("rows", None), ("groups", asked.groups)):
                frame.add(
                    "necessity", name, edit, "log_odds", mean_of(change[edit], groups), n=count, resampled=resampled
                )
            kept = part["odds"][:, index[edit]].argmax(1) == asked.right
            frame.add("necessity", name, edit, "accuracy", mean_of(kept), n=count, resampled="rows")
            frame.add("necessity", name, edit, "size", nothing(part["size"][:, index[edit]].mean()), n=count)
            for column, metric in enumerate(("kl", "kl_neutral")):
                frame.add(
                    "selectivity",
                    name,
                    edit,
                    metric,
                    mean_of(part["kl"][:, index[edit], column]),
                    n=count,
                    resampled="rows",
                )
        _moves(frame, name, part, asked, index)
        if layer < 0:
            continue
        every = {
            "permuted": part["permuted"],
            "random subspaces": part["subspaces"],
            "random differences": np.take_along_axis(part["differences"], pick, 1),
        }
        to_chance = lambda changes, clean=clean: _to_chance(changes, clean, asked).mean(0)
        [counted[layer]] = to_chance(change["leace"][:, None])
        draws[layer] = {control: to_chance(changes) for control, changes in every.items()}
        for control, changes in every.items():
            values = changes.mean(0)
            low, high = np.quantile(values, (0.025, 0.975))
            p = p_value(counted[layer], draws[layer][control])
            frame.add(
                "controls",
                name,
                control,
                "log_odds",
                Mean(values.mean(), low, high),
                n=len(values),
                p=p,
                resampled="draws",
            )
        beside = {
            "permuted": part["permuted"].mean(1),
            "random subspaces": part["subspaces"].mean(1),
            "random differences": part["differences"].mean(1),
            "unrelated": change["unrelated"],
        }
        for control, values in beside.items():
            for resampled, groups in (("rows", None), ("groups", asked.groups)):
                frame.add(
                    "controls",
                    name,
                    f"leace less {control}",
                    "log_odds",
                    mean_of(change["leace"] - values, groups),
                    n=count,
                    resampled=resampled,
                )
        if "reworded" in part:
            own, permuted = part["reworded"][:, 0], part["reworded"][:, 1:].mean(1)
            for edit, values in (("leace", own), ("permuted", permuted), ("leace less permuted", own - permuted)):
                frame.add("reworded", name, edit, "log_odds", mean_of(values), n=count, resampled="rows")
    for key, values in later.items():
        first, where = key.split(".")
        edit = {"entity": "leace", "after": "leace, that token and later ones", "permuted": "permuted"}[where]
        if where == "permuted":
            mean, n, resampled = (
                Mean(values.mean(), *np.quantile(values.mean(0), (0.025, 0.975))),
                values.shape[1],
                "draws",
            )
        else:
            mean, n, resampled = mean_of(values), count, "rows"
        frame.add("all later layers", site[int(first)], edit, "log_odds", mean, n=n, resampled=resampled)
    frame.say(_conclude(parts, effects, counted, draws, asked, site, what, question, frame, index))


def _to_chance(change: np.ndarray, clean: np.ndarray, asked: _Asked) -> np.ndarray:
    """Changes [E, M] of the right answer's log-probability, each counted down to that of chance at most.

    An eraser that is right takes an answer to chance and no further. One at random leaves most answers as they are and
    turns some into their contrary, at several nats each: in a plain mean these few would outweigh it.
    """
    lowest = np.minimum(-np.log(len(asked.names)) - clean, 0)
    return np.maximum(change, lowest[:, None])


def _expected(odds: np.ndarray, asked: _Asked) -> np.ndarray:
    """[E, T] the place that the answers' distribution stands for."""
    return np.exp(odds) @ asked.places


def _moves(frame: _Frame, name: str, part: Mapping[str, np.ndarray], asked: _Asked, index: Mapping[str, int]) -> None:
    """Test 6: how far the answers' mean place moved along what was asked, and across."""
    before = _expected(part["clean"], asked)
    odds = lambda values: values[np.arange(len(values)), asked.goal] - values[np.arange(len(values)), asked.right]
    for shift in SHIFTED:
        values = part["odds"][:, index[shift]]
        along, across = _shares(_expected(values, asked) - before, asked.places[asked.goal] - before)
        frame.add("moved", name, shift, "along", mean_of(along), n=len(along), resampled="rows")
        frame.add("moved", name, shift, "across", mean_of(across), n=len(along), resampled="rows")
        frame.add(
            "moved",
            name,
            shift,
            "log_odds",
            mean_of(odds(values) - odds(part["clean"])),
            n=len(along),
            resampled="rows",
        )
        frame.add(
            "moved", name, shift, "goal_first", mean_of(values.argmax(1) == asked.goal), n=len(along), resampled="rows"
        )


def _shares(moved: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each entity what it moved along and across what was asked, in mean squares of what was asked."""
    size = (asked**2).sum(1).mean()
    turned = np.stack([-asked[:, 1], asked[:, 0]], 1) if asked.shape[1] == 2 else np.zeros_like(asked)
    return (moved * asked).sum(1) / size, (moved * turned).sum(1) / size


def _conclude(
    parts: Mapping[int, Mapping[str, np.ndarray]],
    effects: Mapping[int, Mapping[str, np.ndarray]],
    counted: Mapping[int, float],
    draws: Mapping[int, Mapping[str, np.ndarray]],
    asked: _Asked,
    site: Mapping[int, str],
    what: str,
    question: Question,
    frame: _Frame,
    index: Mapping[str, int],
) -> list[str]:
    """The sentences, from the layers after the embedding, which alone tells the spelling."""
    layers = [layer for layer in parts if layer >= 0]
    observed = np.array([counted[layer] for layer in layers])
    p = {}
    for control in draws[layers[0]]:
        p[control], _ = p_of_family(observed, np.stack([draws[layer][control] for layer in layers]))
        frame.add("controls", "", control, "family", Mean(p[control], math.nan, math.nan), p=p[control], n=len(layers))
    _, at = p_of_family(observed, np.stack([draws[layer]["permuted"] for layer in layers]))
    best = layers[at]
    change, part = effects[best], parts[best]
    nearest = max(
        (part["permuted"].mean(1), part["subspaces"].mean(1), part["differences"].mean(1), change["unrelated"]),
        key=lambda values: -values.mean(),
    )
    before = {layer: _expected(parts[layer]["clean"], asked) for layer in layers}
    share = lambda layer, shift: _shares(
        _expected(parts[layer]["odds"][:, index[shift]], asked) - before[layer],
        asked.places[asked.goal] - before[layer],
    )
    most = max(layers, key=lambda layer: share(layer, "covariance")[0].mean())
    kl = part["kl"][:, index["leace"]].mean(0)
    evidence = Evidence(
        competent=True,
        erased=max(float(parts[layer]["left_train"].max()) for layer in layers),
        p=p,
        layer=site[best],
        effect=mean_of(change["leace"], asked.groups),
        beside=mean_of(change["leace"] - nearest, asked.groups),
        moved=mean_of(share(most, "covariance")[0], asked.groups),
        moved_at_random=mean_of(share(most, "random_shift")[0], asked.groups),
        across=mean_of(share(most, "covariance")[1], asked.groups),
        moved_layer=site[most],
        kl=(float(kl[0]), float(kl[1])),
    )
    return sentences(what, question.asks, evidence)


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The answers' accuracy, the effect by layer beside its controls, and the sentences."""
    effect = frame["edit"].isin(("leace", "unrelated", "permuted", "random subspaces", "random differences"))
    kept = frame["test"].isin(("necessity", "controls")) & effect & (frame["metric"] == "log_odds")
    kept &= frame["resampled"] != "groups"
    kept |= (frame["test"] == "competence") | (frame["test"] == "sentence")
    return frame[kept][["test", "layer", "edit", "metric", "value", "ci_low", "ci_high", "p", "text"]]


def figures(frame: pd.DataFrame) -> list:
    """For each run: the effect by layer beside its controls, and how far a shift moves the answer."""
    from matplotlib.figure import Figure

    from jaxprobe.report.canvas import FAINT, area, house_style, write_title
    from jaxprobe.report.maps import OKABE_ITO

    panels = {
        "Change of the right\nanswer's log-odds (nats)": ("necessity", "controls", "log_odds", {
            "leace": "erased (LEACE)", "orthogonal": "orthogonal projection", "unrelated": "an unrelated target erased",
            "permuted": "permuted targets erased", "random subspaces": "random subspaces",
            "random differences": "random changes of that size",
        }),
        "Moved, of what was asked": ("moved", "moved", "along", {
            "covariance": "along the covariance", "least_norm": "least norm", "surface": "along the surface",
            "answer_means": "difference of answer means", "random_shift": "random change",
            "elsewhere": "towards elsewhere",
        }),
    }  # fmt: skip
    drawn = []
    for (_, asked), part in frame[frame["layer"] != ""].groupby(["run", "question"], sort=False):
        layers = list(dict.fromkeys(part["layer"]))
        with house_style():
            figure = Figure(figsize=(7.2, 6.4))
            grid = area(figure, left=0.9, right=2.3, bottom=0.6, top=0.95).subgridspec(2, 1, hspace=0.12)
            for row, (label, (first, second, metric, edits)) in enumerate(panels.items()):
                axes = figure.add_subplot(grid[row])
                shown = part[
                    part["test"].isin((first, second)) & (part["metric"] == metric) & (part["resampled"] != "groups")
                ]
                for (edit, words), colour in zip(edits.items(), OKABE_ITO, strict=False):
                    line = shown[shown["edit"] == edit].set_index("layer").reindex(layers)
                    if line["value"].notna().any():
                        at = np.arange(len(layers))
                        axes.fill_between(at, line["ci_low"], line["ci_high"], alpha=0.15, lw=0, color=colour)
                        axes.plot(at, line["value"], color=colour, linewidth=1.6, label=words)
                axes.axhline(0, color=FAINT, linewidth=0.8)
                axes.set_xticks(range(len(layers)), layers if row else [""] * len(layers))
                axes.set_ylabel(label, fontsize=8.5)
                axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
            axes.set_xlabel("Layer that is edited, at the entity's last token")
            write_title(
                figure,
                "Does the model use what the probe reads?",
                f"{part['model'].iloc[0]} · {part['dataset'].iloc[0]} · {asked} · 95 % intervals",
            )
        drawn.append(figure)
    return drawn
