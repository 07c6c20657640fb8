"""`export` against transformers and PEFT: what these load computes what the program computed.

Needs torch, transformers and peft, which nothing else here needs: without them the tests are skipped. All in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_support import (MODELS, OTHER_FAMILIES, TIED, assert_close, evaluate, export, finished_run, folder_of,
                            scores_of, succeed)
from run_support import GPT2, LLAMA, ROOT, PairLists, Workspace, needs_program, random_pairs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = needs_program
torch.set_num_threads(1)  # the models are tiny

sys.path.insert(0, str(ROOT / "analysis"))
import load_client  # noqa: E402


def score(model: Any, prompt: list[int], response: list[int], score_with: Any = None) -> tuple[float, float]:
    """Log-probability of the response and its reward (0 without one)."""
    ids = torch.tensor([prompt + response])
    mask = torch.zeros_like(ids)
    mask[0, len(prompt):] = 1
    if hasattr(model, "fedpdpo_modules"):
        log_prob, reward = load_client.score(model, ids, torch.ones_like(ids), mask)
        return log_prob.item(), 0.0 if reward is None else reward.item()
    logits = model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    return (logits.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum().item(), 0.0


@torch.no_grad()
def scores_by_torch(model: Any, pairs: PairLists, places: np.ndarray) -> dict[str, np.ndarray]:
    model.eval()
    rows = [(*score(model, pairs.prompt[i], pairs.chosen[i]), *score(model, pairs.prompt[i], pairs.rejected[i]))
            for i in places]
    return dict(zip(("logp_chosen", "reward_chosen", "logp_rejected", "reward_rejected"), np.array(rows).T, strict=True))


def require_agreement(model: Any, found: dict[str, Any], name: str) -> None:
    """Per pair: log-probabilities, rewards, and the margins that follow from them."""
    theirs = scores_by_torch(model, random_pairs(), found["pairs/pair"])
    ours = scores_of(found, name)
    for field, values in theirs.items():
        assert_close(values, ours[field], f"{field} of {name}")
    row = found["models"].index(name)
    beta, weight = found["models/beta"][row], found["models/lambda"][row]
    implicit = beta * ((theirs["logp_chosen"] - found["pairs/reference_chosen"])
                       - (theirs["logp_rejected"] - found["pairs/reference_rejected"]))
    explicit = theirs["reward_chosen"] - theirs["reward_rejected"]
    assert_close(implicit + weight * explicit, ours["margin"], f"margin of {name}")
    base = scores_of(found, "base")
    assert np.abs(ours["logp_chosen"] - base["logp_chosen"]).max() > 0.01, "a model that is the base would pass"


def base_model(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"method": "fedavg"},
    "some modules": {"method": "fedavg", "lora_alpha": 3.5, "lora_dropout": 0.1},
    "upper layer": {"method": "fedavg", "lora_first_layer": 1},
    "full head": {"method": "fedper"},
    "low-rank head": {"method": "fedper", "head": "lowrank", "head_rank": 3},
    "head alone": {"method": "local", "lora_rank": 0, "head": "full"},
    "low-rank head alone": {"method": "local", "lora_rank": 0, "head": "lowrank"},
    "fedpdpo": {"method": "fedpdpo", "bottleneck": 4},
    "fedpdpo, gated": {"method": "fedpdpo", "bottleneck": 3, "bottleneck_kind": "gated", "reward_pool": "mean",
                       "head": "lowrank", "head_rank": 3},
    "no module of PEFT's": {"method": "local-pdpo", "lora_rank": 0, "head": "frozen", "bottleneck": 4},
    "ditto": {"method": "ditto"},
    "apfl": {"method": "apfl"},
}
SOME = {"llama": "q_proj,mlp.down_proj", "tied": "v_proj,up_proj", "gpt2": "attn.c_proj,c_fc"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", ADAPTERS)
def test_peft_loads_what_was_exported(space: Workspace, case: str, model: str) -> None:
    options = dict(ADAPTERS[case], model=MODELS[model])
    if case == "some modules":
        options["lora_targets"] = SOME[model]
    if options.get("lora_rank") == 0:
        options["lr_private"] = 0.2
    run = finished_run(space, f"peft-{model}-{case}".replace(" ", "-").replace("'", "").replace(",", ""), **options)
    folder = export(space, run, "all", run.with_suffix(".models"))
    found = evaluate(space, run.stem, "--checkpoint", folder_of(run))
    for client in (0, 2):
        own = folder / f"client-{client:05}"
        require_agreement(load_client.load_client(own, dtype=torch.float32), found, f"client {client}")
        if options["method"] in ("fedpdpo", "local-pdpo"):
            continue
        base = base_model(MODELS[model])
        embedding = base.get_input_embeddings().weight.clone()
        require_agreement(peft.PeftModel.from_pretrained(base, own), found, f"client {client}")
        assert torch.equal(base.get_input_embeddings().weight, embedding)  # also where the head was tied to it


@pytest.mark.parametrize("model", OTHER_FAMILIES)
def test_other_families(space: Workspace, model: str) -> None:
    """Every linear module, whatever the order of its rows in checkpoints, and the head: as an adapter, and merged."""
    base = OTHER_FAMILIES[model]
    run = finished_run(space, f"family-{model}", model=base, method="fedper")
    found = evaluate(space, run.stem, "--checkpoint", folder_of(run))
    adapter = export(space, run, 1, run.with_suffix(".adapter"))
    require_agreement(peft.PeftModel.from_pretrained(base_model(base), adapter), found, "client 1")
    require_agreement(base_model(export(space, run, 1, run.with_suffix(".whole"), "--merge")), found, "client 1")
    run = finished_run(space, f"family-modules-{model}", model=base, method="fedpdpo", bottleneck=4)
    found = evaluate(space, run.stem, "--checkpoint", folder_of(run))
    adapter = export(space, run, 1, run.with_suffix(".adapter"))
    require_agreement(load_client.load_client(adapter, dtype=torch.float32), found, "client 1")


def test_load_client_takes_a_model_and_a_folder(space: Workspace) -> None:
    run = finished_run(space, "bases", method="fedpdpo", bottleneck=4)
    folder = export(space, run, 1, space.folder / "bases")
    found = evaluate(space, "bases", "--checkpoint", folder_of(run))
    for base in (LLAMA, base_model(LLAMA)):
        require_agreement(load_client.load_client(folder, base, dtype=torch.float32), found, "client 1")
    bare = peft.PeftModel.from_pretrained(base_model(LLAMA), folder)
    with pytest.raises(AssertionError):
        require_agreement(bare, found, "client 1")  # the bottleneck matters


MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, lora": ("llama", {"method": "fedavg"}),
    "llama, head": ("llama", {"method": "fedper"}),
    "tied, head": ("tied", {"method": "fedper"}),
    "tied, low-rank head": ("tied", {"method": "fedper", "head": "lowrank"}),
    "gpt2, head": ("gpt2", {"method": "fedper"}),
    "gpt2, low-rank head": ("gpt2", {"method": "fedper", "head": "lowrank"}),
    "gpt2, fedex": ("gpt2", {"method": "fedex-lora"}),
    "llama, flora": ("llama", {"method": "flora", "lora_rank": 4, "lora_ranks": "2,4"}),
    "tied, ditto": ("tied", {"method": "ditto"}),
}


@pytest.mark.parametrize("case", MERGED)
def test_transformers_loads_what_was_merged(space: Workspace, case: str) -> None:
    model, options = MERGED[case]
    run = finished_run(space, f"whole-{case}".replace(", ", "-").replace(" ", "-"), model=MODELS[model], **options)
    folder = export(space, run, 2, run.with_suffix(".whole"), "--merge")
    found = evaluate(space, run.stem, "--checkpoint", folder_of(run))
    whole, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                                    output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    require_agreement(whole, found, "client 2")
    require_agreement(load_client.load_client(folder), found, "client 2")
    assert transformers.AutoTokenizer.from_pretrained(folder).get_vocab()


def test_a_bottleneck_stays_beside_a_merged_model(space: Workspace) -> None:
    run = finished_run(space, "beside", method="fedpdpo", bottleneck=4, model=TIED)
    out = space.folder / "beside"
    outcome = succeed(space.call("export", "--checkpoint", folder_of(run), "--client", 0, "--out", out, "--merge"))
    assert "warning" in outcome.err and "bottleneck is not linear and cannot be merged" in outcome.err
    found = evaluate(space, "beside", "--checkpoint", folder_of(run))
    require_agreement(load_client.load_client(out, dtype=torch.float32), found, "client 0")
    outcome = space.attempt("on-beside", model=out)
    assert "warning" in outcome.err and "fedpdpo_modules.safetensors is not part" in outcome.err


def copy_of(model: Path, folder: Path, **how: Any) -> Path:
    """The model as transformers saves it: other types, shards, names."""
    whole = base_model(model)
    whole.to(how.pop("dtype", torch.float32)).save_pretrained(folder, **how)
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", [TIED, GPT2], ids=["tied", "gpt2"])
def test_merged_weights_keep_the_bases_type(space: Workspace, tmp_path: Path, dtype: str, model: Path) -> None:
    """W0 + s B A, rounded once."""
    kind = getattr(torch, dtype)
    base = copy_of(model, tmp_path / "half", dtype=kind)
    run = finished_run(space, f"{dtype}-{model.name}", model=base, method="fedper")
    folder = export(space, run, 0, tmp_path / "whole", "--merge")
    adapter = export(space, run, 0, tmp_path / "adapter")
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {p.dtype for p in merged.parameters()} == {kind}
    double = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    expected = peft.PeftModel.from_pretrained(double, adapter).merge_and_unload().state_dict()
    for name, found in merged.state_dict().items():
        wanted = expected[name].double()
        # Twice: PEFT's product is of fp32 factors; a value next to the middle of two may go either way.
        step = {torch.bfloat16: 2.0 ** -8, torch.float16: 2.0 ** -11}[kind]
        np.testing.assert_allclose(found.double(), wanted, rtol=1.01 * step, atol=1e-7, err_msg=name)
        assert (found == wanted.to(kind)).float().mean() > 0.999, name


@pytest.mark.parametrize("model", [LLAMA, TIED], ids=["llama", "tied"])
def test_shards_stay_shards(space: Workspace, tmp_path: Path, model: Path) -> None:
    base = copy_of(model, tmp_path / "shards", max_shard_size="30KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    run = finished_run(space, f"shards-{model.name}", model=base, method="fedper")
    folder = export(space, run, 1, tmp_path / "whole", "--merge")
    assert {path.name for path in folder.glob("*.safetensors")} == {path.name for path in base.glob("*.safetensors")}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    sizes = sum(p.numel() * 4 for p in base_model(folder).parameters())
    assert "lm_head.weight" in index["weight_map"] and index["metadata"]["total_size"] == sizes
    found = evaluate(space, run.stem, "--checkpoint", folder_of(run))
    require_agreement(base_model(folder), found, "client 1")
    again = evaluate(space, "shards", "--model", folder, "--reference", base)
    assert_close(scores_of(again, "base")["logp_chosen"], scores_of(found, "client 1")["logp_chosen"], "read again")


def test_names_without_their_prefix_get_it(space: Workspace, tmp_path: Path) -> None:
    """As GPT-2's first checkpoints have them."""
    from safetensors.torch import load_file, save_file

    base = copy_of(GPT2, tmp_path / "bare")
    tensors = load_file(base / "model.safetensors")
    save_file({name.removeprefix("transformer."): value for name, value in tensors.items()},
              base / "model.safetensors", {"format": "pt"})
    run = finished_run(space, "bare", model=base, method="fedper")
    folder = export(space, run, 1, tmp_path / "whole", "--merge")
    require_agreement(base_model(folder), evaluate(space, "bare", "--checkpoint", folder_of(run)), "client 1")


