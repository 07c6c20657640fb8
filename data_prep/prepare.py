#!/usr/bin/env python3
"""Turns preference pairs as text (JSONL, gzipped JSONL, Parquet) into the tokenised pairs.h5 that fedpdpo trains on.

Example: prepare.py --in pairs.jsonl --model DIR --category topic --domain truthfulqa --max-length 512 --out pairs.h5
Exit codes: 0 done; 2 bad usage or input, with one line that names file, line, field, expected and found.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

from pairprep.categories import cluster_texts
from pairprep.chat import PairFormatter, PlainChat, load_chat_template
from pairprep.collect import Collected, Collector, Rules
from pairprep.h5file import PairFile, write_pairs
from pairprep.report import format_report, make_report
from pairprep.rows import InputError
from pairprep.splits import assign_splits, group_by_prompt, group_connected, seeded_digest
from pairprep.tokens import PairTokenizer

EXIT_BAD_INPUT = 2
MIN_MAX_LENGTH = 4  # BOS, one prompt token and two response tokens
MOST_BY_DEFAULT = 2048  # tokens of a pair; models' contexts can be a hundred times that


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_arguments(argv)
    try:
        report = prepare(args)
    except InputError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        print(f"prepare.py: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(format_report(report, args.join))
    print(f"wrote {args.out}")
    return 0


def prepare(args: argparse.Namespace) -> dict:
    """Does the work for parsed arguments, writes args.out and returns the report."""
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out}: exists already (--overwrite replaces it)")
    tokenizer = PairTokenizer(args.model, append_eos=not args.no_eos)
    if args.max_length is None:
        args.max_length = default_length(tokenizer.max_positions, args.model)
    elif tokenizer.max_positions and args.max_length > tokenizer.max_positions:
        raise InputError(f"--max-length: expected at most the model's {tokenizer.max_positions} positions, "
                         f"found {args.max_length}")
    template = PlainChat() if args.plain_chat else load_chat_template(args.model)
    if args.chat_template == "always" and template is None:
        raise InputError(f"--chat-template always: {args.model} has no chat template")
    rules = Rules(
        max_length=args.max_length, overlong=args.overlong, min_prompt_share=args.min_prompt_share,
        category_field=args.category, split_field=args.split_field, keep_texts=args.cluster is not None,
        skip_bad=args.skip_bad,
    )
    collected = Collector(PairFormatter(template, args.chat_template, args.join), tokenizer, rules).run(args.inputs)
    if collected.first_bad:
        print(f"prepare.py: skipped {collected.dropped['bad row']} bad rows, the first: {collected.first_bad}",
              file=sys.stderr)
    if not len(collected):
        raise InputError(f"{args.inputs[0]}: expected preference pairs, found none that can be kept "
                         f"(rows read {collected.rows_read}, dropped {dict(collected.dropped)})")
    rows, label, label_names = choose_rows(collected, args)
    split = choose_splits(collected, rows, label, len(label_names), args)
    content = PairFile(
        attributes={},
        tokens={part: getattr(collected, part).select(rows) for part in ("prompt", "chosen", "rejected")},
        label=label, label_names=label_names, split=split,
        source_line=np.asarray(collected.line, dtype=np.uint64)[rows],
        source_file=np.asarray(collected.file_index, dtype=np.uint32)[rows],
    )
    report = make_report(collected, rows, content, [path.name for path in args.inputs], stated_rules(args))
    content.attributes = {
        "domain": args.domain, "tokenizer": tokenizer.name, "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size, "max_length": args.max_length,
        "source": args.source or "; ".join(sorted(collected.sources)) or "unknown",
        "license": args.license or "unknown", "synthetic": int(collected.num_synthetic > 0),
        "report": json.dumps(report, ensure_ascii=False),
    }
    write_pairs(args.out, content)
    return report


def default_length(positions: object, model: Path) -> int:
    """The model's positions, at most MOST_BY_DEFAULT. Raises InputError where config.json does not say them."""
    if not isinstance(positions, int) or isinstance(positions, bool) or positions < MIN_MAX_LENGTH:
        found = "none" if positions is None else repr(positions)
        raise InputError(f"{model / 'config.json'}: field 'max_position_embeddings': expected a number of positions "
                         f">= {MIN_MAX_LENGTH}, found {found} (--max-length does without)")
    return min(positions, MOST_BY_DEFAULT)


