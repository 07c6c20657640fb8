"""`export` without PyTorch: the files, their names and shapes; which checkpoint is taken; what is refused, and how."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_support import (MODELS, TIED, assert_same_scores, change_fact, evaluate, export, finished_run, folder_of,
                            scores_of, succeed)
from run_support import (GPT2, LLAMA, Workspace, catches, checkpoints, client_arrays, group_values, manifest,
                         needs_program, random_pairs, wait_for, write_pairs)
from safetensors.numpy import load_file, save_file

pytestmark = needs_program


@pytest.fixture(scope="module")
def personal(space: Workspace) -> Path:
    """A run with every module."""
    return finished_run(space, "personal", method="fedpdpo", bottleneck=4)


@pytest.fixture(scope="module")
def shared(space: Workspace) -> Path:
    return finished_run(space, "shared", method="fedavg")


def adapter_of(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return (json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors"))


# What is written

LLAMA_MODULES = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
GPT2_MODULES = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}


@pytest.mark.parametrize("model", MODELS)
def test_an_adapter_has_pefts_names(space: Workspace, model: str) -> None:
    """Those that PEFT 0.21 writes for the same modules; test_end_to_end_export_peft.py asks PEFT itself."""
    run = finished_run(space, f"names-{model}", model=MODELS[model], method="fedper", lora_rank=3, lora_alpha=5)
    config, tensors = adapter_of(export(space, run, 0, run.with_suffix(".model")))
    modules, layers = (GPT2_MODULES, "transformer.h") if model == "gpt2" else (LLAMA_MODULES, "model.layers")
    assert set(tensors) == {"base_model.model.lm_head.weight"} | {
        f"base_model.model.{layers}.{layer}.{module}.lora_{factor}.weight"
        for layer in range(2) for module in modules for factor in "AB"}
    assert config["target_modules"] == sorted({module.split(".")[1] for module in modules})
    assert config["fan_in_fan_out"] == (model == "gpt2")
    assert config["base_model_name_or_path"] == str(MODELS[model])
    expected = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5, "lora_dropout": 0.0,
                "bias": "none", "modules_to_save": ["lm_head"], "rank_pattern": {}, "alpha_pattern": {}}
    assert {name: config[name] for name in expected} == expected
    assert tensors["base_model.model.lm_head.weight"].shape == (96, 32)
    # The client's own numbers, all of them.
    values = client_arrays(run, 0)["values"]
    np.testing.assert_array_equal(np.sort(np.concatenate([t.ravel() for t in tensors.values()])), np.sort(values))


def test_modules_that_share_a_last_name_are_told_apart(space: Workspace) -> None:
    run = finished_run(space, "one-of-two", model=GPT2, method="fedavg", lora_targets="attn.c_proj,c_fc")
    config, tensors = adapter_of(export(space, run, 0, run.with_suffix(".model")))
    assert config["target_modules"] == ["attn.c_proj", "c_fc"] and len(tensors) == 8
    run = finished_run(space, "upper", method="fedavg", lora_targets="q_proj", lora_first_layer=1)
    config, tensors = adapter_of(export(space, run, 0, run.with_suffix(".model")))
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"] and len(tensors) == 2


def test_a_low_rank_head_is_a_lora_of_the_head(space: Workspace) -> None:
    run = finished_run(space, "low-rank", method="fedper", head="lowrank", head_rank=5, lora_rank=2)
    config, tensors = adapter_of(export(space, run, 0, run.with_suffix(".model")))
    assert "lm_head" in config["target_modules"] and config["modules_to_save"] is None
    assert config["rank_pattern"] == config["alpha_pattern"] == {"lm_head": 5}
    assert tensors["base_model.model.lm_head.lora_A.weight"].shape == (5, 32)
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (96, 5)


def test_every_client_and_what_is_beside(space: Workspace, personal: Path) -> None:
    out = space.folder / "all"
    outcome = succeed(space.call("export", "--checkpoint", folder_of(personal), "--client", "all", "--out", out))
    assert outcome.err.count("warning") == 1 and "bottleneck is not PEFT's" in outcome.err
    assert sorted(path.name for path in out.iterdir()) == [f"client-{c:05}" for c in range(3)]
    seen = set()
    for client, folder in enumerate(sorted(out.iterdir())):
        about = json.loads((folder / "fedpdpo_modules.json").read_text())
        modules = load_file(folder / "fedpdpo_modules.safetensors")
        assert {name: tensor.shape for name, tensor in modules.items()} == {
            "bottleneck.down": (4, 32), "bottleneck.bias": (4,), "bottleneck.up": (32, 4), "reward.weight": (32,),
            "reward.bias": (1,)}
        assert about["bottleneck"] == {"kind": "residual", "width": 4, "activation": "gelu"}
        assert about["reward_head"] == {"pool": "last"} and about["evaluation_point"] == "after"
        assert (about["model"]["client"], about["model"]["name"]) == (client, f"client00{client}")
        assert (about["run"]["method"], about["run"]["round"], about["run"]["rounds"]) == ("fedpdpo", 2, 2)
        assert about["base"]["sha256"] == manifest(checkpoints(folder_of(personal))[-1])["facts"]["sha256.model"]
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n") and f"client {client}" in card and "after round 2 of 2" in card
        assert "load_client" in card and str(LLAMA) in card
        seen.add(modules["bottleneck.up"].tobytes())
    assert len(seen) == 3


def test_ditto_writes_the_personal_lora_and_shared_the_common_one(space: Workspace) -> None:
    run = finished_run(space, "ditto", method="ditto")
    _, own = adapter_of(export(space, run, 0, space.folder / "ditto-own"))
    _, common = adapter_of(export(space, run, "shared", space.folder / "ditto-shared"))
    assert own.keys() == common.keys()
    assert all(np.any(own[name] != common[name]) for name in own)
    flat = np.sort(np.concatenate([tensor.ravel() for tensor in common.values()]))
    np.testing.assert_array_equal(flat, np.sort(group_values(run)))


def test_groups_have_a_shared_model_each(space: Workspace) -> None:
    run = finished_run(space, "grouped", method="fedavg", groups="clusters:2", clients=4)
    out = export(space, run, "shared", space.folder / "grouped-shared")
    assert sorted(path.name for path in out.iterdir()) == ["group-00000", "group-00001"]
    (_, first), (_, second) = (adapter_of(out / f"group-0000{group}") for group in range(2))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert np.any(first[name] != second[name])


def test_merged_weights_are_the_sum(space: Workspace) -> None:
    """In double, from the files alone; W0 of GPT-2 is stored transposed."""
    for model, module, transposed in ((LLAMA, "model.layers.1.mlp.down_proj", False),
                                      (GPT2, "transformer.h.1.mlp.c_proj", True)):
        run = finished_run(space, f"sum-{model.name}", model=model, method="fedavg", lora_alpha=3)
        whole = load_file(export(space, run, 1, run.with_suffix(".whole"), "--merge") / "model.safetensors")
        _, tensors = adapter_of(export(space, run, 1, run.with_suffix(".model")))
        start = load_file(model / "model.safetensors")
        a, b = (tensors[f"base_model.model.{module}.lora_{factor}.weight"].astype(float) for factor in "AB")
        change = 3 / 2 * (b @ a)
        assert np.abs(change).max() > 0.01
        expected = start[f"{module}.weight"] + (change.T if transposed else change)
        np.testing.assert_allclose(whole[f"{module}.weight"], expected, rtol=1e-6, atol=1e-7)
        untouched = [name for name in start if "layers" not in name and ".h." not in name]
        assert untouched and whole.keys() == start.keys()
        for name in untouched:
            np.testing.assert_array_equal(whole[name], start[name])


def test_a_swapped_client_is_told_so(space: Workspace) -> None:
    run = finished_run(space, "flipped", method="local", flip_clients=0.4)
    flips = manifest(checkpoints(folder_of(run))[-1])["facts"]["flipped"].split()
    out = export(space, run, "all", space.folder / "flipped")
    for client, flip in enumerate(flips):
        about = json.loads((out / f"client-{client:05}" / "fedpdpo_modules.json").read_text())
        assert about["model"]["preferences_swapped"] == (flip == "1")
        assert ("preferences were swapped" in (out / f"client-{client:05}" / "README.md").read_text()) == (flip == "1")
    assert sorted(flips) == ["0", "0", "1"]


# Which checkpoint


def test_a_folder_of_checkpoints_or_one_of_them(space: Workspace) -> None:
    run = finished_run(space, "several", method="fedavg", checkpoint_every=1, rounds=3)
    older, newest = checkpoints(folder_of(run))
    rounds = {}
    for name, place in {"newest": folder_of(run), "named": newest, "older": f"{older}/"}.items():
        out = space.folder / f"several-{name}"
        succeed(space.call("export", "--checkpoint", place, "--client", 0, "--out", out))
        rounds[name] = (json.loads((out / "fedpdpo_modules.json").read_text())["run"]["round"],
                        (out / "adapter_model.safetensors").read_bytes())
    assert rounds["newest"] == rounds["named"] and rounds["newest"][0] == 3
    assert rounds["older"][0] == 2 and rounds["older"][1] != rounds["newest"][1]


def test_under_mpirun_one_rank_writes(space: Workspace, shared: Path) -> None:
    alone = export(space, shared, 0, space.folder / "alone")
    succeed(space.call("export", "--checkpoint", folder_of(shared), "--client", 0, "--out", space.folder / "two", ranks=2))
    for path in alone.iterdir():
        assert path.read_bytes() == (space.folder / "two" / path.name).read_bytes()


def test_the_last_round_is_always_there(space: Workspace) -> None:
    """Whether or not its number is a multiple."""
    for every, rounds in ((2, 4), (3, 4), (100, 2)):
        run = finished_run(space, f"last-{every}", method="fedavg", checkpoint_every=every, rounds=rounds)
        out = export(space, run, 0, run.with_suffix(".model"))
        assert json.loads((out / "fedpdpo_modules.json").read_text())["run"]["round"] == rounds


def test_a_stop_within_a_round(space: Workspace) -> None:
    """Clients' models are half done: refused, or an earlier whole round's are taken; what is shared is whole."""
    job = space.start("stopped", method="fedavg", steps=200_000, rounds=3)
    wait_for(lambda: job.process.poll() is not None or (space.folder / "stopped.h5.partial").exists(), "the first round")
    assert catches(job.process.pid, signal.SIGTERM)
    time.sleep(1)  # far into the round's steps
    job.process.send_signal(signal.SIGTERM)
    assert job.finish().code == 75
    folder = space.folder / "stopped.ckpt"
    (stop,) = checkpoints(folder)
    facts = manifest(stop)["facts"]
    assert facts["moment"] == "within-round" and facts["stage"] == "before-exchange"
    call = ["export", "--out", space.folder / "stopped-model", "--client"]
    outcome = space.call(*call, 0, "--checkpoint", folder)
    assert outcome.code == 2 and "expected a checkpoint at the end of a round, found only that of a stop within round 1" \
        in outcome.error_lines[0], outcome.err
    outcome = space.call(*call, "all", "--checkpoint", stop)
    assert outcome.code == 2 and "half done: resume the run" in outcome.error_lines[0], outcome.err
    outcome = space.call("eval", "--data", space.pairs, "--checkpoint", stop)
    assert outcome.code == 2 and "half done" in outcome.error_lines[0], outcome.err
    # The server's state is that of the last exchange: here the start, B = 0.
    out = space.folder / "stopped-shared"
    succeed(space.call("export", "--checkpoint", folder, "--client", "shared", "--out", out))
    assert json.loads((out / "fedpdpo_modules.json").read_text())["run"]["round"] == 0
    assert all(not tensor.any() for name, tensor in adapter_of(out)[1].items() if "lora_B" in name)


def test_an_earlier_whole_round_is_taken(space: Workspace) -> None:
    run = finished_run(space, "earlier", method="fedavg", checkpoint_every=1, rounds=3)
    older, newest = checkpoints(folder_of(run))
    change_fact(newest, "moment", "within-round")
    outcome = succeed(space.call("export", "--checkpoint", folder_of(run), "--client", 0, "--out", space.folder / "e"))
    assert "a newer checkpoint, of a stop within a round, is passed over" in outcome.err and older.name in outcome.err
    assert json.loads((space.folder / "e" / "fedpdpo_modules.json").read_text())["run"]["round"] == 2


# Refusals


def refuse(space: Workspace, run: Path, client: Any, *more: Any, checkpoint: Path | None = None) -> str:
    out = space.folder / "refused"
    outcome = space.call("export", "--checkpoint", checkpoint or folder_of(run), "--client", client, "--out", out, *more,
                         ranks=2)
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.err
    assert not out.exists() and not out.with_name("refused.partial").exists()
    return outcome.error_lines[0]


def test_models_that_no_adapter_is(space: Workspace) -> None:
    for method in ("fedex-lora", "flora"):
        run = finished_run(space, f"no-adapter-{method}", method=method)
        for client in ("all", 0, "shared"):
            line = refuse(space, run, client)
            assert f"{method} has added to the frozen weights" in line and "needs --merge" in line
    run = finished_run(space, "no-adapter-feddpa", method="feddpa")
    assert "weighs a client's two LoRAs by the likeness of every instance" in refuse(space, run, 0)
    assert refuse(space, run, "all", "--merge").endswith("--client shared is the LoRA that all share")
    export(space, run, "shared", space.folder / "feddpa-shared")


def test_models_that_there_are_not(space: Workspace, shared: Path) -> None:
    for method, reason in (("local", "local shares nothing"), ("private-only", "private-only shares nothing"),
                           ("fedsa-lora", "LoRA's B is each client's own")):
        run = finished_run(space, f"not-shared-{method}", method=method)
        assert reason in refuse(space, run, "shared")
    assert "--client: expected 0 to 2, all or shared, found 3" in refuse(space, shared, 3)
    data = write_pairs(space.folder / "more.h5", random_pairs(240))
    run = finished_run(space, "newcomers", method="fedavg", data=data, clients=4, new_clients=1)
    facts = manifest(checkpoints(folder_of(run))[-1])["facts"]
    new = facts["groups"].split().index("-1")
    assert f"client {new} is a new one, which never trained" in refuse(space, run, new)
    out = export(space, run, "all", space.folder / "newcomers")
    assert sorted(path.name for path in out.iterdir()) == [f"client-{c:05}" for c in range(4) if c != new]


def test_wrong_places(space: Workspace, shared: Path, tmp_path: Path) -> None:
    assert "--checkpoint: expected a folder of checkpoints" in refuse(space, shared, 0, checkpoint=tmp_path / "none")
    assert "expected a whole checkpoint (runs with --checkpoint-every leave them), found none" in refuse(
        space, shared, 0, checkpoint=tmp_path)
    assert "--model: expected the model of the run" in refuse(space, shared, 0, "--model", TIED)
    copy = tmp_path / checkpoints(folder_of(shared))[-1].name
    shutil.copytree(checkpoints(folder_of(shared))[-1], copy)
    with (copy / "client-00000.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert "client-00000.safetensors: expected SHA-256" in refuse(space, shared, 0, checkpoint=copy)
    copy.rename(tmp_path / "other")
    assert "expected a folder named as round-00012-00" in refuse(space, shared, 0, checkpoint=tmp_path / "other")


@pytest.mark.parametrize(("fact", "value", "line"), [
    ("option.method", "fedavgg", "method: expected"), ("option.lora-rank", "x", "lora-rank: expected an integer"),
    ("option.nonsense", "1", "nonsense: expected an option of this program"), ("groups", "0 0", "facts.groups: expected 3"),
    ("groups", "0 0 x", "facts.groups"), ("groups", "0 0 3", "facts.groups"), ("groups", None, "facts.groups: expected"),
    ("flipped", "0 2 0", "facts.flipped"), ("client-names", "a", "facts.client-names: expected 3 lines"),
    ("moment", None, "facts.moment: expected a text, found none"), ("path.model", "/nowhere", "/nowhere"),
    ("option.lora-rank", "3", "tensor values: expected"), ("option.clients", "5", "facts.groups: expected 5"),
])
def test_facts_that_do_not_read(space: Workspace, shared: Path, tmp_path: Path, fact: str, value: str | None,
                                line: str) -> None:
    copy = tmp_path / checkpoints(folder_of(shared))[-1].name
    shutil.copytree(checkpoints(folder_of(shared))[-1], copy)
    change_fact(copy, fact, value)
    assert line in refuse(space, shared, 0, checkpoint=copy)


def test_what_is_there_is_kept(space: Workspace, shared: Path, tmp_path: Path) -> None:
    call = ["export", "--checkpoint", folder_of(shared), "--client", "all", "--out", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    succeed(space.call(*call))  # an empty folder
    outcome = space.call(*call)
    assert outcome.code == 2 and "expected a folder that does not exist (or --overwrite)" in outcome.error_lines[0]
    succeed(space.call(*call[:4], 0, *call[5:], "--overwrite"))
    assert not (tmp_path / "out" / "client-00000").exists() and (tmp_path / "out" / "README.md").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years of work")
    outcome = space.call(*call[:-1], tmp_path / "own", "--overwrite")
    assert outcome.code == 2 and "a folder that `export` wrote, to be replaced" in outcome.error_lines[0]
    assert (tmp_path / "own" / "thesis.tex").read_text() == "years of work"


# Adapters that eval refuses, and their harmless cousins


@pytest.fixture
def adapter(space: Workspace, personal: Path, tmp_path: Path) -> Path:
    return export(space, personal, 0, tmp_path / "adapter")


Change = Any
BASE_LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def change_config(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return change


def change_tensors(work: Any) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        work(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    return change


def change_modules(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "fedpdpo_modules.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return change


REFUSALS: dict[str, tuple[Change, str]] = {
    "other kind": (change_config(peft_type="IA3"), "peft_type: expected LORA, found IA3"),
    "task": (change_config(task_type="SEQ_CLS"), "task_type: expected CAUSAL_LM"),
    "dora": (change_config(use_dora=True), "use_dora: expected none"),
    "bias": (change_config(bias="lora_only"), "bias: expected none, found lora_only"),
    "start": (change_config(init_lora_weights="pissa"), "init_lora_weights: expected"),
    "saved": (change_config(modules_to_save=["lm_head", "embed_tokens"]), "modules_to_save: expected none"),
    "rank": (change_config(r=3), "expected rank 3 as adapter_config.json has it"),
    "no rank": (change_config(r=0), "r: expected a rank from 1"),
    "alpha": (change_config(lora_alpha=0), "lora_alpha: expected a number above 0"),
    "pattern": (change_config(rank_pattern={"q_proj(": 2}), "rank_pattern: expected regular expressions"),
    "pattern's value": (change_config(alpha_pattern={"q_proj": "x"}), "alpha_pattern.q_proj: expected a number"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "expected valid JSON"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "expected a file of a PEFT adapter"),
    "half a pair": (change_tensors(lambda t: t.pop(BASE_LORA + "B.weight")), "lora_B.weight: expected a matrix beside"),
    "shape": (change_tensors(lambda t: t.update({BASE_LORA + "A.weight": np.zeros((2, 31), np.float32)})),
              r"q_proj.lora_A.weight: expected shape [2, 32], found [2, 31]"),
    "type": (change_tensors(lambda t: t.update({BASE_LORA + "A.weight": np.zeros((2, 32), np.int64)})),
             "expected a matrix of type F32, BF16 or F16"),
    "stranger": (change_tensors(lambda t: t.update({"base_model.model.model.norm.weight": np.zeros(32, np.float32)})),
                 "norm.weight: expected LoRA, or what the base model has too"),
    "no head": (change_tensors(lambda t: t.pop("base_model.model.lm_head.weight")), "lm_head.weight: expected the saved head"),
    "beside": (change_modules(bottleneck={"kind": "odd", "width": 4, "activation": "gelu"}),
               "kind: expected residual or gated, found odd"),
    "width": (change_modules(bottleneck={"kind": "residual", "width": 5, "activation": "gelu"}),
              "tensor bottleneck.down: expected"),
    "version": (change_modules(version=2), "version: expected 1, found 2"),
    "loss": (change_modules(loss={"loss": "dop"}), "loss: expected"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_adapters_that_do_not_read(space: Workspace, adapter: Path, case: str) -> None:
    change, line = REFUSALS[case]
    change(adapter)
    outcome = space.call("eval", "--model", LLAMA, "--data", space.pairs, "--adapter", adapter, ranks=2)
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.err
    assert line in outcome.error_lines[0]
    assert outcome.out == ""


def test_scales_and_copies_of_the_base(space: Workspace, adapter: Path) -> None:
    """Twice the alpha is twice B; what PEFT copies of the base is passed over."""
    own = evaluate(space, "own", "--model", LLAMA, "--adapter", adapter)
    start = load_file(LLAMA / "model.safetensors")
    change_tensors(lambda t: t.update({"base_model.model.model.embed_tokens.weight": start["model.embed_tokens.weight"]}))(
        adapter)
    assert_same_scores(*(scores_of(found, "adapter") for found in (
        own, evaluate(space, "copies", "--model", LLAMA, "--adapter", adapter))))
    config = json.loads((adapter / "adapter_config.json").read_text())
    change_config(lora_alpha=2 * config["lora_alpha"])(adapter)
    change_tensors(lambda t: t.update({name: t[name] / 2 for name in t if "lora_B" in name}))(adapter)
    assert_same_scores(*(scores_of(found, "adapter") for found in (
        own, evaluate(space, "scaled", "--model", LLAMA, "--adapter", adapter))))


def test_another_base_is_warned_of(space: Workspace, adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(LLAMA, base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    outcome = succeed(space.call("eval", "--model", base, "--data", space.pairs, "--adapter", adapter, ranks=2))
    assert outcome.err.count("warning") == 1 and "made on another model" in outcome.err