# Adapters of others

FOREIGN: dict[str, tuple[Path, dict[str, Any]]] = {
    "plain": (LLAMA, {"target_modules": "all-linear"}),
    "ranks and scales": (LLAMA, {"target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"v_proj": 2},
                                 "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 20, "q_proj": 1}}),
    "rank-stabilized": (LLAMA, {"target_modules": ["k_proj", "up_proj"], "use_rslora": True}),
    "one layer": (TIED, {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]}),
    "other modules by layer": (LLAMA, {"target_modules": r".*(0\.self_attn\.q_proj|1\.mlp\.gate_proj)"}),
    "with the head": (TIED, {"target_modules": ["q_proj", "lm_head"], "rank_pattern": {"lm_head": 5}}),
    "saved head": (GPT2, {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"], "fan_in_fan_out": True}),
    "gpt2": (GPT2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
}


def foreign_adapter(model: Path, folder: Path, **settings: Any) -> Any:
    """An adapter of random numbers made by PEFT, saved."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", init_lora_weights=True, **settings)
    adapted = peft.get_peft_model(base_model(model), config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
        elif "modules_to_save" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("case", FOREIGN)
def test_an_adapter_made_by_peft(space: Workspace, tmp_path: Path, case: str) -> None:
    model, settings = FOREIGN[case]
    adapted = foreign_adapter(model, tmp_path / "adapter", **settings)
    found = evaluate(space, "foreign", "--model", model, "--adapter", tmp_path / "adapter")
    assert found["models"] == ["base", "adapter"]
    require_agreement(adapted, found, "adapter")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora"),
    "bias": ({"target_modules": ["q_proj"], "lora_bias": True}, "lora_bias"),
    "saved embedding": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    "embedding": ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    "pissa": ({"target_modules": ["q_proj"]}, "init_lora_weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_are_refused(space: Workspace, tmp_path: Path, case: str) -> None:
    settings, field = REFUSED[case]
    foreign_adapter(LLAMA, tmp_path / "adapter", **settings)
    if case == "pissa":
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    outcome = space.call("eval", "--model", LLAMA, "--data", space.pairs, "--adapter", tmp_path / "adapter")
    assert outcome.code == 2 and len(outcome.error_lines) == 1 and field in outcome.error_lines[0], outcome.err


def test_another_kind_of_adapter_is_refused(space: Workspace, tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"],
                            task_type="CAUSAL_LM")
    peft.get_peft_model(base_model(LLAMA), config).save_pretrained(tmp_path / "adapter")
    outcome = space.call("eval", "--model", LLAMA, "--data", space.pairs, "--adapter", tmp_path / "adapter")
    assert outcome.code == 2 and "peft_type: expected LORA, found IA3" in outcome.error_lines[0]
