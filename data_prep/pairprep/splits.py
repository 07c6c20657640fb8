"""Divides pairs into train, validation and test so that no prompt is on two sides, stratified by category.

Groups are never torn: pairs of one prompt, or with "connected" everything reachable over shared prompts and
shared responses. A seeded hash of a group's content decides its turn, so the order of the rows does not matter.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

SPLIT_NAMES = ("train", "validation", "test")
Digest = bytes
EMPTY = hashlib.blake2b(b"", digest_size=16).digest()


def digest(text: str) -> Digest:
    """A 16-byte stand-in for a text, so that a million prompts need not stay in memory."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def seeded_digest(seed: int, *parts: bytes) -> Digest:
    """A hash that orders things at random, yet the same for the same seed and content."""
    return hashlib.blake2b(b"".join(parts), digest_size=16, key=f"fedpdpo-{seed}".encode()[:64]).digest()


def group_by_prompt(prompts: Sequence[Digest], chosen: Sequence[Digest], rejected: Sequence[Digest]) -> list[Digest]:
    """One key a pair: its prompt; where that is empty, its two responses, whichever of them is the chosen one."""
    return [
        prompt if prompt != EMPTY else b"".join(sorted((left, right)))
        for prompt, left, right in zip(prompts, chosen, rejected)
    ]


def group_connected(prompts: Sequence[Digest], chosen: Sequence[Digest], rejected: Sequence[Digest]) -> list[Digest]:
    """One key a pair: the least digest of its connected component over prompts and responses (union-find)."""
    parent: dict[Digest, Digest] = {}

    def root(node: Digest) -> Digest:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def unite(left: Digest, right: Digest) -> None:
        low, high = sorted((root(left), root(right)))
        parent[high] = low  # the least digest becomes the root, whatever the order

    for prompt, left, right in zip(prompts, chosen, rejected):
        # The prefixes keep a prompt apart from a response of the same text.
        unite(b"r" + left, b"r" + right)
        if prompt != EMPTY:
            unite(b"p" + prompt, b"r" + left)
    return [root(b"r" + left) for left in chosen]


def assign_splits(groups: Sequence[Digest], labels: np.ndarray, num_labels: int, ratios: Sequence[float], seed: int
                  ) -> np.ndarray:
    """A split index (0 train, 1 validation, 2 test) for each pair, uint8 (n).

    Groups take their turn in seeded random order, those too large for a held-out share first; each goes where
    its categories lack most pairs, with ties decided by what the splits lack over all.
    """
    members: dict[Digest, list[int]] = defaultdict(list)
    for index, key in enumerate(groups):
        members[key].append(index)
    ratio = np.asarray(ratios, dtype=np.float64)
    totals = np.bincount(labels, minlength=num_labels).astype(np.float64)
    wanted = totals[:, None] * ratio[None, :]  # (categories, splits): pairs still lacking
    wanted_overall = len(labels) * ratio
    held_out = [share for share in ratio[1:] if share > 0]
    smallest_share = min(held_out) if held_out else 1.0

    def turn(key: Digest) -> tuple[int, bytes]:
        size = len(members[key])
        too_large = size > max(1.0, 0.5 * smallest_share * totals[labels[members[key]]].min())
        return (-size if too_large else 0), seeded_digest(seed, key)

    open_splits = np.flatnonzero(ratio > 0)
    result = np.zeros(len(labels), dtype=np.uint8)
    for key in sorted(members, key=turn):
        rows = members[key]
        counts = np.bincount(labels[rows], minlength=num_labels)
        present = np.flatnonzero(counts)
        lacking = counts[present] @ wanted[present]
        # Rounded, so that accumulated floating-point dust cannot decide between equal claims.
        best = max(open_splits, key=lambda s: (round(float(lacking[s]), 6), round(float(wanted_overall[s]), 6), -s))
        result[rows] = best
        wanted[present, best] -= counts[present]
        wanted_overall[best] -= len(rows)
    return result


def count_shared_responses(split: np.ndarray, chosen: Sequence[Digest], rejected: Sequence[Digest]) -> int:
    """The number of held-out pairs of which at least one response also occurs in a training pair."""
    training = set()
    for index in np.flatnonzero(split == 0):
        training.update((chosen[index], rejected[index]))
    return sum(chosen[i] in training or rejected[i] in training for i in np.flatnonzero(split != 0))


def count_shared_prompts(split: np.ndarray, prompts: Sequence[Digest]) -> int:
    """The number of held-out pairs whose (non-empty) prompt also occurs in a training pair."""
    training = {prompts[index] for index in np.flatnonzero(split == 0)} - {EMPTY}
    return sum(prompts[index] in training for index in np.flatnonzero(split != 0))
