"""Class probes of every state with their scores, for a table of labels."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.experiments.tables import tidy_scores
from jaxprobe.host.processes import gather_rows, share
from jaxprobe.host.progress import Progress, default_reporter
from jaxprobe.html import html_table, scores_in_words
from jaxprobe.probes.class_metrics import score_classes
from jaxprobe.probes.labels import ClassFit, class_scores, fit_state
from jaxprobe.probes.lengths import length_notes, row_lengths

# What penalties and headline are chosen by, on the training rows.
CRITERIA = {"ridge": "leave_one_out", "means": "leave_one_out", "lda": "validation", "logistic": "validation"}


class ClassProbes(NamedTuple):
    """Class probes of every state with their scores.

    Attributes:
      states: L state names.
      fit: the probes, in the order of ``states``.
      classifier: what they were fitted by.
      headline: the state with the least log-loss by the criterion; test scores play no part in it.
      scores: one row for each state, target, split and metric (the columns of a run's scores); the target is the
        label's column, and "mean", under which every table of scores has its one number a state.
      test_predictions: [L, N_test, K] log-probabilities.
      notes: sentences that a reader should see: rows with huge states.
    """

    states: tuple[str, ...]
    fit: ClassFit
    classifier: str
    headline: str
    scores: pd.DataFrame
    test_predictions: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def criterion(self) -> str:
        """What chose penalties and headline, on the training rows."""
        return CRITERIA[self.classifier]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What probes.safetensors keeps: the softmax of x @ weights + intercept is the probability of each class."""
        names = {"weights": "weights", "intercept": "intercept", "alpha": "alpha", "loss": f"{self.criterion}_log_loss"}
        return {name: getattr(self.fit, field) for field, name in names.items()}

    def metadata(self, table: EntityTable) -> dict[str, Any]:
        """What probes.safetensors says of its arrays."""
        return {"targets": (table.label,), "classes": self.fit.classes, "fitted": "labels", "units": ("",)}

    def prediction_frame(self, table: EntityTable) -> pd.DataFrame:
        """The test rows' predictions at every state: layer, row, predicted_<label>, its probability, the true one's."""
        rows = np.flatnonzero(table.is_test)
        true = table.targets[rows].argmax(axis=1)
        frames = []
        for state, log_p in zip(self.states, self.test_predictions, strict=True):
            best = log_p.argmax(axis=1)
            columns = {
                "layer": state,
                "row": rows.astype(np.int32),
                f"predicted_{table.label}": np.array(self.fit.classes, object)[best],
                "probability": np.exp(log_p[np.arange(len(rows)), best]).astype(np.float32),
                "true_probability": np.exp(log_p[np.arange(len(rows)), true]).astype(np.float32),
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        return f"ClassProbes({len(self.states)} states, {len(self.fit.classes)} classes; headline {self.headline})"

    def _repr_html_(self) -> str:
        """For notebooks: test scores by layer."""
        heads, rows, marked = scores_in_words(self.scores, self.headline)
        return html_table(heads, rows, f"Test scores. *: chosen by {self.criterion} on the training rows.", marked)


def fit_class_probes(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    *,
    classifier: str = "ridge",
    model: str = "",
    prompt: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> ClassProbes:
    """Fits a class probe on each state's training rows and scores it on both splits.

    Of several processes each fits some of the states, and all return the same.

    Args:
      activations: state -> [N, D], in the table's row order.
      table: the entities, their labels and their split.
      classifier: one of `probes.labels.CLASSIFIERS`.
      model, prompt: for the columns of the score table.
      seed: of the bootstrap, and of the rows set apart.

    Returns:
      Probes and scores: those of `class_metrics.score_classes`; 95 % intervals by a bootstrap over test rows with the
      probe fixed.
    """
    states, train = tuple(activations), ~table.is_test
    code = table.targets.argmax(axis=1)
    here = share(len(states))
    join = functools.partial(gather_rows, rows=here)
    fits, predicted, lengths = [], [], []
    with (progress or default_reporter()).task("fit", len(here), "states") as advance:
        for layer in here:
            x = activations[states[layer]]
            fits.append(fit_state(x[train], code[train], classifier, seed=seed, name=states[layer]))
            weights, intercept = fits[-1][0][None].astype(np.float32), fits[-1][1][None]
            one = ClassFit(table.target_names, weights, intercept, np.empty(0), np.empty(0))
            predicted.append(class_scores(one, 0, x).astype(np.float32))
            lengths.append(row_lengths(x))
            advance(1)
    mine: dict[str, np.ndarray] = {}
    if fits:
        names = ("weights", "intercept", "alpha", "loss")
        mine = {name: np.stack(values) for name, values in zip(names, zip(*fits, strict=True), strict=True)}
        mine |= {"predictions": np.stack(predicted), "lengths": np.stack(lengths)}
    whole = join(mine)
    predictions, every_length = whole.pop("predictions"), whole.pop("lengths")
    fit = ClassFit(table.target_names, **(whole | {"weights": whole["weights"].astype(np.float32)}))
    frames = []
    for split, rows, replicates in (("train", train, 0), ("test", table.is_test, 1000)):
        scores = score_classes(code[rows], predictions[:, rows], replicates=replicates, seed=seed)
        tidy = tidy_scores(table, scores, states, fit.alpha, split=split, model=model, prompt=prompt)
        frames += [tidy, tidy.assign(target=table.label)]
    headline = states[int(np.argmin(fit.loss))]
    scores = pd.concat(frames, ignore_index=True)
    notes = length_notes(every_length, states, headline, table.texts, np.arange(len(table)))
    return ClassProbes(states, fit, classifier, headline, scores, predictions[:, table.is_test], tuple(notes))
