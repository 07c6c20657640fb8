"""Converts a GGUF file of a Llama-family model with a byte-level BPE tokenizer into a HuggingFace model folder.

Weights are dequantised by the `gguf` package; rows of Q and K go back from llama.cpp's order (rotary pairs side by
side) to HuggingFace's (halves). The same file gives the same bytes every time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN = 3  # gguf's token types
USER_DEFINED_TOKEN = 4

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class ConversionError(Exception):
    """The file is not one that can be converted; the text says what was expected and what found."""


def to_bf16(values: np.ndarray) -> np.ndarray:
    """fp32 to bf16 bits (uint16), rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Adding to a NaN's mantissa could carry it into infinity: keep its upper half and set the quiet bit.
    return np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


# name -> (safetensors name, config.json name, conversion from fp32)
DTYPES: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "bf16": ("BF16", "bfloat16", to_bf16),
    "fp16": ("F16", "float16", lambda values: values.astype(np.float16)),
    "fp32": ("F32", "float32", lambda values: np.ascontiguousarray(values, dtype=np.float32)),
}


def convert(gguf_path: Path, out: Path, dtype: str) -> str:
    """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json; returns the licence."""
    reader = gguf.GGUFReader(gguf_path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata.get("general.architecture") != "llama":
        raise ConversionError(f"{gguf_path.name}: field 'general.architecture': expected llama, "
                              f"found {metadata.get('general.architecture')}")
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = make_config(metadata, DTYPES[dtype][1], tied)
    write_json(out / "config.json", config)
    tensors = dict(hf_tensors(reader, config["num_attention_heads"], config["num_key_value_heads"]))
    write_safetensors(out / "model.safetensors", tensors, dtype)
    tokenizer = make_tokenizer(metadata)
    tokenizer.save(str(out / "tokenizer.json"), pretty=True)
    write_json(out / "tokenizer_config.json", make_tokenizer_config(metadata))
    return str(metadata.get("general.license", "unknown"))


def make_config(metadata: dict[str, Any], torch_dtype: str, tied: bool) -> dict[str, Any]:
    """config.json as transformers' LlamaConfig reads it."""
    def need(name: str) -> Any:
        if name not in metadata:
            raise ConversionError(f"GGUF metadata: expected a field '{name}', found none")
        return metadata[name]

    hidden, heads = need("llama.embedding_length"), need("llama.attention.head_count")
    head_dim = metadata.get("llama.attention.key_length", hidden // heads)
    if metadata.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise ConversionError("GGUF metadata: expected rotary positions over the whole head, found partial ones")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": need("llama.feed_forward_length"),
        "num_hidden_layers": need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": len(need("tokenizer.ggml.tokens")),
        "max_position_embeddings": need("llama.context_length"),
        "rms_norm_eps": shortest_float(need("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": shortest_float(metadata.get("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": need("tokenizer.ggml.bos_token_id"),
        "eos_token_id": need("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": torch_dtype,
    }


def shortest_float(value: float) -> float:
    """The double that reads as the fp32 number was written: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def hf_tensors(reader: gguf.GGUFReader, heads: int, kv_heads: int) -> Iterator[tuple[str, np.ndarray]]:
    """(HuggingFace's name, fp32 values) of every tensor."""
    for tensor in reader.tensors:
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if tensor.name in OUTER_NAMES:
            yield OUTER_NAMES[tensor.name], values
            continue
        parts = tensor.name.split(".")
        if len(parts) != 4 or parts[0] != "blk" or parts[2] not in LAYER_NAMES or parts[3] != "weight":
            raise ConversionError(f"GGUF: expected the tensors of a Llama model, found '{tensor.name}'")
        if parts[2] in ("attn_q", "attn_k"):
            values = unpermute_rotary(values, heads if parts[2] == "attn_q" else kv_heads)
        yield f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight", values


def unpermute_rotary(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows (heads, head_dim/2, 2) of llama.cpp, rotary pairs adjacent, to HuggingFace's (heads, 2, head_dim/2)."""
    rows, columns = weight.shape
    half = rows // num_heads // 2
    return weight.reshape(num_heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """The safetensors layout: length of the header (uint64), header (JSON), values; tensors in order of name.

    Written here because numpy has no bf16, and so that the order of the bytes is fixed.
    """
    safetensors_dtype, _, converted = DTYPES[dtype]
    width = 4 if dtype == "fp32" else 2
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in sorted(tensors):
        size = tensors[name].size * width
        header[name] = {"dtype": safetensors_dtype, "shape": list(tensors[name].shape),
                        "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the values begin on a multiple of 8, as the format asks
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            stream.write(converted(tensors[name]).tobytes())


def make_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """tokenizer.json from the file's vocabulary, merges and token types; pre-tokenizer by its name."""
    if metadata.get("tokenizer.ggml.model") != "gpt2" or metadata.get("tokenizer.ggml.pre") != "smollm":
        raise ConversionError(f"GGUF metadata: expected the tokenizer gpt2 with pre-tokenizer smollm, found "
                              f"{metadata.get('tokenizer.ggml.model')} with {metadata.get('tokenizer.ggml.pre')}")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    for kind, special in ((CONTROL_TOKEN, True), (USER_DEFINED_TOKEN, False)):
        added = [AddedToken(token, normalized=False, special=special) for token, t in zip(tokens, types) if t == kind]
        if special:
            tokenizer.add_special_tokens(added)
        elif added:
            tokenizer.add_tokens(added)
    return tokenizer


def make_tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the special tokens by name, and the chat template where there is one."""
    tokens = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            config[f"{name}_token"] = tokens[index]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Readable JSON with a final line break."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
