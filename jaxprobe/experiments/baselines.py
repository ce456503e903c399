"""Predictions that no hidden state is needed for, and targets with their meaning taken away."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from threadpoolctl import threadpool_limits

from jaxprobe.data.table import EntityTable

NGRAM_ALPHAS = 10.0 ** np.linspace(-1, 1.5, 6)  # rows have norm 1; on four tables the best one was near 1

PERMUTATIONS = 19  # the fewest that can give a p-value of 0.05


class Lexical(NamedTuple):
    """Predictions [N_test, C] from the spelling alone, in target units, and the penalty chosen."""

    predictions: np.ndarray
    alpha: float


def predict_from_ngrams(texts: Sequence[str], targets: np.ndarray, is_test: np.ndarray, seed: int = 0) -> Lexical:
    """Ridge from the characters of a name to its target: what the spelling tells without any model.

    Features are tf-idf weights of the 1- to 4-grams of characters inside words, word ends included, that two training
    names have; the penalty is the best of `NGRAM_ALPHAS` on a seeded quarter of the training rows.

    Args:
      texts: N names; targets: [N, C]; is_test: [N] bool, the rows that are predicted and not fitted on.
    """
    texts, train = np.asarray(texts, object), ~is_test
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform(texts[train])
    mean, scale = targets[train].mean(0), targets[train].std(0)
    # The penalty decides the third digit at most; conjugate gradients to 1e-3 give as much.
    search = GridSearchCV(
        Ridge(solver="sparse_cg", tol=1e-3),
        {"alpha": NGRAM_ALPHAS},
        scoring="neg_mean_squared_error",
        cv=ShuffleSplit(1, test_size=0.25, random_state=seed),
    )
    with threadpool_limits(1, user_api="blas"):  # thousands of short products, which threads only slow down
        search.fit(features, (targets[train] - mean) / scale)
    predicted = search.predict(vectorizer.transform(texts[is_test])).reshape(-1, targets.shape[1])
    return Lexical(predicted * scale + mean, float(search.best_params_["alpha"]))


def predict_group_means(labels: np.ndarray, targets: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """[N_test, C] the mean target of the training rows of each test row's group; of all of them where it has none."""
    train = pd.DataFrame(targets[~is_test])
    means = train.groupby(labels[~is_test]).mean().reindex(labels[is_test])
    return means.fillna(train.mean()).to_numpy()


def exchange_groups(targets: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[N, C] targets in which every group has another group's mean, and its rows each other's deviations from it.

    A probe reads these as well as the true ones if all it needs of a row is which group it belongs to.
    """
    names, code, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(code, column) for column in targets.T], axis=1) / sizes[:, None]
    ring = rng.permutation(len(names))
    other = np.empty_like(ring)
    other[ring] = np.roll(ring, 1)  # around a ring, so that no group keeps its own
    by_group, shuffled = np.argsort(code, kind="stable"), np.lexsort((rng.random(len(code)), code))
    exchanged = np.empty_like(targets)
    exchanged[by_group] = (targets - means[code])[shuffled] + means[other[code[by_group]]]
    return exchanged


def centre_groups(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[..., N, C] less the mean of each row's group of labels [N]."""
    _, first, code, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    values = values - values[..., first[code], :]  # so that equal values of a group come out as 0, without rounding
    one_hot_sums = np.zeros((*values.shape[:-2], len(sizes), values.shape[-1]))
    np.add.at(one_hot_sums, (..., code, slice(None)), values)
    return values - (one_hot_sums / sizes[:, None])[..., code, :]


def shares_its_group(labels: np.ndarray) -> np.ndarray:
    """[N] whether another row has the same label; where no two rows do, all of them."""
    _, code, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return (sizes[code] > 1) | (sizes.max() == 1)


def groups_that_say_something(table: EntityTable) -> Iterator[tuple[str, np.ndarray]]:
    """The group columns, with their labels [N], that have two labels or more among training and test rows alike."""
    for group, labels in table.groups.items():
        labels = np.asarray(labels).astype(str)
        if min(len(np.unique(labels[table.is_test])), len(np.unique(labels[~table.is_test]))) > 1:
            yield group, labels
