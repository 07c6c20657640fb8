#!/usr/bin/env python3
"""Writes a demonstration preference set, one JSONL file a domain, for trying fedpdpo without any data of one's own.

The pairs are SYNTHETIC: generated from the templates in demo_templates.py, and every line says so. They show that
the program works and that clients with opposite tastes need personal models; they prove nothing about real data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from random import Random

from demo_templates import DOMAINS, Category

MAX_MISSES = 2000  # draws in a row without a new prompt, after which a category counts as exhausted


class Exhausted(Exception):
    """The templates of a category do not give as many distinct prompts as were asked for."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the <domain>.jsonl files")
    parser.add_argument("--pairs-per-domain", type=int, default=600, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that hold something else")
    args = parser.parse_args(argv)
    if args.pairs_per_domain < 1:
        parser.error(f"--pairs-per-domain: expected a positive integer, found {args.pairs_per_domain}")
    try:
        texts = {domain: domain_text(domain, args.pairs_per_domain, args.seed) for domain in DOMAINS}
    except Exhausted as error:
        print(f"demo_pairs.py: --pairs-per-domain {args.pairs_per_domain}: {error}", file=sys.stderr)
        return 2
    for domain, text in texts.items():
        path = args.out / f"{domain}.jsonl"
        if path.exists() and path.read_text(encoding="utf-8") != text and not args.overwrite:
            print(f"demo_pairs.py: {path}: exists already with other content (--overwrite replaces it)",
                  file=sys.stderr)
            return 2
        write(path, text)
        names = ", ".join(category.__name__ for category in DOMAINS[domain])
        print(f"{path}: {args.pairs_per_domain} synthetic pairs ({names})")
    print("all pairs are synthetic: generated from templates, for demonstration only")
    return 0


def domain_text(domain: str, num_pairs: int, seed: int) -> str:
    """The JSONL text of a domain; its categories take turns and share the pairs evenly."""
    categories = DOMAINS[domain]
    share, rest = divmod(num_pairs, len(categories))
    drawn = [
        draw(category, share + (index < rest), Random(f"{seed}/{domain}/{category.__name__}"))
        for index, category in enumerate(categories)
    ]
    lines = []
    for turn in range(share + 1):
        for category, pairs in zip(categories, drawn):
            if turn < len(pairs):
                prompt, chosen, rejected = pairs[turn]
                row = {
                    "prompt": prompt, "chosen": chosen, "rejected": rejected, "category": category.__name__,
                    "domain": domain, "synthetic": True, "source": "fedpdpo demo_pairs.py (generated from templates)",
                }
                lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def draw(category: Category, num_pairs: int, rng: Random) -> list[tuple[str, str, str]]:
    """num_pairs pairs of distinct prompts; raises Exhausted where the templates do not give so many."""
    pairs: dict[str, tuple[str, str, str]] = {}
    misses = 0
    while len(pairs) < num_pairs:
        pair = category(rng)
        if pair[0] in pairs:
            misses += 1
            if misses > MAX_MISSES:
                raise Exhausted(f"category '{category.__name__}' has only about {len(pairs)} distinct prompts, "
                                f"{num_pairs} are needed")
            continue
        misses = 0
        pairs[pair[0]] = pair
    return list(pairs.values())


def write(path: Path, text: str) -> None:
    """Writes the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
