"""Tests of data_prep/prepare.py: categories, limits and splits on tiny data, and the real sets of ../shared.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from prepare_support import many, row
from tokenizers import Tokenizer

from pairprep.categories import cluster_texts
from pairprep.splits import assign_splits


# ---- categories and limits

def test_categories_by_field_or_one_named_after_the_domain(prepare):
    pairs = prepare([row("a", topic="z"), row("b", topic="y"), row("c", topic="z")], "--category", "topic").pairs
    assert pairs.label_names == ["y", "z"] and pairs.label.tolist() == [1, 0, 1]
    one = prepare([row("a"), row("b")])
    assert one.pairs.label_names == ["test"]
    note = "note: one category (see --category and --cluster): a Dirichlet partition of these pairs varies"
    assert sum(line.startswith(note) for line in one.out.splitlines()) == 1
    assert "one category" not in prepare([row("a", topic="z"), row("b", topic="y")], "--category", "topic").out


def test_clusters_find_the_topics_whatever_the_order(prepare):
    animals = [row(f"the brown dog and horse number {i}", "yes", "no") for i in range(20)]
    dishes = [row(f"a warm soup with bread number {i}", "yes", "no") for i in range(20)]
    rows = [r for pair in zip(animals, dishes) for r in pair]
    pairs = prepare(rows, "--cluster", "2").pairs
    assert len(set(pairs.label[0::2])) == len(set(pairs.label[1::2])) == 1 and pairs.label[0] != pairs.label[1]
    assert "dog" in pairs.label_names[pairs.label[0]] and "soup" in pairs.label_names[pairs.label[1]]
    shuffled = prepare(rows[::-1], "--cluster", "2").pairs
    assert [shuffled.label_names[i] for i in shuffled.label[::-1]] == [pairs.label_names[i] for i in pairs.label]
    words = random.Random(3).choices([f"word{i}" for i in range(40)], k=600)
    vague = [" ".join(words[i : i + 4]) for i in range(0, 600, 4)]  # no topics at all: every start ends elsewhere
    assert cluster_texts(vague, 5, seed=0) == cluster_texts(vague[::-1], 5, seed=0)[::-1]
    without = [row("", r["prompt"], "no") for r in rows]  # the chosen response stands in for an empty prompt
    assert prepare(without, "--cluster", "2").pairs.label.tolist() == pairs.label.tolist()
    assert prepare(rows[:3], "--cluster", "9").code == 2


def test_limits_take_a_seeded_sample_that_does_not_depend_on_the_order(prepare, model):
    rows = many(100)
    pairs = prepare(rows, "--category", "topic", "--limit-per-category", "7").pairs
    assert np.bincount(pairs.label).tolist() == [7, 7, 7]
    some = prepare(rows, "--limit", "20").pairs
    assert len(some.line) == 20 and some.report["dropped"] == {"not sampled (--limit)": len(rows) - 20}
    assert some.line.tolist() != list(range(1, 21)), "a sample, not the beginning"
    turned = prepare(rows[::-1], "--limit", "20").pairs
    assert sorted(turned.texts(model, "chosen")) == sorted(some.texts(model, "chosen"))
    other = prepare(rows, "--limit", "20", "--seed", "1").pairs
    assert other.line.tolist() != some.line.tolist()


# ---- splits

def sides(pairs, rows, field):
    """For each value of a field the set of splits that it is found in."""
    found = defaultdict(set)
    for line, split in zip(pairs.line, pairs.split):
        found[rows[int(line) - 1][field]].add(int(split))
    return found


def test_no_prompt_is_on_two_sides_and_shares_and_strata_are_met(prepare):
    rows = many(400)
    pairs = prepare(rows, "--category", "topic", "--split", "0.6,0.2,0.2").pairs
    assert all(len(found) == 1 for found in sides(pairs, rows, "prompt").values())
    table = np.zeros((3, 3))
    np.add.at(table, (pairs.label, pairs.split), 1)
    wanted = table.sum(axis=1, keepdims=True) * [0.6, 0.2, 0.2]
    assert np.abs(table - wanted).max() <= 2
    assert pairs.report["heldout_sharing_prompt"] == 0
    assert pairs.report["pairs"]["u"] == {
        "train": table[0, 0], "validation": table[0, 1], "test": table[0, 2]}


def test_splits_follow_content_and_seed_not_the_order_of_rows(prepare, model):
    rows = many(100)
    def by_text(pairs):
        return dict(zip(pairs.texts(model, "chosen"), pairs.split.tolist()))
    first = by_text(prepare(rows).pairs)
    assert by_text(prepare(random.Random(5).sample(rows, len(rows))).pairs) == first
    assert by_text(prepare(rows, "--seed", "1").pairs) != first
    # Order within the seed is random: held-out pairs do not sit at one end of the file.
    held_out = [i for i, r in enumerate(rows) if first[r["chosen"] + "</s>"] != 0]
    assert min(held_out) < len(rows) / 3 and max(held_out) > 2 * len(rows) / 3


def test_large_groups_do_not_swamp_the_held_out_sides(prepare):
    rows = [row("one big question", f"right {i}", f"wrong {i}") for i in range(100)] + many(100)
    pairs = prepare(rows).pairs
    assert sides(pairs, rows, "prompt")["one big question"] == {0}
    assert np.bincount(pairs.split).tolist() == pytest.approx([200, 25, 25], abs=2)
    for seed in range(50):  # three groups of 80 in 300 pairs: whichever comes last must not end up held out
        groups = [b"big %d" % (i // 80) for i in range(240)] + [b"small %d" % i for i in range(60)]
        split = assign_splits(groups, np.zeros(300, np.int32), 1, (0.8, 0.1, 0.1), seed)
        assert np.bincount(split).tolist() == [240, 30, 30]


def test_without_a_prompt_the_two_responses_are_the_group(prepare):
    rows = []
    for i in range(60):
        rows += [row("", f"left {i}", f"right {i}"), row("", f"right {i}", f"left {i}")]  # the same pair, flipped
    pairs = prepare(rows).pairs
    assert (pairs.split[0::2] == pairs.split[1::2]).all() and len(set(pairs.split)) == 3


def test_connected_keeps_shared_responses_on_one_side(prepare):
    rows = [row(f"question {i}", f"answer {i // 4}", f"wrong {i}") for i in range(200)]
    by_prompt, connected = prepare(rows).pairs, prepare(rows, "--split-by", "connected").pairs
    assert by_prompt.report["heldout_sharing_response"] > 0
    assert connected.report["heldout_sharing_response"] == 0
    assert all(len(found) == 1 for found in sides(connected, rows, "chosen").values())
    assert min(np.bincount(connected.split)) >= 16
    rows = many(200)  # some prompts have two pairs, without a response in common
    by_both = sides(prepare(rows, "--split-by", "connected").pairs, rows, "prompt")
    assert all(len(found) == 1 for found in by_both.values())
    # A chain: each pair shares a response with the next, so all of it is one group.
    chain = [row(f"q {i}", f"r {i}", f"r {i + 1}") for i in range(40)]
    assert len(set(prepare(chain, "--split-by", "connected").pairs.split)) == 1


def test_the_datas_own_split_is_used_only_when_named(prepare):
    rows = [r | {"split": ("test", "train", "dev")[i % 3]} for i, r in enumerate(many(60))]
    named = prepare(rows, "--split-field", "split").pairs
    assert named.split.tolist() == [(2, 0, 1)[i % 3] for i in range(len(rows))]
    assert named.report["heldout_sharing_prompt"] > 0  # as the data's own split has it, and says so
    assert np.bincount(prepare(rows).pairs.split)[0] > len(rows) / 2
    rows[4]["split"] = "all"
    outcome = prepare(rows, "--split-field", "split")
    assert outcome.code == 2 and "pairs.jsonl:5" in outcome.err and "'split'" in outcome.err


@pytest.mark.parametrize("shares", ["0.5,0.5", "0.5,0.5,0.5", "1.5,-0.5,0", "a,b,c", "nan,0,1"])
def test_shares_must_add_up(prepare, shares):
    outcome = prepare([row()], "--split", shares)
    assert outcome.code == 2 and "--split" in outcome.err


# ---- real data

def test_blimp_by_stories260k_is_what_the_tokenizer_says(prepare, shared_data, stories):
    source = shared_data / "blimp" / "pairs.jsonl.gz"
    pairs = prepare(source, "--category", "category", "--max-length", "512", model=stories).pairs
    rows = [json.loads(line) for line in gzip.open(source, "rt")]
    tokenizer = Tokenizer.from_file(str(stories / "tokenizer.json"))
    assert len(pairs.line) == 17400 and len(pairs.label_names) == 13
    for i in random.Random(0).sample(range(17400), 500):
        assert pairs.prompt[i] == [1]
        for part in ("chosen", "rejected"):
            assert pairs.prompt[i] + getattr(pairs, part)[i] == tokenizer.encode(rows[i][part]).ids + [2]
        assert pairs.label_names[pairs.label[i]] == rows[i]["category"]
    assert np.bincount(pairs.split).tolist() == [13920, 1740, 1740]


@pytest.mark.parametrize("name", ["truthfulqa", "imdb-counterfactual", "code-security", "dialogue-harmless"])
def test_real_sets_are_accounted_for_and_leak_nothing(prepare, shared_data, stories, name):
    pairs = prepare(shared_data / name / "pairs.jsonl", "--category", "category", "--max-length", "512",
                    "--split-by", "connected", "--join", "space", model=stories).pairs
    report = pairs.report
    assert report["rows_read"] == report["kept"] + sum(report["dropped"].values()) == {
        "truthfulqa": 2564, "imdb-counterfactual": 1950, "code-security": 715, "dialogue-harmless": 2308}[name]
    assert report["heldout_sharing_prompt"] == report["heldout_sharing_response"] == 0
    assert max(len(p) + max(len(c), len(r)) for p, c, r in zip(pairs.prompt, pairs.chosen, pairs.rejected)) <= 512
    assert all(c != r and p[0] == 1 for p, c, r in zip(pairs.prompt, pairs.chosen, pairs.rejected))
    held_out = Counter(pairs.split.tolist())
    assert held_out[1] + held_out[2] > 0.15 * len(pairs.line)
