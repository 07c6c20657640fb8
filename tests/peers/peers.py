"""The same work in PyTorch (transformers + PEFT), and fedpdpo's own bench, for the scripts beside this file.

A peer's step is what a loop around TRL's DPO does: chosen and rejected as two sequences of a batch without padding (all
lengths are equal here), SDPA attention, LoRA of rank 8 on all linear layers, the reference computed at every step by
switching the adapter off (TRL's default with PEFT) or taken as given (`precompute_ref_log_probs`). In the peers' favour:
logits of the response positions alone, adapters in the weights' own type without casts, a fused AdamW on a device.
Needs torch, transformers, peft.
"""

from __future__ import annotations

import gc
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Reference(Enum):
    """Where the reference's log-probabilities come from."""

    CACHED = "cached"
    EACH_STEP = "each step"


def run_bench(binary: str, *arguments: Any, seconds: float | None = None) -> dict[str, Any]:
    """The figures of `fedpdpo bench ARGUMENTS`; what it says where it fails, or that it takes longer, is in the error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        command = [binary, "bench", *map(str, arguments), "--json", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{' '.join(command)}: more than {seconds:.0f} s") from None
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
        return json.loads(path.read_text())


def random_llama(shape: dict[str, Any], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A Llama of the shape that a bench file gives under "model", with random weights made on the device."""
    if shape["family"] != "llama":
        raise ValueError(f"model family: expected llama, found {shape['family']}")
    config = LlamaConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"], num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"], num_key_value_heads=shape["num_kv_heads"], head_dim=shape["head_dim"],
        max_position_embeddings=shape["max_positions"], tie_word_embeddings=shape["tied_head"])  # fmt: skip
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def sequence_log_probs(model: torch.nn.Module, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Sum of the response tokens' log-probabilities of every row of ids (B, T)."""
    responses = ids[:, prompt:]
    logits = model(ids, use_cache=False, logits_to_keep=responses.shape[1] + 1).logits[:, :-1].float()
    return (torch.gather(logits, 2, responses[..., None])[..., 0] - logits.logsumexp(-1)).sum(1)


class Peer:
    """DPO steps with one PEFT model."""

    def __init__(self, base: PreTrainedModel, lengths: Sequence[int], device: torch.device) -> None:
        self.prompt, self.response, rejected = lengths
        if self.response != rejected:
            raise ValueError("the peer's batch is not padded: responses of equal length")
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(base, config, autocast_adapter_dtype=False)
        self.model.train()
        self.trainables = [p for p in self.model.parameters() if p.requires_grad]
        self.vocabulary, self.device = base.config.vocab_size, device
        self.optimizer = self.new_optimizer()

    def num_trainables(self) -> int:
        return sum(p.numel() for p in self.trainables)

    def new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trainables, lr=1e-4, fused=self.device.type == "cuda")

    def batch(self, pairs: int, seed: int) -> torch.Tensor:
        """Rows: the chosen sequences, then the rejected ones."""
        generator = torch.Generator().manual_seed(seed)
        prompts = torch.randint(self.vocabulary, (pairs, self.prompt), generator=generator).repeat(2, 1)
        responses = torch.randint(self.vocabulary, (2 * pairs, self.response), generator=generator)
        return torch.cat([prompts, responses], 1).to(self.device)

    def reference(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), self.model.disable_adapter():
            return sequence_log_probs(self.model, ids, self.prompt)

    def step(self, ids: torch.Tensor, cached: torch.Tensor | None) -> None:
        """`cached`: the reference's log-probabilities; None: computed here."""
        pairs = ids.shape[0] // 2
        reference = self.reference(ids) if cached is None else cached
        ratio = sequence_log_probs(self.model, ids, self.prompt) - reference
        loss = -torch.nn.functional.logsigmoid(0.1 * (ratio[:pairs] - ratio[pairs:])).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainables, 1.0)
        self.optimizer.step()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, ids: torch.Tensor, cached: torch.Tensor | None) -> float:
        """Of one step of one client."""
        self.wait()
        start = time.perf_counter()
        self.step(ids, cached)
        self.wait()
        return time.perf_counter() - start


class Clients:
    """Clients of one peer, trained one after another as OpenFedLLM does: each one's LoRA loaded into the one model, an
    optimizer of its own, a step, its LoRA copied out. What OpenFedLLM does beside it (a trainer and its data pipeline
    for every client and round) is left out."""

    def __init__(self, peer: Peer, clients: int, pairs: int) -> None:
        self.peer, self.pairs = peer, pairs
        self.states = [self.state() for _ in range(clients)]
        self.ids = [peer.batch(pairs, seed) for seed in range(clients)]
        self.cached = [peer.reference(ids) for ids in self.ids]

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in get_peft_model_state_dict(self.peer.model).items()}

    def seconds(self, reference: Reference) -> float:
        """Of a step of every client."""
        self.peer.wait()
        start = time.perf_counter()
        for k, ids in enumerate(self.ids):
            set_peft_model_state_dict(self.peer.model, self.states[k])
            self.peer.optimizer = self.peer.new_optimizer()
            self.peer.step(ids, self.cached[k] if reference is Reference.CACHED else None)
            self.states[k] = self.state()
        self.peer.wait()
        return time.perf_counter() - start


def best_batch(peer: Peer, most_pairs: int, seconds: float) -> tuple[int, dict[int, float]]:
    """The number of pairs a step with the most pairs a second, of 1, 2, 4, ...: until a doubling gains less than 3 %,
    memory ends, or `seconds` are over. Also pairs/s by number of pairs, each the best of two steps after one."""
    rates: dict[int, float] = {}
    end = time.perf_counter() + seconds
    pairs = 1
    while pairs <= most_pairs and (not rates or time.perf_counter() < end):
        try:
            ids = peer.batch(pairs, 1)
            cached = peer.reference(ids)
            peer.seconds(ids, cached)
            rates[pairs] = pairs / min(peer.seconds(ids, cached) for _ in range(2))
        except torch.OutOfMemoryError:
            break
        finally:
            peer.optimizer.zero_grad(set_to_none=True)
            give_back_memory()
        if pairs > 1 and rates[pairs] < 1.03 * rates[pairs // 2]:
            break
        pairs *= 2
    if not rates:
        raise RuntimeError("a single pair does not fit the peer's memory")
    return max(rates, key=rates.__getitem__), rates


def give_back_memory() -> None:
    """What torch keeps for later, for the other side's turn."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
