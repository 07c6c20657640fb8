"""`eval`: a checkpoint's models score as the run scored them; on any number of ranks; what is told, and how."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from export_support import (MODELS, OTHER_FAMILIES, assert_close_scores, assert_run_margins, assert_same_scores,
                            evaluate, export, finished_run, folder_of, read_evaluation, scores_of, succeed)
from run_support import GPT2, LLAMA, Workspace, checkpoints, needs_program, random_pairs, read, write_pairs

pytestmark = needs_program

CASES = {
    "fedpdpo": {"method": "fedpdpo", "bottleneck": 4, "flip_clients": 0.4},
    "gated, mean": {"method": "fedpdpo", "bottleneck": 3, "bottleneck_kind": "gated", "reward_pool": "mean",
                    "head": "lowrank", "head_rank": 3},
    "ditto": {"method": "ditto"},
    "apfl": {"method": "apfl"},
    "fedsa": {"method": "fedsa-lora"},
    "flora, ranks": {"method": "flora", "lora_rank": 4, "lora_ranks": "2,4"},
    "fedex": {"method": "fedex-lora"},
    "refit": {"method": "fedavg-ft", "refit": 2},
    "groups": {"method": "fedavg", "groups": "clusters:2", "clients": 4},
    "ipo": {"method": "fedavg", "loss": "ipo"},
    "simpo": {"method": "fedavg", "loss": "simpo"},
    "pooled": {"method": "centralized"},
}


# One family is enough for what does not touch the model.
@pytest.mark.parametrize(("case", "model"), [(case, "llama") for case in CASES] + [
    (case, model) for model in ("tied", "gpt2") for case in ("fedpdpo", "gated, mean", "fedex")])
def test_as_the_run_scored_them(space: Workspace, case: str, model: str) -> None:
    name = f"{model}-{case.replace(', ', '-')}"
    run = finished_run(space, name, model=MODELS[model], **CASES[case])
    found = evaluate(space, name, "--checkpoint", folder_of(run))
    assert_run_margins(run, found, CASES[case].get("clients", 3))
    # Far more than the tolerance lies between a client's model and the base.
    base = scores_of(found, "base")
    np.testing.assert_array_equal(base["logp_chosen"], found["pairs/reference_chosen"])
    for client in found["models"][1:]:
        assert np.abs(scores_of(found, client)["logp_chosen"] - base["logp_chosen"]).max() > 0.01


def test_any_number_of_ranks_gives_the_same_file(space: Workspace) -> None:
    run = finished_run(space, "ranked", method="fedpdpo", bottleneck=4)
    data = write_pairs(space.folder / "many.h5", random_pairs(400, seed=5, domain="others"))
    files = [space.pairs, data]
    one, three = (evaluate(space, f"ranks-{ranks}", "--checkpoint", folder_of(run), "--micro-rows", 96, data=files,
                           ranks=ranks) for ranks in (0, 3))
    assert one.keys() == three.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, three[name], err_msg=name)
    # Another file beside it changes nothing of a file's numbers.
    alone = evaluate(space, "alone", "--checkpoint", folder_of(run), "--micro-rows", 96)
    both = scores_of(one, "client 1")["margin"][one["pairs/file"] == 0]
    np.testing.assert_array_equal(scores_of(alone, "client 1")["margin"], both)


def test_an_exported_adapter_scores_as_the_checkpoint(space: Workspace) -> None:
    """To the last bit: what is written is what is read."""
    for case in ("fedpdpo", "gated, mean", "ditto", "apfl", "fedsa"):
        run = finished_run(space, f"again-{case.split(',')[0]}", model=GPT2, **CASES[case])
        folder = export(space, run, "all", run.with_suffix(".models"))
        found = evaluate(space, run.stem, "--checkpoint", folder_of(run))
        for client in range(3):
            again = evaluate(space, "again", "--model", GPT2, "--adapter", folder / f"client-{client:05}")
            assert again["models"] == ["base", "adapter"]
            assert_same_scores(scores_of(again, "adapter"), scores_of(found, f"client {client}"))


@pytest.mark.parametrize(("case", "model"), [
    ("head", "llama"), ("lowrank", "llama"), ("flora, ranks", "llama"), ("apfl", "llama"), ("first layer", "llama"),
    ("head", "tied"), ("fedpdpo", "tied"), ("fedex", "tied"),
    ("lowrank", "gpt2"), ("fedpdpo", "gpt2"), ("flora, ranks", "gpt2"), ("first layer", "gpt2")])
def test_a_merged_model_scores_as_the_checkpoint(space: Workspace, case: str, model: str) -> None:
    options = CASES | {"head": {"method": "fedper"}, "first layer": {"method": "fedavg", "lora_first_layer": 1},
                       "lowrank": {"method": "fedper", "head": "lowrank", "head_rank": 3}}
    name = f"merged-{model}-{case.replace(', ', '-').replace(' ', '-')}"
    run = finished_run(space, name, model=MODELS[model], **options[case])
    folder = export(space, run, 1, run.with_suffix(".whole"), "--merge")
    config = json.loads((folder / "config.json").read_text())
    own_head = case in ("head", "lowrank", "fedpdpo")
    if own_head and model != "llama":
        assert config["tie_word_embeddings"] is False
    else:
        assert config == json.loads((MODELS[model] / "config.json").read_text())
    found = evaluate(space, name, "--checkpoint", folder_of(run), "--client", 1)
    again = evaluate(space, name + "-again", "--model", folder, "--reference", MODELS[model])
    assert again["models"] == ["merged client 1"] and again["models/client"].tolist() == [1]
    np.testing.assert_array_equal(again["pairs/reference_chosen"], found["pairs/reference_chosen"])
    assert_close_scores(scores_of(again, "merged client 1"), scores_of(found, "client 1"))


def test_a_merged_model_is_held_against_its_own_base(space: Workspace, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(LLAMA, base)
    run = finished_run(space, "own-base", method="fedpdpo", flip_clients=0.4, model=base)
    folder = export(space, run, "all", run.with_suffix(".whole"), "--merge") / "client-00001"
    found = evaluate(space, "own-base", "--checkpoint", folder_of(run))
    name = "merged client 1"
    for ranks in (0, 2):
        again = evaluate(space, "own-base-again", "--model", folder, ranks=ranks)
        assert again["models"] == [name]
        assert again["models/flipped"].tolist() == [found["models/flipped"][2]]
        np.testing.assert_array_equal(again["pairs/reference_chosen"], found["pairs/reference_chosen"])
        assert_close_scores(scores_of(again, name), scores_of(found, "client 1"))
    outcome = space.call("eval", "--data", space.pairs, "--model", folder)
    assert f"margins are against {base}" in outcome.err and name in outcome.out
    # Shared models are told by their group.
    shared = finished_run(space, "own-base-shared", method="fedavg", model=base)
    whole = export(space, shared, "shared", shared.with_suffix(".whole"), "--merge")
    assert evaluate(space, "own-base-shared", "--model", whole)["models"] == ["merged shared 0"]
    # Another model began from it: it is that one's reference.
    below = finished_run(space, "below", method="fedavg", model=whole)
    ours = evaluate(space, "below", "--checkpoint", folder_of(below))
    adapter = export(space, below, 0, below.with_suffix(".adapter"))
    theirs = evaluate(space, "below-again", "--model", whole, "--adapter", adapter)
    assert theirs["models"] == ["merged shared 0", "adapter"]
    np.testing.assert_array_equal(theirs["pairs/reference_chosen"], ours["pairs/reference_chosen"])

    def refused(*expected: str) -> None:
        outcome = space.call("eval", "--data", space.pairs, "--model", folder)
        (line,) = outcome.error_lines
        assert outcome.code == 2 and "--reference" in line
        for text in (str(folder / "fedpdpo_modules.json"), *expected):
            assert text in line

    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config + "\n")
    noted = json.loads((folder / "fedpdpo_modules.json").read_text())
    refused("base.sha256", noted["base"]["sha256"], str(base))
    (base / "config.json").write_text(config)
    base.rename(tmp_path / "elsewhere")
    refused("base.path", str(base))
    moved = evaluate(space, "moved-base", "--model", folder, "--reference", tmp_path / "elsewhere")
    assert_close_scores(scores_of(moved, name), scores_of(found, "client 1"))
    (folder / "fedpdpo_modules.json").write_text(json.dumps(noted | {"base": {}}))
    refused("no path and sha256")
    (folder / "fedpdpo_modules.json").write_text(json.dumps(noted | {"base": {"path": 3}}))
    outcome = space.call("eval", "--data", space.pairs, "--model", folder)
    assert outcome.code == 2 and "path: expected a string, found 3" in outcome.error_lines[0]


@pytest.mark.parametrize("model", OTHER_FAMILIES)
def test_other_families(space: Workspace, model: str) -> None:
    """A client's model in the checkpoint, as an adapter, and merged."""
    base = OTHER_FAMILIES[model]
    run = finished_run(space, f"family-{model}", model=base, method="fedper")
    found = evaluate(space, run.stem, "--checkpoint", folder_of(run), "--client", 1)
    adapter = export(space, run, 1, run.with_suffix(".adapter"))
    again = evaluate(space, "adapter", "--model", base, "--adapter", adapter)
    assert_same_scores(scores_of(again, "adapter"), scores_of(found, "client 1"))
    whole = export(space, run, 1, run.with_suffix(".whole"), "--merge")
    merged = evaluate(space, "whole", "--model", whole, "--reference", base)
    assert_close_scores(scores_of(merged, "merged client 1"), scores_of(found, "client 1"))


