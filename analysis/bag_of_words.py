"""A bag-of-words classifier on the partition of a run: what counting tokens, without any model, gives its clients.

A pair is the difference of its responses' token counts, x = count(chosen) - count(rejected); logistic regression
without intercept (Bradley-Terry on bags) minimises mean log(1 + exp(-w.x)) + penalty / (2 n) |w|^2 by Newton's method.
`local`: every client fits its own pairs; `pooled`: one fit of all. Pairs of flipped clients are swapped, as the run
swaps them. Like the methods of a study it has three trials, the penalties, chosen by mean validation accuracy over
clients. It sees all train pairs of the partition, a run's clients only those that they drew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .runfile import Run, RunFileError
from .stats import nan_mean

PENALTIES = (0.01, 0.1, 1.0)
SPLITS = ("train", "validation", "test")
NEWTON_STEPS = 30
PRECISION = 1e-6  # of the objective


@dataclass
class BagOfWords:
    """Test accuracy by client (C), NaN where a client has no test pairs, and the penalty that was chosen."""

    accuracy: np.ndarray
    penalty: float


def bag_of_words(run: Run) -> dict[str, BagOfWords]:
    """Fits `local` and `pooled` on the partition of `run`, which must hold its index lists.

    Reads the pair files that the run names, relative to the working directory. Raises RunFileError where one is missing
    or is no file of pairs.
    """
    bags = client_bags(run)
    clients = range(len(run.client_names))
    everything = np.concatenate([bags["train"][k] for k in clients])

    def fit_local(penalty: float) -> list[np.ndarray]:
        return [fit(bags["train"][k], penalty) for k in clients]

    def fit_pooled(penalty: float) -> list[np.ndarray]:
        return [fit(everything, penalty)] * len(clients)

    result = {}
    for name, fitted in (("local", fit_local), ("pooled", fit_pooled)):
        trials = [(penalty, fitted(penalty)) for penalty in PENALTIES]
        scores = [nan_mean(accuracies(bags["validation"], weights)) for _, weights in trials]
        best = int(np.argmax(np.nan_to_num(scores, nan=-1.0)))
        result[name] = BagOfWords(accuracies(bags["test"], trials[best][1]), trials[best][0])
    return result


def client_bags(run: Run) -> dict[str, list[np.ndarray]]:
    """By split and client the count differences of its pairs, (pairs, vocabulary), flips respected."""
    # The run writes its files one behind another; a lone name may hold a blank.
    data = run.config.get("data", "")
    several = any(run.partition.get(f"{split}/file", np.zeros(0)).any() for split in SPLITS)
    files = [pair_bags(Path(name), run) for name in (data.split(" ") if several else [data])]
    flipped = run.partition.get("flipped", np.zeros(len(run.client_names)))
    bags: dict[str, list[np.ndarray]] = {}
    for split in SPLITS:
        try:
            file, pair, offsets = (run.partition[f"{split}/{name}"] for name in ("file", "pair", "offsets"))
        except KeyError:
            raise RunFileError(run.path, f"has no index lists in /partition/{split}") from None
        bags[split] = []
        for k, (start, end) in enumerate(zip(offsets[:-1].astype(int), offsets[1:].astype(int))):
            rows = [files[f][p] for f, p in zip(file[start:end].astype(int), pair[start:end].astype(int))]
            bag = np.array(rows, dtype=np.float64).reshape(len(rows), files[0].shape[1])
            bags[split].append(-bag if flipped[k] else bag)
    return bags


def pair_bags(path: Path, run: Run) -> np.ndarray:
    """count(chosen) - count(rejected) of every pair of a file, (pairs, vocabulary)."""
    try:
        with h5py.File(path, "r") as file:
            shape = (file["chosen/offsets"].size - 1, int(file.attrs["vocab_size"]))
            difference = np.zeros(shape, dtype=np.int16)
            for name, sign in (("chosen", 1), ("rejected", -1)):
                tokens, offsets = file[f"{name}/tokens"][()], file[f"{name}/offsets"][()]
                owner = np.repeat(np.arange(shape[0]), np.diff(offsets.astype(np.int64)))
                np.add.at(difference, (owner, tokens.astype(np.int64)), sign)
            return difference
    except (OSError, KeyError, IndexError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a file of pairs"
        raise RunFileError(run.path, f"data: {path}: {reason}") from None


def fit(bags: np.ndarray, penalty: float) -> np.ndarray:
    """Weights (vocabulary) of the penalised logistic regression; zero where a token never makes a difference."""
    weights = np.zeros(bags.shape[1])
    used = np.flatnonzero(bags.any(axis=0))
    n = len(bags)
    if n == 0 or used.size == 0:
        return weights
    x, ridge, w = bags[:, used].astype(np.float32), penalty / n, np.zeros(used.size)

    def scores(w: np.ndarray) -> np.ndarray:
        return (x @ w.astype(np.float32)).astype(np.float64)

    def objective(w: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -scores(w)).mean() + 0.5 * ridge * w @ w)

    value = objective(w)
    for _ in range(NEWTON_STEPS):
        wrong = 0.5 * (1.0 - np.tanh(0.5 * scores(w)))  # probability of the other order
        slope = (wrong * (1.0 - wrong)).astype(np.float32)
        gradient = ridge * w - x.T @ wrong.astype(np.float32) / n
        curvature = (x * slope[:, None]).T @ x / n + ridge * np.eye(used.size)
        step, length = np.linalg.solve(curvature, gradient), 1.0
        while (new := objective(w - length * step)) > value and length > 1e-6:
            length *= 0.5
        if value - new < PRECISION:
            break
        w, value = w - length * step, new
    weights[used] = w
    return weights


def accuracies(bags: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """(C): share of a client's pairs with a positive score, a tie counting one half."""
    scores = [bag @ w for bag, w in zip(bags, weights)]
    return np.array([np.mean(0.5 + 0.5 * np.sign(score)) if score.size else np.nan for score in scores])
