"""Reads, formats and tokenises all rows in batches, and keeps what the later steps need in compact form.

Every row read is accounted for: kept, dropped for a named reason, or (with skip_bad) counted as bad.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .chat import PairFormatter, PairText
from .h5file import Ragged
from .rows import FieldError, InputError, Row, describe, read_rows
from .splits import Digest, digest
from .tokens import PairTokenizer, fit

BATCH_ROWS = 1024
SPLIT_CODES = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}
CUT_PROMPT, CUT_CHOSEN, CUT_REJECTED, BARE_SEAM, NO_EOS_NEEDED = 1, 2, 4, 8, 16
CUT_FLAGS = {"prompt": CUT_PROMPT, "chosen": CUT_CHOSEN, "rejected": CUT_REJECTED}


@dataclass(frozen=True)
class Rules:
    """How rows become pairs; see prepare.py's options of the same names."""

    max_length: int
    overlong: str = "truncate"
    min_prompt_share: float = 0.25
    category_field: str | None = None
    split_field: str | None = None
    keep_texts: bool = False  # for clustering
    skip_bad: bool = False


@dataclass
class Collected:
    """The pairs kept so far, as parallel columns, and the counts of everything else."""

    prompt: Ragged = field(default_factory=Ragged)
    chosen: Ragged = field(default_factory=Ragged)
    rejected: Ragged = field(default_factory=Ragged)
    prompt_digest: list[Digest] = field(default_factory=list)
    chosen_digest: list[Digest] = field(default_factory=list)
    rejected_digest: list[Digest] = field(default_factory=list)
    line: array = field(default_factory=lambda: array("Q"))
    file_index: array = field(default_factory=lambda: array("I"))
    flags: bytearray = field(default_factory=bytearray)
    split: bytearray = field(default_factory=bytearray)  # filled where a split field is used
    category: list[str] = field(default_factory=list)  # filled where a category field is used
    texts: list[str] = field(default_factory=list)  # filled where clusters are wanted
    sources: Counter[str] = field(default_factory=Counter)
    num_synthetic: int = 0
    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""

    def __len__(self) -> int:
        return len(self.line)


class Collector:
    """Feeds input rows through a formatter and a tokenizer."""

    def __init__(self, formatter: PairFormatter, tokenizer: PairTokenizer, rules: Rules) -> None:
        self._format = formatter
        self._tokenizer = tokenizer
        self._rules = rules
        self._paths: Sequence[Path] = ()

    def run(self, paths: Sequence[Path]) -> Collected:
        """Reads all files. Raises InputError at the first bad row unless the rules say to count them."""
        self._paths = paths
        result = Collected()
        batch: list[tuple[Row, PairText, str, int]] = []
        for row in read_rows(paths):
            result.rows_read += 1
            if row.values is None:
                self._bad(result, row, row.problem)
                continue
            try:
                batch.append((row, self._format(row.values), self._category(row.values), self._split(row.values)))
            except FieldError as error:
                self._bad(result, row, str(error))
            if len(batch) >= BATCH_ROWS:
                self._take(result, batch)
                batch = []
        self._take(result, batch)
        return result

    def _bad(self, result: Collected, row: Row, problem: str) -> None:
        message = f"{self._paths[row.file_index]}:{row.line}: {problem}"
        if not self._rules.skip_bad:
            raise InputError(message)
        result.first_bad = result.first_bad or message
        result.dropped["bad row"] += 1

    def _category(self, values: dict[str, Any]) -> str:
        name = self._rules.category_field
        if name is None:
            return ""
        if name not in values:
            raise FieldError(name, "a category", f"none (the row has {', '.join(sorted(map(str, values))[:8])})")
        value = values[name]
        if not isinstance(value, (str, int, float, bool)) or not str(value).strip():
            raise FieldError(name, "a category", describe(value))
        return str(value)

    def _split(self, values: dict[str, Any]) -> int:
        name = self._rules.split_field
        if name is None:
            return 0
        value = values.get(name)
        code = SPLIT_CODES.get(value.strip().lower()) if isinstance(value, str) else None
        if code is None:
            raise FieldError(name, "train, validation or test", describe(value))
        return code

    def _take(self, result: Collected, batch: list[tuple[Row, PairText, str, int]]) -> None:
        if not batch:
            return
        rules = self._rules
        for (row, text, category, split), pair in zip(batch, self._tokenizer.encode([b[1] for b in batch])):
            missing = [name for name in ("chosen", "rejected") if not getattr(pair, name)]
            if missing:
                self._bad(result, row, str(FieldError(missing[0], "an answer of at least one token", "none")))
                continue
            self._check_vocabulary(row, pair)
            if pair.chosen == pair.rejected:
                result.dropped["identical responses"] += 1
                continue
            fitted = fit(pair, rules.max_length, rules.min_prompt_share)
            if fitted.cut and rules.overlong == "drop":
                result.dropped["over-long"] += 1
                continue
            if fitted.pair.chosen == fitted.pair.rejected:
                result.dropped["identical after truncation"] += 1
                continue
            flags = sum(CUT_FLAGS[name] for name in fitted.cut)
            if not text.templated and text.prompt and not text.prompt[-1].isspace() and not text.chosen[0].isspace():
                flags |= BARE_SEAM
            if not pair.appended_eos:
                flags |= NO_EOS_NEEDED
            for name in ("prompt", "chosen", "rejected"):
                getattr(result, name).append(getattr(fitted.pair, name))
            self._note(result, row, text, category, split, flags)

    def _check_vocabulary(self, row: Row, pair: Any) -> None:
        largest = max(max(pair.prompt), max(pair.chosen), max(pair.rejected))
        if largest >= self._tokenizer.vocab_size:
            raise InputError(
                f"{self._paths[row.file_index]}:{row.line}: token ids: expected less than the model's vocab_size "
                f"{self._tokenizer.vocab_size}, found {largest} (tokenizer.json does not belong to config.json)"
            )

    def _note(self, result: Collected, row: Row, text: PairText, category: str, split: int, flags: int) -> None:
        result.prompt_digest.append(digest(text.key_prompt))
        result.chosen_digest.append(digest(text.key_chosen))
        result.rejected_digest.append(digest(text.key_rejected))
        result.line.append(row.line)
        result.file_index.append(row.file_index)
        result.flags.append(flags)
        if self._rules.category_field is not None:
            result.category.append(category)
        if self._rules.split_field is not None:
            result.split.append(split)
        if self._rules.keep_texts:
            result.texts.append(text.key_prompt or text.key_chosen)
        assert row.values is not None
        source = row.values.get("source")
        if isinstance(source, str) and source.strip() and (source in result.sources or len(result.sources) < 100):
            result.sources[source] += 1
        if row.values.get("synthetic") is True:
            result.num_synthetic += 1
