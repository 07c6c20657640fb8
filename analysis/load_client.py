"""Load a model that `fedpdpo export` wrote, with the modules that PEFT and transformers do not know.

    from load_client import load_client, score

    model = load_client("exported/client-00003")      # a PEFT model, or a whole one where it was merged
    log_probs, rewards = score(model, input_ids, attention_mask, response_mask)

A client's bottleneck adapter stands between the last norm and the LLM head, z = h + U gelu(D h + b), or gated,
z = (1 - g) h + g U gelu(D h + b); its reward head is r = w . pool(z) + c, pooled over the response's tokens or its last
one. Both are submodules of the model: `model.fedpdpo_modules`. Everything else is the model's own, `generate` included.

Needs torch, transformers and safetensors, which comes with it, and peft for folders that are adapters. The file stands alone: copy
it where it is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

CONFIG, WEIGHTS = "fedpdpo_modules.json", "fedpdpo_modules.safetensors"


class Bottleneck(nn.Module):
    """The bottleneck adapter: (..., d) -> (..., d)."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name in ("down", "bias", "up", "gate"):  # (m, d), (m), (d, m), (d)
            tensor = tensors.get(f"bottleneck.{name}")
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        kind = self.down.dtype
        own = nn.functional.gelu(hidden.to(kind) @ self.down.T + self.bias) @ self.up.T
        if self.gate is None:
            return (hidden.to(kind) + own).to(hidden.dtype)
        return ((1 - self.gate) * hidden.to(kind) + self.gate * own).to(hidden.dtype)


class RewardHead(nn.Module):
    """The explicit reward of a response from its tokens' hidden states z."""

    def __init__(self, tensors: dict[str, torch.Tensor], pool: str) -> None:
        super().__init__()
        if pool not in ("last", "mean"):
            raise ValueError(f"reward_head.pool: expected last or mean, found {pool}")
        self.weight, self.bias = nn.Parameter(tensors["reward.weight"]), nn.Parameter(tensors["reward.bias"])
        self.pool = pool

    def forward(self, z: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
        """z (B, T, d), response_mask (B, T) with at least one token a row -> (B)."""
        z, mask = z.to(self.weight.dtype), response_mask.to(z.device)
        if self.pool == "mean":
            weights = mask.to(z.dtype)
            pooled = (z * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        else:
            places = torch.arange(mask.shape[1], device=z.device).expand_as(mask)
            last = places.masked_fill(mask == 0, -1).max(1).values
            pooled = z[torch.arange(z.shape[0], device=z.device), last]
        return pooled @ self.weight + self.bias


class ClientModules(nn.Module):
    """Bottleneck and reward head of a client; either may be None. `z` is what the LLM head was last given."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.config = config
        self.bottleneck = Bottleneck(tensors) if config.get("bottleneck") else None
        self.reward_head = RewardHead(tensors, config["reward_head"]["pool"]) if config.get("reward_head") else None
        self.z: torch.Tensor | None = None

    def attach(self, head: nn.Module) -> None:
        """Puts the bottleneck in front of the module that makes logits."""
        def before_head(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden = inputs[0] if self.bottleneck is None else self.bottleneck(inputs[0])
            self.z = hidden
            return (hidden, *inputs[1:])

        head.register_forward_pre_hook(before_head)


def load_client(folder: str | Path, base: PreTrainedModel | str | Path | None = None,
                dtype: torch.dtype | str = "auto") -> nn.Module:
    """The model of an exported folder, in evaluation mode.

    `base` is the base model or its folder; without it, the one that the export was made from. A folder written with
    --merge is a whole model and takes no base. `dtype` is that of weights that are read here; the modules are in float32.
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text())
    if config.get("format") != "fedpdpo-modules" or config.get("version") != 1:
        raise ValueError(f"{folder / CONFIG}: expected fedpdpo-modules of version 1, found "
                         f"{config.get('format')} of version {config.get('version')}")
    if config["model"]["merged"]:
        if base is not None:
            raise ValueError(f"{folder}: a whole model, which takes no base")
        model = whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    else:
        from peft import PeftModel

        if not isinstance(base, nn.Module):
            base = AutoModelForCausalLM.from_pretrained(base or config["base"]["path"], dtype=dtype)
        model = PeftModel.from_pretrained(base, folder)
        whole = model.get_base_model()
    tensors = load_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else {}
    modules = ClientModules(config, tensors).to(next(whole.parameters()).device)
    modules.attach(whole.get_output_embeddings())
    model.fedpdpo_modules = modules
    return model.eval()


def score(model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_mask: torch.Tensor
          ) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of responses, summed over their tokens (B), and their rewards (B), None without a reward head.

    All arguments (B, T); response_mask is 1 on the response's tokens, which follow the prompt's. Prompts that are empty
    have no token that would predict the first of the response.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.float()
    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
    total = (log_probs * response_mask[:, 1:]).sum(1)
    modules: ClientModules = model.fedpdpo_modules
    if modules.reward_head is None:
        return total, None
    return total, modules.reward_head(modules.z, response_mask)
