"""Tests of data_prep/prepare.py on tiny data: tokenising, chat messages, cutting, dropping, kinds of files, the file
written.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ROOT
from prepare_support import BOS, CHAT_TEMPLATE, EOS, assistant, make_model, many, row, user

from pairprep.tokens import TokenPair, fit


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


@pytest.mark.parametrize(("positions", "length"), [(64, 64), (100000, 2048)])
def test_max_length_is_the_models_positions_within_reason_unless_given(prepare, tmp_path, positions, length):
    long = row("q" * 3000, "yes", "no")
    pairs = prepare([long], "--default-length", model=make_model(tmp_path / "m", max_positions=positions)).pairs
    assert pairs.attributes["max_length"] == pairs.report["rules"]["max_length"] == length
    assert pairs.report["longest_pair"] == length


def test_a_model_that_does_not_say_its_positions_needs_max_length(prepare, tmp_path):
    model = make_model(tmp_path / "m", max_positions=0)
    outcome = prepare([row()], "--default-length", model=model)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "config.json: field 'max_position_embeddings': expected a number" in outcome.err
    assert "--max-length" in outcome.err and prepare([row()], model=model).code == 0


def test_a_name_of_the_hub_is_no_model_folder(prepare, tmp_path):
    outcome = prepare([row()], model=Path("HuggingFaceTB/SmolLM2-135M-Instruct"))
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert ("HuggingFaceTB/SmolLM2-135M-Instruct: --model: expected a folder with tokenizer.json and config.json, "
            "found no such folder") in outcome.err and "data_prep/fetch_model.py" in outcome.err
    assert "found a folder without it" in prepare([row()], model=tmp_path).err


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


@pytest.mark.parametrize(("text", "found"), [
    ("prompt,chosen,rejected\na,b,c\n", "CSV, which begins 'prompt,chosen,rejected'"),
    ("prompt\tchosen\trejected\n", "CSV, which begins"),
    ('[{"prompt": "a", "chosen": "b", "rejected": "c"}]\n', "a JSON array (write one object a line)"),
    ("# pairs\n", "a file that begins '# pairs'"),
])
def test_other_formats_are_told_which_are_read(prepare, tmp_path, text, found):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    outcome = prepare(path)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert f"{path}:1: expected JSONL (one JSON object a line, also gzipped) or Parquet, found {found}" in outcome.err


def test_single_judged_answers_are_no_pairs(prepare):
    outcome = prepare([{"prompt": "a", "completion": "b", "label": True}])
    assert outcome.code == 2
    assert "pairs.jsonl:1: field 'chosen': expected pairs (prompt, chosen, rejected)" in outcome.err
    assert "--loss kto" in outcome.err and "(prompt, completion, label)" in outcome.err
    assert prepare([row(completion="b", label=True)]).code == 0


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