def test_shared_models(space: Workspace) -> None:
    """With everything shared it is every client's; A that is frozen at its start is part of it."""
    for method in ("fedavg", "ffa-lora", "rolora", "flora"):
        run = finished_run(space, f"shared-{method}", method=method)
        shared, clients = (evaluate(space, f"{method}-{which}", "--checkpoint", folder_of(run), "--client", which)
                           for which in ("shared", "all"))
        assert shared["models"] == ["base", "shared 0"]
        assert_same_scores(scores_of(shared, "shared 0"), scores_of(clients, "client 2"))
    run = finished_run(space, "shared-groups", method="fedavg", groups="clusters:2", clients=4)
    found = evaluate(space, "shared-groups", "--checkpoint", folder_of(run), "--client", "shared")
    assert found["models"] == ["base", "shared 0", "shared 1"]
    run = finished_run(space, "shared-personal", method="fedpdpo")
    found = evaluate(space, "shared-personal", "--checkpoint", folder_of(run), "--client", "shared")
    assert found["models/reward_head"].tolist() == [0, 0]


def test_what_is_given_wins_over_the_run(space: Workspace) -> None:
    run = finished_run(space, "loss", method="fedavg", beta=0.2)
    own, other = (evaluate(space, "loss", "--checkpoint", folder_of(run), *more) for more in ((), ("--beta", 0.4)))
    assert own["models/beta"].tolist() == [0.2] * 4 and other["models/beta"].tolist() == [0.4] * 4
    np.testing.assert_allclose(scores_of(other, "client 0")["margin"], 2 * scores_of(own, "client 0")["margin"],
                               rtol=1e-12)
    folder = export(space, run, 0, space.folder / "loss-model")
    noted = evaluate(space, "noted", "--model", LLAMA, "--adapter", folder)
    assert noted["models/beta"].tolist() == [0.2, 0.2]


