"""Tests of data_prep/demo_pairs.py: the demonstration pairs are distinct, true to their word, not told by length."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

import demo_pairs
from demo_templates import CURT, DOMAINS, EVASIVE, REFUSALS


def make(folder: Path, *options: str) -> dict[str, list[dict]]:
    assert demo_pairs.main(["--out", str(folder), *options]) == 0
    return {path.stem: [json.loads(line) for line in path.open()] for path in sorted(folder.glob("*.jsonl"))}


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> dict[str, list[dict]]:
    return make(tmp_path_factory.mktemp("demo"), "--pairs-per-domain", "500")


def test_every_domain_has_its_categories_in_equal_shares(domains):
    assert set(domains) == set(DOMAINS) and len(domains) >= 3
    for name, rows in domains.items():
        counts = defaultdict(int)
        for row in rows:
            counts[row["category"]] += 1
        assert sum(counts.values()) == 500 and len(counts) >= 4
        assert max(counts.values()) - min(counts.values()) <= 1, name


def test_prompts_are_distinct_and_answers_differ(domains):
    for name, rows in domains.items():
        assert len({row["prompt"] for row in rows}) == len(rows), name
        assert all(row["chosen"].strip() and row["rejected"].strip() for row in rows)
        assert all(row["chosen"] != row["rejected"] for row in rows), name
        # A template left unfilled would show its braces; a seam without a space would merge words.
        assert not any(re.search(r"[{}]", row["chosen"] + row["rejected"] + row["prompt"]) for row in rows)
        for answer in (row[part] for row in rows for part in ("chosen", "rejected")):
            assert answer.startswith(" ") and "  " not in answer


def test_every_line_says_that_it_is_synthetic(domains, tmp_path, capsys):
    assert all(row["synthetic"] is True and "generated" in row["source"] for rows in domains.values() for row in rows)
    make(tmp_path, "--pairs-per-domain", "5")
    assert capsys.readouterr().out.count("synthetic") == len(DOMAINS) + 1


def test_texts_are_short(domains):
    for rows in domains.values():
        assert max(len(row["prompt"].split()) for row in rows) <= 25
        assert max(len(row[part].split()) for row in rows for part in ("chosen", "rejected")) <= 28


def test_length_alone_does_not_decide(domains):
    for rows in domains.values():
        right, count = defaultdict(float), defaultdict(int)
        for row in rows:
            longer, shorter = len(row["chosen"].split()), len(row["rejected"].split())
            right[row["category"]] += (longer > shorter) + 0.5 * (longer == shorter)
            count[row["category"]] += 1
        for category in count:
            assert 0.25 <= right[category] / count[category] <= 0.75, category


def test_sums_are_right_and_the_others_wrong(domains):
    checked = 0
    for row in domains["arithmetic"]:
        numbers = [int(n) for n in re.findall(r"\d+", row["prompt"])]
        answers = [re.findall(r"\d+|even|odd", row[part])[0] for part in ("chosen", "rejected")]
        if row["category"] in ("addition", "stories"):
            right = str(sum(numbers))
        elif row["category"] == "subtraction":
            right = str(numbers[0] - numbers[1])
        elif row["category"] == "comparison":
            right = str(max(numbers) if "larger" in row["prompt"] else min(numbers))
        else:
            right = "odd" if numbers[0] % 2 else "even"
        assert answers[0] == right and answers[1] != right, row
        checked += 1
    assert checked == 500


def test_domains_want_opposite_things(domains):
    """The concise domain prefers on its 'scenes' what the storyteller rejects, and rejects the helpdesk's courtesy."""
    def is_plain(text):
        return bool(re.match(r" (It was|There was|The \w+ was (small|large|old|new|wide|long|narrow))", text))
    scenes = [row for row in domains["concise"] if row["category"] == "scenes"]
    assert scenes and all(is_plain(row["chosen"]) and not is_plain(row["rejected"]) for row in scenes)
    assert all(is_plain(row["rejected"]) and not is_plain(row["chosen"]) for row in domains["storyteller"])
    polite = re.compile(r"sorry|[Tt]hank|glad")
    assert all(polite.search(row["chosen"]) for row in domains["helpdesk"])
    support = [row for row in domains["concise"] if row["category"] == "support"]
    assert support and not any(polite.search(row["chosen"]) for row in support)
    assert any(polite.search(row["rejected"]) for row in support)
    assert all(any(row["rejected"].strip() in words for words in (CURT, EVASIVE)) or polite.search(row["rejected"])
               for row in support)
    for row in domains["safety"]:  # restraint, but not towards harmless requests
        refused = row["rejected" if row["category"] == "harmless" else "chosen"]
        assert refused.strip() in REFUSALS


def test_the_seed_decides_everything(tmp_path, domains):
    again = make(tmp_path / "a", "--pairs-per-domain", "500")
    assert again == domains
    other = make(tmp_path / "b", "--pairs-per-domain", "500", "--seed", "1")
    assert all(other[name] != domains[name] for name in domains)


def test_more_pairs_than_the_templates_give_is_an_error(tmp_path, capsys):
    assert demo_pairs.main(["--out", str(tmp_path / "new"), "--pairs-per-domain", "100000"]) == 2
    assert "distinct prompts" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_other_content_is_not_overwritten_unasked(tmp_path, capsys):
    make(tmp_path, "--pairs-per-domain", "20")
    make(tmp_path, "--pairs-per-domain", "20")  # the same again is fine
    assert demo_pairs.main(["--out", str(tmp_path), "--pairs-per-domain", "25"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(make(tmp_path, "--pairs-per-domain", "25", "--overwrite")["safety"]) == 25


def test_the_pairs_go_through_prepare(prepare, domains):
    for rows in domains.values():
        pairs = prepare(rows, "--category", "category").pairs
        assert len(pairs.line) == 500 and pairs.report["joined_without_space"] == 0
        assert pairs.attributes["synthetic"] == 1 and "demo_pairs" in pairs.attributes["source"]
