"""A plain numpy Llama for inference: slow, short, and written without a look at the C++ decoder.

Reads a HuggingFace folder and serves tests as an independent witness: logits, greedy text, log-probabilities of
responses. One sequence at a time, whole forward passes, no cache.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class NumpyLlama:
    """Weights by HuggingFace's names, in the type that all arithmetic is done in."""

    config: dict
    weights: dict[str, np.ndarray]
    dtype: np.dtype

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """x (T, in) by the weight (out, in): (T, out)."""
        return x @ self.weights[f"{name}.weight"].T


def load(folder: Path, dtype: type = np.float32) -> NumpyLlama:
    """Reads config.json and model.safetensors; bf16, fp16 and fp32 weights become `dtype`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama" or config["hidden_act"] != "silu":
        raise ValueError(f"{folder}: expected a llama with silu, found {config['model_type']}")
    return NumpyLlama(config, read_safetensors(folder / "model.safetensors", dtype), np.dtype(dtype))


def read_safetensors(path: Path, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file as `dtype`, bf16 too (its bits are the upper half of fp32's)."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        header_size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + header_size])
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            begin, end = (8 + header_size + offset for offset in entry["data_offsets"])
            data = raw[begin:end]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
            else:
                values = np.frombuffer(data, {"F16": np.float16, "F32": np.float32}[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"]).astype(dtype)
    return tensors


def forward(model: NumpyLlama, ids: Sequence[int]) -> np.ndarray:
    """Logits (T, V) of a token sequence."""
    config = model.config
    eps = config["rms_norm_eps"]
    embedding = model.weights["model.embed_tokens.weight"]
    x = embedding[np.asarray(ids)]  # (T, d)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    cos, sin = _rotary_tables(model, len(ids))
    future = np.triu(np.full((len(ids), len(ids)), -np.inf, dtype=model.dtype), k=1)
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}"
        h = _rms_norm(x, model.weights[f"{base}.input_layernorm.weight"], eps)
        q = _rotate(_split_heads(model.linear(h, f"{base}.self_attn.q_proj"), heads), cos, sin)
        k = _rotate(_split_heads(model.linear(h, f"{base}.self_attn.k_proj"), kv_heads), cos, sin)
        v = _split_heads(model.linear(h, f"{base}.self_attn.v_proj"), kv_heads)
        k, v = (np.repeat(t, heads // kv_heads, axis=0) for t in (k, v))  # (heads, T, head_dim)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]).astype(model.dtype) + future
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        x = x + model.linear(mixed.swapaxes(0, 1).reshape(len(ids), -1), f"{base}.self_attn.o_proj")
        h = _rms_norm(x, model.weights[f"{base}.post_attention_layernorm.weight"], eps)
        gate = model.linear(h, f"{base}.mlp.gate_proj")
        x = x + model.linear(gate / (1 + np.exp(-gate)) * model.linear(h, f"{base}.mlp.up_proj"),
                             f"{base}.mlp.down_proj")
    x = _rms_norm(x, model.weights["model.norm.weight"], eps)
    head = embedding if config.get("tie_word_embeddings") else model.weights["lm_head.weight"]
    return x @ head.T


def sequence_logprob(model: NumpyLlama, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> float:
    """log pi(response | prompt): the sum over the response's tokens, in nats. The prompt must not be empty."""
    if not len(prompt_ids):
        raise ValueError("expected a prompt of at least one token, which predicts the first of the response")
    logits = forward(model, [*prompt_ids, *response_ids])[len(prompt_ids) - 1 : -1].astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    return float((logits[np.arange(len(response_ids)), np.asarray(response_ids)] - log_sum).sum())


def greedy(model: NumpyLlama, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
    """The num_tokens likeliest next tokens, one after another; ends early after the model's EOS."""
    ids = list(prompt_ids)
    for _ in range(num_tokens):
        ids.append(int(forward(model, ids)[-1].argmax()))
        if ids[-1] == model.config.get("eos_token_id"):
            break
    return ids[len(prompt_ids) :]


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(eps)) * weight


def _split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)  # (heads, T, head_dim)


def _rotary_tables(model: NumpyLlama, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (T, head_dim) of position * theta^(-2i / head_dim), the same for both halves of a head."""
    config = model.config
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequency = config["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.tile(np.outer(np.arange(length), frequency), 2)
    return np.cos(angle).astype(model.dtype), np.sin(angle).astype(model.dtype)


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    left, right = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-right, left], axis=-1) * sin
