"""The other subcommands: plan, partition, inspect, bench, help, version, and what their key figures must be."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from run_support import (GPT2, GPT_NEOX, LLAMA, MISTRAL, Workspace, checkpoints, manifest, needs_program,
                         random_pairs, read, tokenizer_hash, write_pairs)

pytestmark = needs_program

# (out, in) of the linear layers of a layer of tiny_llama; the two models have two layers of width 32.
LLAMA_LINEARS = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]
GPT2_LINEARS = [(96, 32), (32, 32), (128, 32), (32, 128)]
GPT_NEOX_LINEARS = [(96, 32), (32, 32), (48, 32), (32, 48)]


def lora_size(linears: list[tuple[int, int]], rank: int, layers: int = 2) -> int:
    return layers * sum(rank * (rows + columns) for rows, columns in linears)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found.group(1))


@pytest.mark.parametrize(("model", "linears"),
                         [(LLAMA, LLAMA_LINEARS), (GPT2, GPT2_LINEARS), (GPT_NEOX, GPT_NEOX_LINEARS)],
                         ids=["llama", "gpt2", "gpt_neox"])
def test_plan_and_run_agree_on_bytes(space: Workspace, model: Path,
                                      linears: list[tuple[int, int]]) -> None:
    shared = lora_size(linears, 4)
    options = {"method": "fedpdpo", "bottleneck": 8, "lora_rank": 4, "clients": 4, "min_train": 2, "alpha": 1,
               "model": model}
    outcome = space.call(*space.arguments("plan", **options))
    assert outcome.code == 0, outcome.err
    assert f"exchange      {4 * shared / 1024:.1f} KiB up and {4 * shared / 1024:.1f} KiB down" in outcome.out
    # bottleneck D, b, U; head; reward w, c
    private = 8 * 32 + 8 + 8 * 32 + 96 * 32 + 32 + 1
    assert f"{(shared + private) / 1e6:.3f} M a client ({shared / 1e6:.3f} M shared)" in outcome.out
    path = space.run(f"bytes-{model.name}", participation=2, rounds=2, **options)
    for way in ("up", "down"):
        sent = read(path, f"clients/train/bytes_{way}")
        took_part = read(path, "clients/train/participated")
        np.testing.assert_array_equal(sent, 4 * shared * took_part)
        assert took_part.sum(axis=1).tolist() == [0, 2, 2]
        assert read(path, f"rounds/train/bytes_{way}").tolist() == [0, 8 * shared, 8 * shared]


def test_plan_balances_ranks(space: Workspace) -> None:
    options = {"method": "fedpdpo", "clients": 4, "min_train": 2, "alpha": 1, "seed": 1, "steps": 3, "batch": 5,
               "rounds": 0}
    outcome = space.call(*space.arguments("plan", **options), ranks=3)
    assert outcome.code == 0, outcome.err
    rows = re.findall(r"rank (\d) +([\d.]+) % of the work, clients([ \d]*)", outcome.out)
    assert [row[0] for row in rows] == ["0", "1", "2"]
    shares = [float(row[1]) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert sorted(int(client) for row in rows for client in row[2].split()) == [0, 1, 2, 3]
    assert number(r"imbalance ([\d.]+)", outcome.out) == pytest.approx(max(shares) / (sum(shares) / 3), abs=0.01)
    with h5py.File(space.run("balance", ranks=3, **options)) as file:
        environment = dict(file["environment"].attrs)
    of_rank = {client: row[0] for row in rows for client in map(int, row[2].split())}
    assert environment["client_ranks"].split() == [of_rank[client] for client in range(4)]
    assert environment["num_ranks"] == "3"
    assert float(environment["placement_imbalance"]) == pytest.approx(max(shares) / (sum(shares) / 3), abs=0.01)


def evaluated_pairs(path: Path, splits: list[str]) -> tuple[int, int, int]:
    """Pairs that a run's figures are of: at the start, in the rounds, after the last. Points that are equal in every
    figure are one evaluation."""
    start = in_rounds = 0
    with h5py.File(path) as file:
        for split in splits:
            sizes = np.diff(file[f"partition/{split}/offsets"][...])
            points = {point: np.stack([values[...] for values in file[f"clients/{split}/{point}"].values()])
                      for point in ("before", "after")}
            done = ~np.isnan(points["after"]).all(axis=0)
            apart = np.any((points["before"] != points["after"]) & ~np.isnan(points["after"]), axis=0)
            pairs = done * sizes + apart * sizes
            start += int(pairs[0].sum())
            in_rounds += int(pairs[1:].sum())
        tests = np.diff(file["partition/test/offsets"][...])
        end = 0
        if "final/cross" in file:
            end += int((~np.isnan(file["final/cross/accuracy"][...]) * tests).sum())
        if "final/new_clients" in file:
            end += sum(2 * int(tests[client]) for client in file["final/new_clients/client"][...])
    return start, in_rounds, end


@pytest.mark.parametrize(("name", "options"), [
    ("fedpdpo", {"method": "fedpdpo", "bottleneck": 4}),
    ("every", {"method": "fedavg", "rounds": 5, "eval_every": 2, "eval_splits": "train,test"}),
    ("local", {"method": "local", "eval_splits": "validation"}),
    ("refit", {"method": "local", "refit": 1}),
    ("pooled", {"method": "centralized"}),
    ("end", {"method": "fedavg", "clients": 5, "new_clients": 2, "cross_eval": True}),
    ("start", {"method": "fedavg", "rounds": 0})])
def test_plan_and_run_agree_on_evaluated_pairs(space: Workspace, name: str, options: dict[str, Any]) -> None:
    options = {"min_train": 2, "alpha": 1, "rounds": 3, "steps": 2, "lr_shared": 0.05} | options
    outcome = space.call(*space.arguments("plan", **options), ranks=2)
    assert outcome.code == 0, outcome.err
    found = re.search(r"evaluation +(\d+) pairs at the start, (\d+) in (\d+) rounds? \((.*)\), (\d+) after the last: "
                      r"(\d+) in all\n +about ([\d.]+) s in each of these rounds, (\d+) s in all\n", outcome.out)
    assert found, outcome.out
    start, in_rounds, end = evaluated_pairs(space.run(f"evaluated-{name}", **options),
                                            options.get("eval_splits", "validation,test").split(","))
    assert [int(found.group(i)) for i in (1, 2, 5, 6)] == [start, in_rounds, end, start + in_rounds + end]
    assert start > 0 and (in_rounds > 0) == (options.get("rounds") != 0) and (end > 0) == (name == "end")
    assert int(found.group(3)) == (0 if name == "start" else 3)
    assert ("averaging" in found.group(4)) == (name not in ("local", "pooled"))


def test_plan_tells_time_of_evaluation(space: Workspace) -> None:
    """Forward only, at the rate that training is told at: a share of it that the counted pairs make."""
    data = write_pairs(space.folder / "large.h5", random_pairs(40000, seed=3))
    options = {"data": data, "clients": 2, "rounds": 10, "steps": 400, "batch": 20, "alpha": 100, "method": "fedavg"}
    outcome = space.call(*space.arguments("plan", **options))
    assert outcome.code == 0, outcome.err
    training, whole_training = (number(pattern, outcome.out) for pattern in (
        r"time +about ([\d.]+) s a round", r"on a rank, (\d+) s in all"))
    evaluation, whole = (number(pattern, outcome.out) for pattern in (
        r"about ([\d.]+) s in each of these rounds", r"both +about (\d+) s"))
    # 16000 pairs forward and backward, 16000 evaluated twice forward only.
    assert whole_training == pytest.approx(10 * training, abs=1.1) and training > 0
    assert 0.5 * training < evaluation < 1.1 * training
    assert whole == pytest.approx(10 * training + 10.5 * evaluation, abs=2)


def test_partition_prints_what_a_run_records(space: Workspace) -> None:
    options = {"clients": 5, "alpha": 0.5, "min_train": 2, "flip_clients": 0.4, "seed": 3}
    outcome = space.call(*space.arguments("partition", model=None, **options), ranks=2)
    assert outcome.code == 0, outcome.err
    rows = re.findall(r"^(client\d+) +(\d+) +(\d+) +(\d+) +(yes|no) +(.*)$", outcome.out, re.MULTILINE)
    path = space.run("recorded", rounds=0, **options)
    with h5py.File(path) as file:
        partition = file["partition"]
        histogram, flipped = partition["label_histogram"][...], partition["flipped"][...]
        names, labels = partition["client_names"].asstr()[:].tolist(), partition["label_names"].asstr()[:].tolist()
    assert [row[0] for row in rows] == names
    assert [[int(count) for count in row[1:4]] for row in rows] == histogram.sum(axis=2).tolist()
    assert histogram.sum(axis=(0, 2)).tolist() == [54, 18, 18]
    assert [row[4] for row in rows] == ["yes" if flag else "no" for flag in flipped] and flipped.sum() == 2
    for row, counts in zip(rows, histogram[:, 0]):
        first = re.match(rf"({'|'.join(labels)}) (\d+) %", row[5])
        assert first and counts[labels.index(first.group(1))] == counts.max()
        assert int(first.group(2)) == pytest.approx(100 * counts.max() / counts.sum(), abs=0.51)


def test_inspect_describes_what_it_is_given(space: Workspace) -> None:
    path = space.run("inspected", checkpoint_every=1)
    newest = checkpoints(space.folder / "inspected.ckpt")[-1]
    outcome = space.call("inspect", path, space.pairs, LLAMA, GPT2, MISTRAL, newest)
    assert outcome.code == 0, outcome.err
    text = outcome.out
    accuracy = read(path, "rounds/test/after/accuracy")
    assert "method fedavg, 4 clients, 3 rounds, partition dirichlet alpha 1" in text and "seed 1" in text
    assert f"test accuracy {accuracy[0]:.4f} at the start, {accuracy[3]:.4f} after round 3" in text
    assert "90 pairs: train 54, validation 18, test 18" in text and "kind2" in text
    assert f"tokenizer tiny ({tokenizer_hash()[:12]})" in text and "(synthetic)" in text
    assert "family llama" in text and "family gpt2" in text and f"tokenizer sha256 {tokenizer_hash()}" in text
    assert "2 layers, hidden 32, heads 4 on 2 key-value heads of 8, intermediate 48, vocabulary 96" in text
    assert "family mistral" in text and "sliding window of 64 tokens" in text
    assert "option.lr-shared = 0.01" in text and "group-00000.safetensors" in text


def test_inspect_of_checkpoints(space: Workspace) -> None:
    space.run("kept", checkpoint_every=1, rounds=4)
    folder = space.folder / "kept.ckpt"
    older, newer = checkpoints(folder)
    text = space.call("inspect", folder).out
    assert f"{folder}: folder of 2 checkpoints\n" in text
    assert f"  {older.name}  after round 3 of 4, whole\n" in text
    assert f"  {newer.name}  after round 4 of 4, whole: the newest\n" in text
    assert f"\n{newer}: checkpoint after round 4 of 4\n" in text and str(older) not in text
    torn = next(newer.glob("client-*"))
    torn.write_bytes(torn.read_bytes()[:-1])
    text = space.call("inspect", folder, ranks=2).out
    assert f"  {older.name}  after round 3 of 4, whole: the newest\n" in text
    assert re.search(f"  {newer.name}  not whole: .*{torn.name}: expected [0-9]+ bytes", text)
    assert f"\n{older}: checkpoint after round 3 of 4\n" in text
    (older / "manifest.json").write_text("{")
    outcome = space.call("inspect", folder)
    assert outcome.code == 2 and "expected a whole checkpoint, found none" in outcome.error_lines[0]
    assert outcome.out.count("not whole") == 2
    # Stopped in a round.
    facts = manifest(newer)["facts"]
    for stage, words in (("before-exchange", "before"), ("after-exchange", "after")):
        path = newer / "manifest.json"
        path.write_text(json.dumps(manifest(newer) | {"facts": facts | {"moment": "within-round", "stage": stage}}))
        assert f"{newer}: checkpoint in round 5 of 4, {words} its exchange" in space.call("inspect", newer).out
    for damage in ("[]", '{"facts": {}, "round": 1}', '{"facts": {}, "files": [], "round": "x"}',
                   '{"facts": {}, "files": [{"size": 3}], "round": 1}'):
        (newer / "manifest.json").write_text(damage)
        outcome = space.call("inspect", newer)
        assert outcome.code == 2 and str(newer / "manifest.json") in outcome.error_lines[0]


def test_inspect_of_exported_models(space: Workspace) -> None:
    options = {"clients": 3, "min_train": 2, "rounds": 2, "checkpoint_every": 2, "lora_rank": 4, "lora_alpha": 6}
    space.run("lowrank", method="fedpdpo", bottleneck=3, bottleneck_kind="gated", reward_pool="mean", head="lowrank",
              head_rank=5, lora_targets="q_proj,down_proj", flip_clients=0.4, **options)
    space.run("full", method="fedper", **options)
    for name, *more in (("lowrank", "all"), ("full", "1"), ("full", "1", "--merge")):
        folder = space.folder / f"{name}{'-'.join(more)}"
        outcome = space.call("export", "--checkpoint", space.folder / f"{name}.ckpt", "--client", more[0], "--out",
                             folder, *more[1:])
        assert outcome.code == 0, outcome.err
    base = f"base {LLAMA}, content sha256 "
    whole = space.folder / "lowrankall"
    text = space.call("inspect", whole).out
    flipped = read(space.folder / "lowrank.h5", "partition/flipped")
    assert f"{whole}: folder of 3 exported models\n" in text
    for client, part in enumerate(re.split(r"\n(?=\S)", text)[1:]):
        size = lora_size([LLAMA_LINEARS[0], LLAMA_LINEARS[6]], 4)
        assert part.startswith(f"{whole}/client-{client:05}: adapter in PEFT's layout, LORA\n")
        assert f"  LoRA of rank 4, alpha 6, on down_proj, q_proj (4 modules), {size / 1e6:.3f} M parameters\n" in part
        assert "  head: LoRA of rank 5 on lm_head" in part and base in part
        assert "  bottleneck gated of width 3; reward head on the response's mean\n" in part
        assert f"  client {client} (client{client:03})" in part and ("swapped" in part) == bool(flipped[client])
        assert "  run of fedpdpo, 3 clients, after round 2 of 2, seed 1; loss dpo" in part
    text = space.call("inspect", space.folder / "full1").out
    assert f"  head: its own, {96 * 32 / 1e6:.3f} M parameters\n" in text and "bottleneck none; reward head none" in text
    assert "on down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj (14 modules)" in text
    text = space.call("inspect", space.folder / "full1---merge").out
    assert "model, family llama" in text and "  client 1 (client001), merged into its base\n" in text and base in text
    (space.folder / "full1" / "fedpdpo_modules.json").unlink()
    text = space.call("inspect", space.folder / "full1").out
    assert f"  base {LLAMA}\n" in text and "client" not in text
    (space.folder / "full1" / "adapter_config.json").write_text('{"r": 4}')
    outcome = space.call("inspect", space.folder / "full1")
    assert outcome.code == 2 and "peft_type: expected a string" in outcome.error_lines[0]


def test_inspect_goes_on_after_what_it_cannot_read(space: Workspace) -> None:
    first, second = space.folder / "nowhere", space.folder / "nothing"
    for ranks in (0, 2):
        outcome = space.call("inspect", first, LLAMA, second, space.pairs, ranks=ranks)
        assert outcome.code == 2 and [str(path) in line for path, line in zip((first, second), outcome.error_lines,
                                                                            strict=True)] == [True, True]
        assert "family llama" in outcome.out and "90 pairs" in outcome.out


def test_manifests_hold_the_hashes_of_their_files(space: Workspace) -> None:
    space.run("hashed", checkpoint_every=2, method="fedpdpo")
    for folder in checkpoints(space.folder / "hashed.ckpt"):
        files = manifest(folder)["files"]
        assert {entry["name"] for entry in files} | {"manifest.json"} == {path.name for path in folder.iterdir()}
        assert sum(entry["name"].startswith("client-") for entry in files) == 4
        for entry in files:
            data = (folder / entry["name"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])


def test_inspect_of_nothing_known(space: Workspace) -> None:
    other = space.folder / "notes.txt"
    other.write_text("notes")
    for path in (other, space.folder / "nowhere", space.folder):
        outcome = space.call("inspect", path)
        (line,) = outcome.error_lines
        assert outcome.code == 2 and str(path) in line and "expected" in line and "found" in line


def test_inspect_hashes_what_a_run_computed(space: Workspace) -> None:
    one, two, other = (space.run(name, ranks=ranks, rounds=2, seed=seed)
                       for name, ranks, seed in (("hash-one", 0, 1), ("hash-two", 2, 1), ("hash-other", 0, 2)))
    hashes = re.findall(r"results sha256 ([0-9a-f]{64})", space.call("inspect", one, two, other).out)
    assert len(hashes) == 3 and hashes[0] == hashes[1] != hashes[2]
    with h5py.File(one, "r+") as file:
        file["environment"].attrs["hostname"] = "elsewhere"
    assert hashes[0] in space.call("inspect", one).out
    with h5py.File(one, "r+") as file:
        file["clients/train/loss"][2, 0] += 1e-9
    assert hashes[0] not in space.call("inspect", one).out


def test_bench_gives_rates_that_fit_together(space: Workspace) -> None:
    path = space.folder / "bench.json"
    outcome = space.call("bench", "--model", LLAMA, "--tokens", "8/6/5", "--clients", "1,3", "--pairs", "2,4",
                         "--repeats", 2, "--warmup", 1, "--ceiling", 64, "--micro-rows", 40, "--json", path)
    assert outcome.code == 0, outcome.err
    lines = re.findall(r"^ +(\d+) +(\d+) +1 +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +[\d.]+ +([\d.]+) % +([\d.]+) %",
                       outcome.out, re.MULTILINE)
    assert [(int(line[0]), int(line[1])) for line in lines] == [(1, 2), (3, 2), (1, 4), (3, 4)]
    assert all(line[2] == "38" for line in lines), "19 rows a pair, two pairs a pass"
    assert "tiny_llama" in outcome.out and "8/6/5 tokens, 19 packed rows and 11 targets" in outcome.out
    bench = json.loads(path.read_text())
    assert bench["format"] == "fedpdpo-bench" and bench["device"] == "cpu" and bench["options"]["method"] == "fedpdpo"
    assert bench["model"]["vocab_size"] == 96 and bench["model"]["num_layers"] == 2
    assert bench["trainables"] == lora_size(LLAMA_LINEARS, 8) + 2 * 16 * 32 + 16 + 96 * 32 + 32 + 1
    operations = [result["operations_forward"] + result["operations_backward"] for result in bench["results"]]
    np.testing.assert_allclose(operations, operations[0] * np.array([1, 3, 2, 6]), rtol=1e-12)
    for line, result in zip(lines, bench["results"]):
        seconds, pairs, tokens, ceiling, layers = map(float, line[3:])
        assert len(result["seconds"]) == 2 and result["seconds_median"] == pytest.approx(np.mean(result["seconds"]))
        assert pairs == pytest.approx(int(line[0]) * int(line[1]) / result["seconds_median"], rel=1e-3)
        assert seconds == pytest.approx(result["seconds_median"], rel=0.2) and tokens == pytest.approx(19 * pairs, rel=1e-3)
        done = result["operations_forward"] + result["operations_backward"]
        assert ceiling / 100 == pytest.approx(done / result["seconds_median"] / np.mean(result["ceiling_rates"]), abs=1e-3)
        assert layers / 100 == pytest.approx(done / result["seconds_median"] / np.mean(result["layer_rates"]), abs=1e-3)
        # A client has its values, two moments and a gradient; the backbone alone is more than this.
        assert result["memory_bytes"] > 4 * bench["trainables"] * (3 * result["clients"] + 1)


def test_bench_of_a_cohort_and_its_profile(space: Workspace) -> None:
    path = space.folder / "cohort.json"
    outcome = space.call("bench", "--model", LLAMA, "--method", "fedavg", "--tokens", "8/6/5", "--clients", "5",
                         "--pairs", 2, "--cohort", 3, "--micro-rows", 1000, "--repeats", 1, "--warmup", 1, "--ceiling", 64,
                         "--profile", "--json", path)
    assert outcome.code == 0, outcome.err
    (result,) = json.loads(path.read_text())["results"]
    assert result["cohort"] == 3 and result["rows_of_largest_pass"] == 3 * 2 * 17  # without the responses' last rows
    calls = {operation: entry["calls"] for operation, entry in result["profile"].items()}
    # Two cohorts, each one pass over two layers; the head's chunk, too.
    assert calls["attention"] == calls["attention_backward"] == 2 * 2
    assert calls["linear 64x32"] == calls["linear 32x48"] == 2 * 2 and calls["linear 96x32"] == 2 * 2 + 2
    assert calls["adamw_spans"] == calls["squared_norms"] == 2
    assert all(entry["seconds"] > 0 for entry in result["profile"].values())
    assert re.search(r"grouped_outer +\d+ calls", outcome.out)


def test_bench_counts_what_a_device_would_have_to_do(space: Workspace) -> None:
    path = space.folder / "count.json"
    outcome = space.call("bench", "--count", "--model", LLAMA, "--method", "fedavg", "--precision", "bf16", "--tokens",
                         "8/6/5", "--clients", 3, "--pairs", 2, "--json", path)
    assert outcome.code == 0, outcome.err
    assert "counted, not measured" in outcome.out and re.search(r"^ +a step +[\d.]+ MB +[\d.]+ GFLOP$", outcome.out, re.M)
    (result,) = json.loads(path.read_text())["results"]
    assert (result["cohort"], result["rows_of_largest_pass"]) == (3, 6 * 17) and "seconds" not in result
    cost = {operation: (entry["bytes"], entry["operations"]) for operation, entry in result["profile"].items()}
    # A pair is 8 rows of prompt and 5 and 4 of the responses, which see it, and 11 targets; the model has two layers.
    attended = 8 * 9 // 2 + 5 * 8 + 5 * 6 // 2 + 4 * 8 + 4 * 5 // 2
    assert cost["attention"] == (2 * 102 * (2 * (64 + 32) + 4 * 4), 2 * 6 * 4 * 32 * attended)
    assert cost["attention_backward"][1] == 2.5 * cost["attention"][1]
    # LoRA's term is there before the product adds to it, in bf16.
    assert cost["linear 32x48"] == (2 * 2 * (102 * 48 + 32 * 48 + 2 * 102 * 32), 2 * 2 * 102 * 32 * 48)
    trainables = lora_size(LLAMA_LINEARS, 8)
    assert cost["adamw_spans"] == (3 * 7 * 4 * trainables, 0)
    assert cost["low_rank_up"][1] == 2 * 2 * 102 * 8 * sum(rows for rows, _ in LLAMA_LINEARS)


def test_bench_prints_its_figures(space: Workspace) -> None:
    outcome = space.call("bench", "--count", "--model", LLAMA, "--tokens", "8/6/5", "--clients", "1,3", "--json", "-")
    assert outcome.code == 0, outcome.err
    assert [result["clients"] for result in json.loads(outcome.out)["results"]] == [1, 3]
    assert not (space.folder / "-").exists()


def test_bench_of_more_tokens_than_a_model_reads(space: Workspace) -> None:
    def refused(model: Path, tokens: str) -> str:
        outcome = space.call("bench", "--count", "--model", model, "--tokens", tokens)
        assert outcome.code == 2, outcome.err
        return outcome.error_lines[0]

    assert refused(LLAMA, "100/29/3") == ("fedpdpo: error: --tokens: expected at most the model's 128 positions, "
                                          "found 100/29/3, 129 with the longer response")
    assert "found 100/3/29, 129 with" in refused(LLAMA, "100/3/29")
    assert "at most the 64 tokens of the model's sliding_window" in refused(MISTRAL, "60/5/1")
    for model, tokens in ((LLAMA, "100/28/3"), (MISTRAL, "60/4/1")):
        assert space.call("bench", "--count", "--model", model, "--tokens", tokens).code == 0


def test_bench_leaves_out_what_would_take_too_long(space: Workspace) -> None:
    outcome = space.call("bench", "--model", LLAMA, "--tokens", "8/6/5", "--clients", "1,100000", "--repeats", 1,
                         "--warmup", 1, "--ceiling", 64, "--most-seconds", 0.001)
    assert outcome.code == 0, outcome.err
    assert re.search(r"^ +100000 +1 .* would take about \d+ s a step$", outcome.out, re.MULTILINE)


def test_help_and_version(space: Workspace) -> None:
    general = space.call("help", ranks=2)
    assert general.code == 0 and general.err == "" and general.out.count("usage:") == 1
    for subcommand in ("run", "plan", "partition", "inspect", "bench"):
        assert subcommand in general.out
        assert space.call("help", subcommand).out == space.call(subcommand, "--help").out != ""
    text = space.call("run", "--help").out
    for name in ("--model", "--data", "--method", "--lr-private", "--checkpoint-every", "--resume", "fedpdpo"):
        assert name in text
    version = space.call("version", ranks=2)
    assert version.code == 0 and re.fullmatch(r"fedpdpo \d+\.\d+\.\d+ \(.*\)\n", version.out)
    assert space.call("--version").out == version.out


def test_a_config_file_gives_what_the_command_line_would(space: Workspace) -> None:
    other = write_pairs(space.folder / "other.h5", random_pairs(60, seed=4, domain="other"))
    config = space.folder / "run.cfg"
    config.write_text(f"[input]\nmodel = {LLAMA}\ndata = {space.pairs} {other}  # two domains\n[training]\n"
                      "method = fedpdpo\nclients = 4\nrounds = 9\nsteps=2\nbatch=4\nmin-train = 2\nreward-head = off\n")
    outcome = space.call("run", "--config", config, "--rounds", 1, "--out", space.folder / "by-config.h5")
    assert outcome.code == 0, outcome.err
    with h5py.File(space.folder / "by-config.h5") as file:
        given = dict(file["config"].attrs)
    assert given["rounds"] == "1" and given["method"] == "fedpdpo" and given["reward-head"] == "off"
    assert given["bottleneck"] == "16" and given["head"] == "full"  # the method's own
    assert given["data"] == f"{space.pairs} {other}" and given["model"] == str(LLAMA)
    assert given["command_line"].startswith("fedpdpo run --config")
