"""The numbers behind tables and figures: which round, which values, mean and spread, and paired comparisons.

Spread is the sample standard deviation over seeds (n - 1). Deciles are the mean of the worst or best tenth of the
clients, rounded up to whole clients. No result here depends on anything but the files: the bootstrap's seed is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, lgamma, log

import numpy as np

from .grouping import Row
from .runfile import Run, RunFileError

LOWER_IS_BETTER = ("loss", "kl_to_reference", "grad_norm_shared", "grad_norm_private", "bytes_up", "bytes_down")
SELECTION_METRIC = "accuracy"
BOOTSTRAP_SAMPLES = 4000
BOOTSTRAP_SEED = 20260319


@dataclass(frozen=True)
class Query:
    """Which numbers of a run are asked for."""

    metric: str = "accuracy"
    split: str = "test"  # train, validation, test
    point: str = "after"  # after or before averaging; train has no such distinction
    round: str = "last"  # last, best-validation, or a number

    @property
    def dataset(self) -> str:
        return f"{self.split}/{self.metric}" if self.split == "train" else f"{self.split}/{self.point}/{self.metric}"

    @property
    def selection_dataset(self) -> str:
        return f"validation/{self.point}/{SELECTION_METRIC}"

    @property
    def needed(self) -> list[str]:
        """Paths in a run file that answer this query."""
        selection = [f"clients/{self.selection_dataset}"] if self.round == "best-validation" else []
        return [f"clients/{self.dataset}", *selection]

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER


def nan_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def client_means(values: np.ndarray) -> np.ndarray:
    """(R+1, C) -> (R+1): mean over the clients that have a value; NaN for rounds without any."""
    return np.array([nan_mean(row) for row in values])


def mean_sd(values: Sequence[float] | np.ndarray) -> tuple[float, float, int]:
    """Mean, sample standard deviation (NaN for fewer than two) and number of the finite values."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return float("nan"), float("nan"), 0
    sd = float(finite.std(ddof=1)) if finite.size > 1 else float("nan")
    return float(finite.mean()), sd, int(finite.size)


def tail_mean(values: np.ndarray, share: float, lowest: bool) -> float:
    """Mean of the lowest (or highest) `share` of the finite values, at least one of them."""
    finite = np.sort(values[np.isfinite(values)])
    if finite.size == 0:
        return float("nan")
    count = max(1, ceil(share * finite.size - 1e-9))
    return float(finite[:count].mean() if lowest else finite[-count:].mean())


def series(run: Run, query: Query) -> np.ndarray:
    """(R+1, C) of the metric asked for. Raises RunFileError where the file lacks it."""
    if query.dataset not in run.clients:
        raise RunFileError(run.path, f"has no dataset /clients/{query.dataset}; {available(run)}")
    return run.clients[query.dataset].astype(float)


def available(run: Run) -> str:
    """The metrics that a run holds, by split and point."""
    by_place: dict[str, list[str]] = {}
    for name in run.client_datasets:
        place, _, metric = name.rpartition("/")
        by_place.setdefault(place, []).append(metric)
    merged: dict[str, list[str]] = {}  # mostly the same at all splits and points
    for place, metrics in by_place.items():
        merged.setdefault(", ".join(metrics), []).append(place)
    listed = "; ".join(f"{' and '.join(places)}: {metrics}" for metrics, places in merged.items())
    return f"metrics by split and point: {listed or 'none'}"


def choose_round(run: Run, query: Query) -> int:
    """Index of the round that a table shows for this run.

    last: the last one in which the metric was evaluated. best-validation: of those, the one with the highest mean
    validation accuracy over the clients at the same point of evaluation, the earliest among equals; one round for all
    clients, as a federation would stop. A number: that round.
    """
    evaluated = np.isfinite(client_means(series(run, query)))
    if not evaluated.any():
        raise RunFileError(run.path, f"/clients/{query.dataset} holds no value")
    if query.round == "last":
        return int(np.flatnonzero(evaluated)[-1])
    if query.round == "best-validation":
        if query.selection_dataset not in run.clients:
            raise RunFileError(run.path, f"has no dataset /clients/{query.selection_dataset}")
        validation = np.where(evaluated, client_means(run.clients[query.selection_dataset]), np.nan)
        if not np.isfinite(validation).any():
            raise RunFileError(run.path, f"/clients/{query.selection_dataset} holds no value to choose a round by")
        return int(np.nanargmax(validation))
    index = np.flatnonzero(run.rounds["round"] == int(query.round))
    if index.size == 0:
        raise RunFileError(run.path, f"has no round {query.round}, its last is {run.rounds['round'][-1]}")
    if not evaluated[index[0]]:
        raise RunFileError(run.path, f"{query.dataset} was not evaluated in round {query.round}")
    return int(index[0])


