"""Turns pairs of texts into token ids: one prompt and two responses, fitted to a maximum length.

Prompt and answer are tokenised together, as one text, since that is what the model will see; the boundary is then
found by the tokens' character offsets. Uses HuggingFace's `tokenizers` with the model folder's tokenizer.json.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .chat import PairText
from .rows import InputError


@dataclass(slots=True)
class TokenPair:
    """Token ids of a pair; num_kept is the number of first prompt tokens (BOS) that truncation must keep."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    num_kept: int = 0
    appended_eos: bool = False


@dataclass(slots=True)
class Fitted:
    """What fit() made of a pair, and what it cut."""

    pair: TokenPair
    cut: set[str] = field(default_factory=set)  # of "prompt", "chosen", "rejected"


class PairTokenizer:
    """A model folder's tokenizer, with its BOS and EOS and the model's vocabulary and context sizes."""

    def __init__(self, model_dir: Path, append_eos: bool = True) -> None:
        if not (model_dir / "tokenizer.json").is_file():
            there = "a folder without it" if model_dir.is_dir() else "a file"
            found = there if model_dir.exists() else "no such folder"
            raise InputError(f"{model_dir}: --model: expected a folder with tokenizer.json and config.json, found "
                             f"{found} (names of the Hub are not fetched; data_prep/fetch_model.py gets a model)")
        raw = _read(model_dir / "tokenizer.json")
        config = _read_json(model_dir / "config.json")
        self.name = model_dir.resolve().name
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.vocab_size = _positive_int(config, "vocab_size", model_dir)
        self.max_positions = config.get("max_position_embeddings") or config.get("n_positions")
        self._tokenizer = self._load(raw, model_dir)
        self._prefix = self._special_prefix()
        # From here on without the post-processor: it would add specials inside the pair, and byte-level ones
        # trim white space from the offsets, which hides that a token reaches over the end of the prompt.
        bare = json.loads(raw)
        bare["post_processor"] = None
        self._tokenizer = self._load(json.dumps(bare).encode(), model_dir)
        tokenizer_config = _read_json(model_dir / "tokenizer_config.json", optional=True)
        self.bos_id = self._special_id("bos", tokenizer_config, config)
        self.eos_id = self._special_id("eos", tokenizer_config, config)
        self.eos_token = None if self.eos_id is None else self._tokenizer.id_to_token(self.eos_id)
        if append_eos and self.eos_id is None:
            raise InputError(f"{model_dir}: expected an eos token in tokenizer_config.json or config.json, found none "
                             "(--no-eos does without)")
        self._append_eos = append_eos

    @staticmethod
    def _load(raw: bytes, model_dir: Path) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{model_dir / 'tokenizer.json'}: not a HuggingFace tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _special_prefix(self) -> list[int]:
        """The special tokens that the post-processor puts before a text (usually BOS or nothing)."""
        encoding = self._tokenizer.encode("a", add_special_tokens=True)
        prefix = []
        for token, special in zip(encoding.ids, encoding.special_tokens_mask):
            if not special:
                break
            prefix.append(token)
        return prefix

    def _special_id(self, name: str, tokenizer_config: dict[str, Any], config: dict[str, Any]) -> int | None:
        token = tokenizer_config.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found = self._tokenizer.token_to_id(token)
            if found is not None:
                return found
        number = config.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        return number if isinstance(number, int) else None

    def encode(self, texts: Sequence[PairText]) -> list[TokenPair]:
        """Tokenises a batch of pairs (in parallel where the tokenizers library runs several threads).

        The prompt is the longest common token prefix that lies wholly inside the prompt's characters; all other
        tokens, the common beginning of the two answers with them, belong to the responses.
        """
        whole = [self._trim_after_eos(text, answer) for text in texts for answer in (text.chosen, text.rejected)]
        encodings = self._tokenizer.encode_batch(whole, add_special_tokens=False)
        return [
            self._divide(text, encodings[2 * i], encodings[2 * i + 1]) for i, text in enumerate(texts)
        ]

    def _trim_after_eos(self, text: PairText, answer: str) -> str:
        """Templates close the last turn with EOS and often a line break after it: nothing is said after EOS."""
        if text.templated and self.eos_token and answer.rstrip().endswith(self.eos_token):
            answer = answer.rstrip()
        return text.prompt + answer

    def _divide(self, text: PairText, chosen: Any, rejected: Any) -> TokenPair:
        end = len(text.prompt)
        chosen_ids, rejected_ids = chosen.ids, rejected.ids
        num_common = 0
        for left, right in zip(chosen_ids, rejected_ids):
            if left != right:
                break
            num_common += 1
        # A token without characters (a prepended space mark) at the very end belongs to what follows it.
        offsets = chosen.offsets[:num_common]
        while num_common and not (offsets[num_common - 1][0] < end and offsets[num_common - 1][1] <= end):
            num_common -= 1
        prefix: list[int] = []
        if not text.templated:  # a template writes its own BOS
            prefix = self._prefix
        if not prefix and num_common == 0:
            # Something has to predict the first response token.
            filler = self.bos_id if self.bos_id is not None else self.eos_id
            if filler is None:
                raise InputError("a prompt is empty and the tokenizer has neither bos nor eos token to stand for it")
            prefix = [filler]
        prompt = prefix + chosen_ids[:num_common]
        starts_with_bos = not prefix and prompt[0] == self.bos_id
        pair = TokenPair(prompt, chosen_ids[num_common:], rejected_ids[num_common:],
                         num_kept=max(len(prefix), int(starts_with_bos)))
        if self._append_eos and pair.chosen and pair.rejected:
            for response in (pair.chosen, pair.rejected):
                if response[-1] != self.eos_id:
                    response.append(self.eos_id)  # type: ignore[arg-type]
                    pair.appended_eos = True
        return pair


def fit(pair: TokenPair, max_length: int, min_prompt_share: float) -> Fitted:
    """Cuts a pair so that len(prompt) + max(len(chosen), len(rejected)) <= max_length.

    First the prompt loses tokens on its left, after BOS, but never falls below
    min(its length, ceil(min_prompt_share * max_length)) tokens; then responses lose their end, EOS with it.
    """
    longest = max(len(pair.chosen), len(pair.rejected))
    if len(pair.prompt) + longest <= max_length:
        return Fitted(pair)
    cut = set()
    floor = max(math.ceil(min_prompt_share * max_length), pair.num_kept + 1)
    floor = min(len(pair.prompt), floor, max_length - 1)  # at least one token is left to the responses
    keep = min(len(pair.prompt), max(max_length - longest, floor))
    prompt = pair.prompt
    if keep < len(prompt):
        cut.add("prompt")
        prompt = prompt[: pair.num_kept] + prompt[len(prompt) - (keep - pair.num_kept):]
    room = max_length - len(prompt)
    for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if len(response) > room:
            cut.add(name)
    return Fitted(TokenPair(prompt, pair.chosen[:room], pair.rejected[:room], pair.num_kept, pair.appended_eos), cut)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        values = json.loads(_read(path))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _positive_int(config: dict[str, Any], name: str, model_dir: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InputError(f"{model_dir / 'config.json'}: field '{name}': expected a positive integer, found {value!r}")
    return value
