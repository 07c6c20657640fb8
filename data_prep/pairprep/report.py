"""Accounts for all rows: what was kept, cut and dropped, and how many pairs and tokens each split and category has.

The same account is printed and saved as JSON in pairs.h5.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .collect import BARE_SEAM, CUT_CHOSEN, CUT_PROMPT, CUT_REJECTED, NO_EOS_NEEDED, Collected
from .h5file import PairFile
from .splits import SPLIT_NAMES, count_shared_prompts, count_shared_responses


def make_report(collected: Collected, rows: np.ndarray, content: PairFile, files: list[str], rules: dict[str, Any]
                ) -> dict[str, Any]:
    """The account as plain values. rows: the collected pairs that the file holds, in its order."""
    flags = np.frombuffer(bytes(collected.flags), dtype=np.uint8)[rows]
    prompts = [collected.prompt_digest[i] for i in rows]
    chosen = [collected.chosen_digest[i] for i in rows]
    rejected = [collected.rejected_digest[i] for i in rows]
    lengths = {part: np.diff(offsets.astype(np.int64)) for part, (_, offsets) in content.tokens.items()}
    pair_length = lengths["prompt"] + np.maximum(lengths["chosen"], lengths["rejected"])
    table = np.zeros((len(content.label_names), len(SPLIT_NAMES)), dtype=np.int64)
    np.add.at(table, (content.label, content.split), 1)
    dropped = dict(sorted(collected.dropped.items()))
    if len(rows) < len(collected):
        limits = ["--" + name.replace("_", "-") for name in ("limit", "limit_per_category") if rules[name]]
        dropped[f"not sampled ({', '.join(limits)})"] = len(collected) - len(rows)
    return {
        "rows_read": collected.rows_read,
        "kept": len(rows),
        "dropped": dropped,
        "truncated": {
            "prompt": int(np.count_nonzero(flags & CUT_PROMPT)),
            "chosen": int(np.count_nonzero(flags & CUT_CHOSEN)),
            "rejected": int(np.count_nonzero(flags & CUT_REJECTED)),
        },
        "exact_duplicates": len(rows) - len(set(zip(prompts, chosen, rejected))),
        "distinct_prompts": len(set(prompts)),
        "joined_without_space": int(np.count_nonzero(flags & BARE_SEAM)),
        "without_appended_eos": int(np.count_nonzero(flags & NO_EOS_NEEDED)),
        "heldout_sharing_prompt": count_shared_prompts(content.split, prompts),
        "heldout_sharing_response": count_shared_responses(content.split, chosen, rejected),
        "longer_chosen_share": _longer_share(lengths["chosen"], lengths["rejected"]),
        "longest_pair": int(pair_length.max()),
        "tokens": {
            split: {part: int(length[content.split == code].sum()) for part, length in lengths.items()}
            for code, split in enumerate(SPLIT_NAMES)
        },
        "pairs": {
            name: dict(zip(SPLIT_NAMES, map(int, counts))) for name, counts in zip(content.label_names, table)
        },
        "files": files,
        "rules": rules,
    }


def _longer_share(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """How often 'the longer response is the chosen one' is right, ties counting one half: a baseline to beat."""
    return round(float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected))), 4)


def format_report(report: dict[str, Any], join: str) -> str:
    """The account as text, with a table of pairs by category and split."""
    dropped = report["dropped"]
    cut = report["truncated"]
    held_out = sum(counts[split] for counts in report["pairs"].values() for split in SPLIT_NAMES[1:])
    lines = [
        f"rows read {report['rows_read']}, kept {report['kept']}, dropped {sum(dropped.values())}"
        + "".join(f"; {reason} {count}" for reason, count in dropped.items()),
        f"truncated: prompt {cut['prompt']}, chosen {cut['chosen']}, rejected {cut['rejected']} "
        f"(longest pair {report['longest_pair']} tokens)",
        f"distinct prompts {report['distinct_prompts']}, exact duplicates {report['exact_duplicates']}, "
        f"pairs without an EOS appended {report['without_appended_eos']}",
        f"of {held_out} held-out pairs {report['heldout_sharing_prompt']} share a prompt and "
        f"{report['heldout_sharing_response']} share a response with training",
        f"'the longer response is chosen' is right on {report['longer_chosen_share']:.1%}",
    ]
    if report["joined_without_space"] and join == "exact":
        lines.append(f"note: {report['joined_without_space']} prompts run into their answer without white space; "
                     "--join space puts a space between")
    if len(report["pairs"]) == 1:
        lines.append("note: one category (see --category and --cluster): a Dirichlet partition of these pairs varies "
                     "clients' sizes only, not their mixtures")
    width = max(len("category"), *(len(name) for name in report["pairs"]))
    head = "".join(f"{split:>12}" for split in SPLIT_NAMES)
    lines.append(f"{'category':<{width}}{head}{'all':>12}")
    rows = [(name, [counts[split] for split in SPLIT_NAMES]) for name, counts in report["pairs"].items()]
    rows.append(("all", [sum(counts) for counts in zip(*(counts for _, counts in rows))]))
    rows.append(("tokens", [sum(report["tokens"][split].values()) for split in SPLIT_NAMES]))
    lines += [f"{name:<{width}}" + "".join(f"{n:>12}" for n in [*counts, sum(counts)]) for name, counts in rows]
    return "\n".join(lines)