def client_values(run: Run, query: Query) -> np.ndarray:
    """(C) values of the metric in the chosen round."""
    return series(run, query)[choose_round(run, query)]


@dataclass
class Comparison:
    """Correctness of a row's final models minus a baseline's on the same test pairs."""

    label: str
    difference: float = float("nan")  # mean over seeds and clients of each client's mean difference
    low: float = float("nan")  # 95% interval, bootstrap over test pairs
    high: float = float("nan")
    wins: int = 0  # test pairs on which the row is right in more seeds than the baseline
    losses: int = 0
    p_value: float = float("nan")  # exact two-sided sign test of wins against losses
    seeds: int = 0
    pairs: int = 0  # different test pairs
    problem: str = ""  # why there are no numbers


def correctness(margin: np.ndarray) -> np.ndarray:
    """1 where the chosen answer is preferred, 0 where the rejected one is, one half for a tie, NaN for NaN."""
    return np.where(np.isnan(margin), np.nan, np.where(margin > 0, 1.0, np.where(margin < 0, 0.0, 0.5)))


def _final_pairs(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Identity (P, 3) [client, file, pair] and correctness (P) of a run's test pairs, in order of identity."""
    columns = [run.final.get(f"test/{name}") for name in ("client", "file", "pair", "margin")]
    if any(column is None for column in columns):
        raise RunFileError(run.path, "has no /final/test")
    client, file, pair, margin = columns
    identity = np.stack([np.asarray(column).astype(np.int64) for column in (client, file, pair)], axis=1)
    order = np.lexsort(identity.T[::-1])
    return identity[order], correctness(np.asarray(margin, dtype=float)[order])


def compare(row: Row, baseline: Row) -> Comparison:
    """Pairs two rows seed by seed and test pair by test pair.

    A test pair that several seeds share is one unit of resampling and one vote of the sign test, so repeated seeds
    do not count as independent test data. The interval speaks of new test pairs for these trained models.
    """
    result = Comparison(row.label)
    other = {run.seed: run for run in baseline.runs}
    units, weights, gains = [], [], []
    try:
        for run in row.runs:
            if run.seed not in other:
                continue
            identity, right = _final_pairs(run)
            base_identity, base_right = _final_pairs(other[run.seed])
            if not np.array_equal(identity, base_identity):
                result.problem = f"the test pairs of seed {run.seed} are not the same"
                return result
            gain = right - base_right
            valid = np.isfinite(gain)
            identity, gain = identity[valid], gain[valid]
            clients, which, sizes = np.unique(identity[:, 0], return_inverse=True, return_counts=True)
            units.append(identity[:, 1:])
            weights.append(1.0 / (sizes[which] * clients.size))
            gains.append(gain)
            result.seeds += 1
    except RunFileError as error:
        result.problem = str(error)
        return result
    if result.seeds == 0 or sum(gain.size for gain in gains) == 0:
        result.problem = "no seed in common" if result.seeds == 0 else "no test pairs"
        return result
    unique, unit = np.unique(np.concatenate(units), axis=0, return_inverse=True)
    unit = unit.reshape(-1)  # NumPy 2.0 alone returns a column here
    weight, gain = np.concatenate(weights), np.concatenate(gains)
    value = np.bincount(unit, weight * gain)  # (units)
    total = np.bincount(unit, weight)
    votes = np.bincount(unit, gain)
    result.pairs = len(unique)
    result.difference = float(value.sum() / total.sum())
    result.low, result.high = _bootstrap_ratio(value, total)
    result.wins, result.losses = int((votes > 0).sum()), int((votes < 0).sum())
    result.p_value = sign_test(result.wins, result.losses)
    return result


def _bootstrap_ratio(value: np.ndarray, total: np.ndarray) -> tuple[float, float]:
    """Percentile 95% interval of sum(value) / sum(total) under resampling of units."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    chunk = max(1, 4_000_000 // value.size)
    samples: list[np.ndarray] = []
    for start in range(0, BOOTSTRAP_SAMPLES, chunk):
        index = rng.integers(value.size, size=(min(chunk, BOOTSTRAP_SAMPLES - start), value.size))
        samples.append(value[index].sum(axis=1) / total[index].sum(axis=1))
    low, high = np.quantile(np.concatenate(samples), [0.025, 0.975])
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial test of wins = losses; on single pairs of one seed this is McNemar's exact test."""
    n = wins + losses
    if n == 0:
        return 1.0
    k = np.arange(min(wins, losses) + 1)
    log_terms = np.array([lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) - n * log(2.0) for i in k])
    return float(min(1.0, 2.0 * np.exp(log_terms).sum()))
