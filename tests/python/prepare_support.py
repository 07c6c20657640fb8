"""What the tests of data_prep share: tiny tokenizers made on the spot, rows, and pairs.h5 files read back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

BOS, EOS = 0, 1
MERGES = [("a", "b"), (")", "\n")]
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_model(folder: Path, *, post_bos: bool = False, bos: bool = True, eos: bool = True, byte_level: bool = False,
               template: str | None = None, vocab_size: int | None = None, max_positions: int = 4096) -> Path:
    """A model folder without weights: every character is a token, but 'ab' and ')\\n' are merged into one.

    byte_level: GPT-2's alphabet (a space is written Ġ) and its post-processor, which trims spaces off the offsets;
    merged are then 'ab' and ')Ġ'.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = [("a", "b"), (")", "Ġ")] if byte_level else MERGES
    space = "Ġ" if byte_level else " "
    tokens = ["<s>", "</s>", space, *(chr(code) for code in range(33, 127)), "\n", "é", *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    if post_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": vocab_size or len(tokens), "max_position_embeddings": max_positions}
    (folder / "config.json").write_text(json.dumps(config))
    names = {"bos_token": "<s>"} if bos else {}
    names |= {"eos_token": {"content": "</s>"}} if eos else {}
    names |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def row(prompt="p", chosen="yes", rejected="no", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def many(count=200, categories="uvw"):
    """Distinct prompts with one or two pairs each, spread over categories."""
    rows = []
    for i in range(count):
        for j in range(1 + i % 2):
            rows.append(row(f"question {i}", f"right {i} {j}", f"wrong {i} {j}", topic=categories[i % len(categories)]))
    return rows


@dataclass
class Pairs:
    """A pairs.h5 read back: token lists, and texts of them by the tiny tokenizer's one-token-one-text rule."""

    prompt: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]
    label: np.ndarray
    label_names: list[str]
    split: np.ndarray
    line: np.ndarray
    attributes: dict
    report: dict

    def texts(self, model: Path, part: str) -> list[str]:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        return ["".join(map(tokenizer.id_to_token, ids)) for ids in getattr(self, part)]


def read_pairs(path: Path) -> Pairs:
    with h5py.File(path) as file:
        parts = {}
        for part in ("prompt", "chosen", "rejected"):
            tokens, offsets = file[part]["tokens"][:].tolist(), file[part]["offsets"][:].astype(int)
            assert offsets[0] == 0 and offsets[-1] == len(tokens)
            parts[part] = [tokens[a:b] for a, b in zip(offsets, offsets[1:])]
        attributes = dict(file.attrs)
        return Pairs(**parts, label=file["label"][:], label_names=file["label_names"].asstr()[:].tolist(),
                     split=file["split"][:], line=file["source_line"][:], attributes=attributes,
                     report=json.loads(attributes["report"]))


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    path: Path

    @property
    def pairs(self) -> Pairs:
        assert self.code == 0, self.err
        return read_pairs(self.path)
