"""The tiny models of make_golden.py: their configurations, and how older versions of transformers write them."""

import transformers

VOCAB, BOS, EOS = 96, 1, 2

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT_NEOX_TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
GPT2_TARGETS = ["c_attn", "c_proj", "c_fc"]  # c_proj: both attn.c_proj and mlp.c_proj
TOKENS = dict(vocab_size=VOCAB, bos_token_id=BOS, eos_token_id=EOS)
LLAMA = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
             max_position_embeddings=128, rms_norm_eps=1e-5, **TOKENS)


def model_table(all_cases):
    """Folder -> (configuration, LoRA targets, cases, seed). A further family is one more entry."""
    llama = transformers.LlamaConfig(
        **LLAMA, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    # Llama-3's frequency scaling with wavelengths on both sides of, and inside, its band; head_dim is not hidden/heads;
    # one key-value head; biases.
    tied = transformers.LlamaConfig(
        **{**LLAMA, "num_key_value_heads": 1}, head_dim=12, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    gpt2 = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=128, activation_function="gelu_new",
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **TOKENS)
    # What the window cuts off is never reached; head_dim is not hidden/heads.
    mistral = transformers.MistralConfig(
        **LLAMA, head_dim=12, sliding_window=64, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    qwen2 = transformers.Qwen2Config(
        **LLAMA, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    qwen3 = transformers.Qwen3Config(
        **LLAMA, head_dim=12, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    # Two rotary frequencies: 4 of 16 columns of a head, and 4 of 8.
    neox = dict(hidden_size=32, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=128,
                hidden_dropout=0.0, attention_dropout=0.0, **TOKENS)
    gpt_neox = transformers.GPTNeoXConfig(
        **neox, num_attention_heads=2, hidden_act="gelu", use_parallel_residual=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25})
    gpt_neox_sequential = transformers.GPTNeoXConfig(
        **neox, num_attention_heads=4, hidden_act="gelu_fast", use_parallel_residual=False, attention_bias=False,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5})
    backbone_cases = ["frozen", "lora_dpo"]
    first_cases = backbone_cases + ["fedpdpo_full"]
    return {
        "tiny_llama": (llama, LLAMA_TARGETS, all_cases, 1),
        "tiny_llama_tied": (tied, LLAMA_TARGETS, first_cases, 2),
        "tiny_gpt2": (gpt2, GPT2_TARGETS, all_cases, 3),
        "tiny_mistral": (mistral, LLAMA_TARGETS, backbone_cases, 4),
        "tiny_qwen2": (qwen2, LLAMA_TARGETS, first_cases, 5),
        "tiny_qwen3": (qwen3, LLAMA_TARGETS, first_cases, 6),
        "tiny_gpt_neox": (gpt_neox, GPT_NEOX_TARGETS, first_cases, 7),
        "tiny_gpt_neox_sequential": (gpt_neox_sequential, GPT_NEOX_TARGETS, backbone_cases, 8),
    }


OLDER_KEYS = ["tiny_llama_tied", "tiny_qwen2", "tiny_gpt_neox"]


def with_older_keys(config):
    """A config.json with the keys of transformers 4, which most published models have."""
    rope = config.pop("rope_parameters")
    is_neox = config["model_type"] == "gpt_neox"
    config["rotary_emb_base" if is_neox else "rope_theta"] = rope.pop("rope_theta")
    if is_neox:
        config["rotary_pct"] = rope.pop("partial_rotary_factor")
    if rope["rope_type"] != "default":
        config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen2":  # as Qwen publishes it: a window that is not in use
        del config["layer_types"]
        config |= {"use_sliding_window": False, "sliding_window": 8}
    return config