def choose_rows(collected: Collected, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(rows to keep in input order, label of each int32 (n), names of the labels), after categories and limits."""
    if args.category is not None:
        names = collected.category
    elif args.cluster is not None:
        names = cluster_texts(collected.texts, args.cluster, args.seed)
    else:
        names = [args.domain] * len(collected)
    rows = range(len(collected))
    if args.limit or args.limit_per_category:
        # A seeded sample, not the first rows: files are often sorted by category.
        columns = (collected.prompt_digest, collected.chosen_digest, collected.rejected_digest)
        order = sorted(rows, key=lambda i: seeded_digest(args.seed, b"limit", *(column[i] for column in columns)))
        if args.limit_per_category:
            seen: dict[str, int] = {}
            taken = []
            for i in order:
                seen[names[i]] = seen.get(names[i], 0) + 1
                if seen[names[i]] <= args.limit_per_category:
                    taken.append(i)
            order = taken
        rows = sorted(order[: args.limit] if args.limit else order)
    label_names = sorted({names[i] for i in rows})
    code = {name: index for index, name in enumerate(label_names)}
    return np.fromiter(rows, np.int64), np.array([code[names[i]] for i in rows], np.int32), label_names


def choose_splits(collected: Collected, rows: np.ndarray, label: np.ndarray, num_labels: int,
                  args: argparse.Namespace) -> np.ndarray:
    """The split of each kept pair, uint8 (n), by the data's own field or by groups."""
    if args.split_field is not None:
        return np.frombuffer(bytes(collected.split), dtype=np.uint8)[rows]
    group = group_connected if args.split_by == "connected" else group_by_prompt
    groups = group(*([column[i] for i in rows] for column in (
        collected.prompt_digest, collected.chosen_digest, collected.rejected_digest)))
    return assign_splits(groups, label, num_labels, args.split, args.seed)


def stated_rules(args: argparse.Namespace) -> dict[str, object]:
    """The options that decided the content, for the report. No paths: the same data gives the same bytes."""
    names = ("category", "cluster", "max_length", "overlong", "min_prompt_share", "split", "split_by", "split_field",
             "seed", "no_eos", "chat_template", "plain_chat", "join", "limit", "limit_per_category", "skip_bad")
    return {name: getattr(args, name) for name in names}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--in", dest="inputs", nargs="+", type=Path, required=True, metavar="FILE",
        help="rows with prompt, chosen, rejected (texts or chat messages): .jsonl, .jsonl.gz or .parquet")
    add("--model", type=Path, required=True, metavar="DIR",
        help="HuggingFace model folder; config.json, tokenizer.json and tokenizer_config.json are used")
    add("--domain", type=_name, required=True, help="name of this data set")
    add("--max-length", type=_length, metavar="N",
        help=f"most tokens of a pair: prompt + the longer response (default: the model's positions, at most "
             f"{MOST_BY_DEFAULT})")
    add("--out", type=Path, required=True, metavar="FILE", help="the pairs.h5 to write")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--category", metavar="FIELD", help="the field that holds a row's category")
    how.add_argument("--cluster", type=_positive, metavar="K",
                     help="make K categories by TF-IDF and k-means over the prompts (over the chosen responses where "
                          "the prompt is empty); without --category and --cluster there is one category, the domain")
    add("--overlong", choices=("truncate", "drop"), default="truncate",
        help="truncate: the prompt loses tokens on its left, after BOS, but keeps at least --min-prompt-share; then "
             "responses lose their end and EOS; pairs that this makes equal are dropped. drop: drop such pairs "
             "(default: %(default)s)")
    add("--min-prompt-share", type=_share, default=0.25, metavar="X",
        help="share of --max-length that truncation leaves to the prompt (default: %(default)s)")
    add("--split", type=_ratios, default=(0.8, 0.1, 0.1), metavar="A,B,C",
        help="shares of train, validation and test (default: 0.8,0.1,0.1)")
    add("--split-by", choices=("prompt", "connected"), default="prompt",
        help="what never lies on two sides: pairs of a prompt (without a prompt: of two responses), or all pairs "
             "connected through shared prompts and responses (default: %(default)s)")
    add("--split-field", metavar="FIELD", help="take the split from this field (train, validation or test) instead")
    add("--seed", type=int, default=0, help="of splits, clusters and limits (default: %(default)s)")
    add("--source", help="where the data come from (default: the rows' field 'source')")
    add("--license", help="the data's licence")
    add("--no-eos", action="store_true", help="do not append the end-of-text token to responses")
    add("--chat-template", choices=("auto", "always", "never"), default="auto",
        help="auto: for chat messages only; always: for plain texts too, as user and assistant; never: refuse "
             "messages (default: %(default)s)")
    add("--plain-chat", action="store_true",
        help="write messages as 'role: content' paragraphs instead of with the model's chat template")
    add("--join", choices=("exact", "space"), default="exact",
        help="exact: plain prompt and answer are put together as they are; space: with a space between where "
             "neither has white space there (default: %(default)s)")
    add("--limit", type=_positive, metavar="N", help="keep a seeded sample of at most N pairs in total")
    add("--limit-per-category", type=_positive, metavar="N", help="keep a seeded sample of at most N pairs a category")
    add("--skip-bad", action="store_true", help="count bad rows instead of stopping at the first")
    add("--overwrite", action="store_true", help="replace an existing output file")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, found {text}")
    return value


def _length(text: str) -> int:
    value = int(text)
    if value < MIN_MAX_LENGTH:
        raise argparse.ArgumentTypeError(f"expected at least {MIN_MAX_LENGTH} tokens, found {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a share from 0 up to but not 1, found {text}")
    return value


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name, found an empty text")
    return text.strip()


def _ratios(text: str) -> tuple[float, float, float]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or any(not math.isfinite(v) or v < 0 for v in values) or abs(sum(values) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"expected three shares that add up to 1, such as 0.8,0.1,0.1, found {text}")
    return values


if __name__ == "__main__":
    sys.exit(main())