def test_figures_are_those_of_the_pairs(space: Workspace) -> None:
    run = finished_run(space, "figures", method="fedpdpo", bottleneck=4)
    data = [space.pairs, write_pairs(space.folder / "second.h5", random_pairs(60, seed=9, domain="second"))]
    out, figures = space.folder / "figures.eval.h5", space.folder / "figures.json"
    outcome = succeed(space.call("eval", "--data", *data, "--checkpoint", folder_of(run), "--client", 2, "--out", out,
                                 "--json", figures, "--split", "validation"))
    found, told = read_evaluation(out), json.loads(figures.read_text())
    assert told["split"] == "validation" and [model["name"] for model in told["models"]] == ["base", "client 2"]
    assert "client 2" in outcome.out and "toys/kind1" in outcome.out and "second" in outcome.out
    own = scores_of(found, "client 2")
    for f in range(2):
        mine = found["pairs/file"] == f
        expected = {
            "pairs": mine.sum(), "accuracy": np.mean(own["margin"][mine] > 0),
            "accuracy_explicit": np.mean(own["margin_explicit"][mine] > 0),
            "margin_implicit": own["margin_implicit"][mine].mean(),
            "accuracy_likelihood": np.mean(own["logp_chosen"][mine] > own["logp_rejected"][mine]),
            "logp_rejected": own["logp_rejected"][mine].mean()}
        for name, value in expected.items():
            np.testing.assert_allclose(told["models"][1]["files"][f][name], value, rtol=1e-12, err_msg=name)
            np.testing.assert_allclose(found[f"files/{name}"][1, f], value, rtol=1e-12, err_msg=name)
    labels = found["pairs/label_names"]
    mine = found["pairs/label"] == labels.index("second/kind0")
    np.testing.assert_allclose(told["models"][1]["labels"]["second/kind0"]["margin"], own["margin"][mine].mean(),
                               rtol=1e-12)
    reward = own["reward_chosen"] - own["reward_rejected"]
    np.testing.assert_allclose(own["margin_explicit"], reward, rtol=1e-12)
    np.testing.assert_allclose(own["margin"], own["margin_implicit"] + reward, rtol=1e-9, atol=1e-12)
    told_again = succeed(space.call("inspect", out)).out
    assert "evaluation of 2 models" in told_again and "client 2 on second: accuracy" in told_again
    printed = json.loads(succeed(space.call("eval", "--data", *data, "--checkpoint", folder_of(run), "--client", 2,
                                            "--json", "-", "--split", "validation")).out)
    assert printed["models"] == told["models"]


