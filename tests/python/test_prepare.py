"""Tests of data_prep/prepare.py: every rule of tokenising, cutting, dropping, splitting and writing, on tiny data."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict

import h5py
import numpy as np
import pytest
from conftest import BOS, CHAT_TEMPLATE, EOS, ROOT, make_model
from tokenizers import Tokenizer

from pairprep.categories import cluster_texts
from pairprep.splits import assign_splits
from pairprep.tokens import TokenPair, fit


def row(prompt="p", chosen="yes", rejected="no", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def many(count=200, categories="uvw"):
    """Distinct prompts with one or two pairs each, spread over categories."""
    rows = []
    for i in range(count):
        for j in range(1 + i % 2):
            rows.append(row(f"question {i}", f"right {i} {j}", f"wrong {i} {j}", topic=categories[i % len(categories)]))
    return rows


# ---- tokens: where the prompt ends

@pytest.mark.parametrize("prompt, chosen, rejected, expected", [
    ("x", "yes", "no", ("x", "yes", "no")),
    ("x", "same 1", "same 2", ("x", "same 1", "same 2")),  # a common beginning stays in both responses
    ("xa", "bc", "d", ("x", "abc", "ad")),  # the token 'ab' exists in one of the two only
    ("xa", "bc", "bd", ("x", "abc", "abd")),  # 'ab' is common, but reaches over the prompt's end
    ("x)", "\nc", "\nd", ("x", ")\nc", ")\nd")),  # likewise where it is white space that is merged
    ("é", "éa", "éc", ("é", "éa", "éc")),  # offsets are characters, not bytes
])
def test_prompt_is_the_common_prefix_inside_the_prompt(prepare, model, prompt, chosen, rejected, expected):
    pairs = prepare([row(prompt, chosen, rejected)], "--no-eos").pairs
    assert tuple(pairs.texts(model, part)[0] for part in ("prompt", "chosen", "rejected")) == expected


def test_a_byte_level_post_processor_does_not_hide_that_a_token_reaches_over(prepare, tmp_path):
    model = make_model(tmp_path / "m", byte_level=True)
    pairs = prepare([row("x)", " c", " d")], "--no-eos", model=model).pairs
    assert (pairs.texts(model, "prompt"), pairs.texts(model, "chosen")) == (["x"], [")Ġc"])


def test_bos_of_the_post_processor_begins_the_prompt_and_its_eos_is_not_doubled(prepare, tmp_path):
    model = make_model(tmp_path / "bos", post_bos=True)
    pairs = prepare([row("x", "yes", "no"), row("", "yes", "no")], model=model).pairs
    assert pairs.texts(model, "prompt") == ["<s>x", "<s>"]
    assert pairs.texts(model, "chosen") == ["yes</s>", "yes</s>"]


@pytest.mark.parametrize("bos, expected", [(True, BOS), (False, EOS)])
def test_an_empty_prompt_gets_bos_or_else_eos(prepare, tmp_path, bos, expected):
    pairs = prepare([row("", "yes", "no")], model=make_model(tmp_path / "m", bos=bos)).pairs
    assert pairs.prompt == [[expected]]
    assert pairs.chosen[0][-1] == EOS


def test_eos_ends_each_response_unless_told_not_to(prepare, model, tmp_path):
    assert prepare([row()]).pairs.texts(model, "rejected") == ["no</s>"]
    assert prepare([row()], "--no-eos").pairs.texts(model, "rejected") == ["no"]
    without = make_model(tmp_path / "no-eos", eos=False)
    outcome = prepare([row()], model=without)
    assert outcome.code == 2 and "eos token" in outcome.err


def test_join_space_goes_only_where_neither_side_has_white_space(prepare, model):
    rows = [row("a?", "yes", "no"), row("b: ", "yes", "no"), row("c", " yes", "no"), row("", "yes", "no")]
    pairs = prepare(rows, "--join", "space", "--no-eos").pairs
    assert pairs.texts(model, "chosen") == [" yes", "yes", " yes", "yes"]
    assert pairs.texts(model, "rejected") == [" no", "no", " no", "no"]
    exact = prepare(rows, "--no-eos")
    assert exact.pairs.texts(model, "chosen") == ["yes", "yes", " yes", "yes"]
    assert exact.pairs.report["joined_without_space"] == 1 and "--join space" in exact.out


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(prepare, tmp_path):
    outcome = prepare([row("x", "yes", "no")], model=make_model(tmp_path / "m", vocab_size=50))
    assert outcome.code == 2 and "vocab_size 50" in outcome.err and "pairs.jsonl:1" in outcome.err


# ---- chat messages

CONVERSATIONS = {
    "explicit prompt": {"prompt": [user("hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
    "implicit prompt": {"chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
    "prompt repeated": {"prompt": "hi", "chosen": [user("hi"), assistant("yes")],
                        "rejected": [user("hi"), assistant("no")]},
    "prompt repeated as messages": {"prompt": [user("hi")], "chosen": [user("hi"), assistant("yes")],
                                    "rejected": [user("hi"), assistant("no")]},
    "plain answers": {"prompt": [user("hi")], "chosen": "yes", "rejected": "no"},
}


@pytest.mark.parametrize("values", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_messages_get_the_chat_template(prepare, tmp_path, values):
    model = make_model(tmp_path / "chat", template=CHAT_TEMPLATE, post_bos=True)
    pairs = prepare([values], model=model).pairs
    assert pairs.texts(model, "prompt") == ["[user]hi</s>\n[assistant]"]  # a template writes its own BOS, or none
    # The template ended the turn with EOS: it is not doubled, and the line break after it is not learnt.
    assert pairs.texts(model, "chosen") == ["yes</s>"] and pairs.texts(model, "rejected") == ["no</s>"]


def test_implicit_prompt_takes_all_shared_turns_but_leaves_an_answer(prepare, tmp_path):
    model = make_model(tmp_path / "chat", template=CHAT_TEMPLATE)
    start = [user("a"), assistant("b"), user("c")]
    pairs = prepare([{"chosen": [*start, assistant("yes")], "rejected": [*start, assistant("no")]}], model=model).pairs
    assert pairs.texts(model, "prompt") == ["[user]a</s>\n[assistant]b</s>\n[user]c</s>\n[assistant]"]
    same = prepare([{"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]}, row()],
                   model=model)
    assert same.pairs.report["dropped"] == {"identical responses": 1}


def test_template_can_come_from_its_own_file_and_cannot_reach_python(prepare, tmp_path):
    model = make_model(tmp_path / "chat")
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert prepare([CONVERSATIONS["explicit prompt"]], model=model).pairs.texts(model, "chosen") == ["yes</s>"]
    (model / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    outcome = prepare([CONVERSATIONS["explicit prompt"]], model=model)
    assert outcome.code == 2 and "chat template" in outcome.err


def test_messages_need_a_template_or_the_plain_form(prepare, model, tmp_path):
    values = CONVERSATIONS["explicit prompt"]
    outcome = prepare([values])
    assert outcome.code == 2 and "pairs.jsonl:1" in outcome.err and "--plain-chat" in outcome.err
    plain = prepare([values], "--plain-chat", "--no-eos").pairs
    assert plain.texts(model, "prompt") == ["user: hi\n\nassistant:"]
    assert plain.texts(model, "chosen") == [" yes"]
    chat = make_model(tmp_path / "chat", template=CHAT_TEMPLATE)
    assert prepare([values], "--chat-template", "never", model=chat).code == 2
    assert prepare([row("x")], model=chat).pairs.texts(chat, "prompt") == ["x"]
    always = prepare([row("x")], "--chat-template", "always", model=chat).pairs
    assert always.texts(chat, "prompt") == ["[user]x</s>\n[assistant]"]
    assert prepare([row("x")], "--chat-template", "always").code == 2


# ---- over-long pairs

def test_fit_keeps_its_promises_for_all_shapes():
    rng = random.Random(1)
    for _ in range(3000):
        prompt = [0] + [rng.randrange(2, 9) for _ in range(rng.randrange(0, 30))]
        chosen, rejected = ([rng.randrange(2, 9) for _ in range(rng.randrange(1, 30))] + [1] for _ in "cr")
        limit, share = rng.randrange(4, 60), rng.choice((0.0, 0.25, 0.9))
        fitted = fit(TokenPair(prompt, chosen, rejected, num_kept=1), limit, share)
        got = fitted.pair
        assert len(got.prompt) + max(len(got.chosen), len(got.rejected)) <= limit or not fitted.cut
        assert got.prompt[0] == 0 and got.prompt[1:] == prompt[len(prompt) - len(got.prompt) + 1:]
        assert got.chosen == chosen[:len(got.chosen)] and got.rejected == rejected[:len(got.rejected)]
        assert got.chosen and got.rejected
        if fitted.cut - {"prompt"}:  # responses are cut only once the prompt is down at its share
            floor = min(len(prompt), max(int(np.ceil(share * limit)), 2), limit - 1)
            assert len(got.prompt) == floor
        elif "prompt" in fitted.cut:  # and the prompt loses no more than it has to
            assert len(got.prompt) + max(len(chosen), len(rejected)) == limit
        for name in ("prompt", "chosen", "rejected"):
            original = {"prompt": prompt, "chosen": chosen, "rejected": rejected}[name]
            assert (name in fitted.cut) == (getattr(got, name) != original)


def test_truncation_and_its_account(prepare, tmp_path):
    model = make_model(tmp_path / "m", post_bos=True)
    rows = [
        row("0123456789" * 2, "yes", "no"),  # only the prompt must give way
        row("q", "c" * 30, "short"),  # only the chosen response; it loses its EOS
        row("q", "s" * 30 + "1", "s" * 30 + "2"),  # they differ beyond the cut: dropped
        row("q", "yes", "no"),
    ]
    outcome = prepare(rows, "--max-length", "16", model=model)
    pairs = outcome.pairs
    assert pairs.texts(model, "prompt") == ["<s>" + ("0123456789" * 2)[-11:], "<s>q", "<s>q"]
    assert pairs.texts(model, "chosen") == ["yes</s>", "c" * 14, "yes</s>"]
    assert pairs.texts(model, "rejected") == ["no</s>", "short</s>", "no</s>"]
    assert pairs.report["truncated"] == {"prompt": 1, "chosen": 1, "rejected": 0}
    assert pairs.report["dropped"] == {"identical after truncation": 1}
    assert pairs.line.tolist() == [1, 2, 4]
    assert "rows read 4, kept 3, dropped 1" in outcome.out
    dropped = prepare(rows, "--max-length", "16", "--overlong", "drop", model=model).pairs
    assert dropped.line.tolist() == [4] and dropped.report["dropped"] == {"over-long": 3}


def test_max_length_beyond_the_models_positions_is_refused(prepare, tmp_path):
    outcome = prepare([row()], "--max-length", "100", model=make_model(tmp_path / "m", max_positions=64))
    assert outcome.code == 2 and "64" in outcome.err
    assert prepare([row()], "--max-length", "3").code == 2


# ---- bad and unusable rows

BAD_ROWS = {
    "no JSON": ('{"prompt": "x", ', "broken JSON"),
    "no object": ("[1, 2]", "list"),
    "no rejected": ({"prompt": "x", "chosen": "y"}, "'rejected'"),
    "number": (row(chosen=3), "'chosen'"),
    "null": (row(rejected=None), "'rejected'"),
    "empty response": (row(chosen=""), "'chosen'"),
    "blank response": (row(rejected=" \n"), "'rejected'"),
    "no prompt": ({"chosen": "y", "rejected": "n"}, "'prompt'"),
    "bad message": ({"prompt": [{"role": "user"}], "chosen": "y", "rejected": "n"}, "'prompt[0].content'"),
    "lone surrogate": ('{"prompt": "\\ud800", "chosen": "y", "rejected": "n"}', "Unicode"),
    "no category": (row(), "'topic'"),
    "odd category": (row(topic=[1]), "'topic'"),
}


@pytest.mark.parametrize("bad, said", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_an_error_with_file_and_line_or_is_counted(prepare, bad, said):
    rows = [row(topic="t"), "", bad, row("q", topic="t")]
    outcome = prepare(rows, "--category", "topic")
    assert outcome.code == 2 and not outcome.path.exists()
    assert "pairs.jsonl:3: " in outcome.err and said in outcome.err and outcome.err.count("\n") == 1
    skipped = prepare(rows, "--category", "topic", "--skip-bad")
    assert skipped.pairs.report["dropped"] == {"bad row": 1} and skipped.pairs.line.tolist() == [1, 4]
    assert skipped.pairs.report["rows_read"] == 3 and "pairs.jsonl:3" in skipped.err


def test_identical_responses_are_dropped_and_nothing_left_is_an_error(prepare):
    pairs = prepare([row(chosen="same", rejected="same"), row()]).pairs
    assert pairs.report["dropped"] == {"identical responses": 1} and pairs.line.tolist() == [2]
    outcome = prepare([row(chosen="same", rejected="same")])
    assert outcome.code == 2 and not outcome.path.exists()


# ---- kinds of files

def test_gzip_is_told_by_its_bytes_and_a_torn_file_is_an_error(prepare, tmp_path):
    packed = tmp_path / "pairs.data"
    packed.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in many(50)).encode()))
    assert prepare(packed).pairs.report["kept"] == len(many(50))
    packed.write_bytes(packed.read_bytes()[:-30])
    outcome = prepare(packed)
    assert outcome.code == 2 and "pairs.data" in outcome.err
    assert prepare(tmp_path / "missing.jsonl").code == 2


def test_parquet_with_messages(prepare, tmp_path):
    import pyarrow
    import pyarrow.parquet

    model = make_model(tmp_path / "chat", template=CHAT_TEMPLATE)
    rows = [{"chosen": [user(f"q{i}"), assistant("yes")], "rejected": [user(f"q{i}"), assistant("no")], "topic": i % 2}
            for i in range(30)]
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    pairs = prepare(path, "--category", "topic", model=model).pairs
    assert pairs.texts(model, "prompt")[29] == "[user]q29</s>\n[assistant]"
    assert pairs.line.tolist() == list(range(1, 31)) and pairs.label_names == ["0", "1"]
    path.write_bytes(path.read_bytes()[:-20])
    assert prepare(path, model=model).code == 2


# ---- categories and limits

def test_categories_by_field_or_one_named_after_the_domain(prepare):
    pairs = prepare([row("a", topic="z"), row("b", topic="y"), row("c", topic="z")], "--category", "topic").pairs
    assert pairs.label_names == ["y", "z"] and pairs.label.tolist() == [1, 0, 1]
    assert prepare([row("a"), row("b")]).pairs.label_names == ["test"]


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
    assert len(some.line) == 20 and some.report["dropped"] == {"over the limit": len(rows) - 20}
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


# ---- the file

LAYOUT = {
    "prompt/tokens": "uint32", "prompt/offsets": "uint64", "chosen/tokens": "uint32", "chosen/offsets": "uint64",
    "rejected/tokens": "uint32", "rejected/offsets": "uint64", "label": "int32", "label_names": "object",
    "split": "uint8", "source_line": "uint64", "source_file": "uint32",
}


def test_layout_and_attributes(prepare, model):
    outcome = prepare([row(synthetic=True, source="a script"), row("q")], "--license", "MIT")
    with h5py.File(outcome.path) as file:
        found = {}
        file.visititems(lambda name, item: found.__setitem__(name, item) if isinstance(item, h5py.Dataset) else None)
        assert {name: str(item.dtype) for name, item in found.items()} == LAYOUT
        assert all(item.attrs["units"] and item.attrs["description"] for item in found.values())
        attributes = dict(file.attrs)
        for name in ("version", "vocab_size", "max_length", "synthetic"):
            assert file.attrs[name].dtype == np.int64, name
    assert json.loads(attributes.pop("report"))["kept"] == 2
    digest = subprocess.run(["sha256sum", model / "tokenizer.json"], capture_output=True, text=True, check=True)
    assert attributes == {
        "format": "fedpdpo-pairs", "version": 1, "domain": "test", "tokenizer": "tiny-model",
        "tokenizer_sha256": digest.stdout.split()[0], "vocab_size": 101, "max_length": 256, "source": "a script",
        "license": "MIT", "synthetic": 1,
    }


def test_an_existing_file_is_kept_unless_told_and_nothing_half_written_stays(prepare):
    first = prepare([row()]).path.read_bytes()
    refused = prepare([row("other")], "--keep")
    assert refused.code == 2 and "--overwrite" in refused.err and refused.path.read_bytes() == first
    replaced = prepare([row("other")], "--keep", "--overwrite")
    assert replaced.code == 0 and replaced.path.read_bytes() != first
    assert not [p for p in replaced.path.parent.iterdir() if p.name.endswith(".tmp")]


def test_several_files_in_one(prepare, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(row("second file")) + "\n")
    outcome = prepare([row("a"), row("b")], "--in", str(tmp_path / "pairs.jsonl"), str(other))
    assert outcome.pairs.line.tolist() == [1, 2, 1] and outcome.pairs.report["files"] == ["pairs.jsonl", "other.jsonl"]
    with h5py.File(outcome.path) as file:
        assert file["source_file"][:].tolist() == [0, 0, 1]


def test_the_same_input_gives_the_same_bytes_in_every_process(tmp_path, model):
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in many(80)))
    written = []
    for seed in ("1", "2"):  # of Python's own hashes, which must not matter
        out = tmp_path / f"{seed}.h5"
        subprocess.run(
            [sys.executable, ROOT / "data_prep" / "prepare.py", "--in", source, "--model", model, "--domain", "d",
             "--cluster", "3", "--max-length", "64", "--out", out],
            check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
        written.append(out.read_bytes())
    assert written[0] == written[1]


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