def test_the_training_history_agrees(space: Workspace) -> None:
    run = finished_run(space, "history", method="fedper")
    figures = json.loads(succeed(space.call("eval", "--data", space.pairs, "--checkpoint",
                                            checkpoints(folder_of(run))[-1], "--json", "-")).out)
    for client in range(3):
        pairs = read(run, "partition/test/pair")[slice(*read(run, "partition/test/offsets")[client:client + 2])]
        assert len(pairs) < figures["models"][client + 1]["all"]["pairs"]
    assert [model["client"] for model in figures["models"]] == [None, 0, 1, 2]


def test_swapped_clients_are_marked(space: Workspace) -> None:
    run = finished_run(space, "swapped", method="local", flip_clients=0.4, steps=10)
    flipped = read(run, "partition/flipped")
    assert flipped.sum() == 1
    out = space.folder / "swapped.eval.h5"
    outcome = succeed(space.call("eval", "--data", space.pairs, "--checkpoint", folder_of(run), "--out", out))
    found = read_evaluation(out)
    assert found["models/flipped"].tolist() == [0, *flipped]
    assert f"client {int(np.argmax(flipped))}* " in outcome.out and "swapped" in outcome.out


def test_another_place_of_the_model_will_do(space: Workspace, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in LLAMA.iterdir():
        if path.name.split(".")[0] in ("config", "model", "tokenizer"):
            (copy / path.name).write_bytes(path.read_bytes())
    run = finished_run(space, "moved", method="fedavg", model=copy)
    first = evaluate(space, "moved", "--checkpoint", folder_of(run))
    copy.rename(tmp_path / "elsewhere")
    outcome = space.call("eval", "--data", space.pairs, "--checkpoint", folder_of(run))
    assert outcome.code == 2 and str(copy) in outcome.error_lines[0]
    second = evaluate(space, "moved", "--checkpoint", folder_of(run), "--model", tmp_path / "elsewhere")
    assert_same_scores(scores_of(first, "client 0"), scores_of(second, "client 0"))
