"""Which runs belong together: runs -> tables (same settings) -> rows (a method and its own options) -> seeds.

Runs that differ in anything but method and seed are never averaged. A difference in the experiment's settings makes
another table, a difference in an option of the method makes another row, and an option that this file does not know
counts as a setting. Options that only say how a run is executed are ignored, or noted where they can move results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from .runfile import Run

UNSET = "(unset)"

# Order of rows in tables and of entries in legends: without exchange, one global model, personal models.
METHOD_ORDER = (
    "local", "local-pdpo", "private-only", "centralized", "fedavg", "fedavg-ft", "fedprox", "scaffold", "fedavgm",
    "fedadagrad", "fedyogi", "fedadam", "ffa-lora", "fedsa-lora", "rolora", "fedex-lora", "flora", "fedper", "fedrep",
    "ditto", "apfl", "feddpa", "fedpdpo", "fedconcord",
)  # fmt: skip

# Without influence on what a run computes.
_EXECUTION = re.compile(
    r"method|seed|command[-_]line|config|out|resume|threads|ranks|mpi-.*|checkpoint.*|progress|quiet|verbose|log.*"
    r"|.*cache.*|help|version|overwrite|micro-rows|resident|cross-eval|aggregation-error-every"
)
# Same experiment, but results can differ in the last bits or in which rounds were looked at: said below the table.
_NOTED = re.compile(r"device|reduction|reduce|reduce-route|ranks-per-node|aggregation|cohort.*|micro-batch.*|eval-every")
# Tuned for each method by itself, so methods of one table may differ in them.
_METHOD = re.compile(
    r"lr|lr-.*|loss|loss-.*|beta|lambda|mu|head|head-.*|bottleneck|bottleneck-.*|reward|reward-.*|schedule|schedule-.*"
    r"|private-.*|refit|refit-.*|finetune.*|fine-tune.*|ft-.*|prox.*|server-.*|momentum|tau|beta1|beta2|optimizer.*"
    r"|adam-.*|clip|weight-decay|warmup-.*|moments|label-smoothing|gamma|simpo-.*|orpo-.*|kto-.*|ipo-.*"
    r"|scaffold-.*|ditto-.*|apfl-.*|fedrep-.*|feddpa-.*|fedprox-.*|flora-.*|rolora-.*|fedex-.*|(fed)?concord-.*"
    r"|lora-.*|dropout|groups|weighting|personal-.*|cluster-labels|agreement-errors|dp-.*|compress|compress-.*"
    r"|error-feedback|reference-free|length-normalize"
)


def canonical(value: str) -> str:
    """One spelling for equal values: 1e-2 and 0.010 are both 0.01; a folder with and without its last slash."""
    value = value.strip()
    try:
        return f"{float(value):.12g}"
    except ValueError:
        return value.rstrip("/") or value


def is_ignored(option: str) -> bool:
    return bool(_EXECUTION.fullmatch(option) or _NOTED.fullmatch(option))


def is_method_option(option: str) -> bool:
    return bool(_METHOD.fullmatch(option))


def value_of(run: Run, option: str) -> str:
    return canonical(run.config.get(option, UNSET))


def method_rank(method: str) -> tuple[int, str]:
    return (METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER), method)


def natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """Sort key under which 0.3 comes before 10 and client2 before client10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return tuple((0, float(p), "") if i % 2 else (1, 0.0, p) for i, p in enumerate(parts) if p)


class InputsDiffer(Exception):
    """Runs that would be averaged or compared were made on different data or models; one line."""


@dataclass
class Row:
    """Runs that differ in their seed only, one a seed, in order of the seeds."""

    method: str
    options: dict[str, str]  # what tells this row from others of the same method
    runs: list[Run]

    @property
    def label(self) -> str:
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.options.items())])


@dataclass
class Table:
    settings: dict[str, str]  # what tells this table from the others
    rows: list[Row]
    client_names: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return ", ".join(f"{key} = {value}" for key, value in self.settings.items())

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]


def group(runs: Sequence[Run], by: Sequence[str] | None = None) -> list[Table]:
    """Sorts runs into tables.

    `by`: the options that make tables. Left out, it is every setting that differs. With it, the other settings that
    differ make rows. Tables never hold different sets of clients, save for runs with one client that pools the data.
    Raises ValueError for an option of `by` that no run has, InputsDiffer where runs of a table have other data or
    another model under the same names.
    """
    options = sorted({option for run in runs for option in run.config})
    if by is None:
        split = [o for o in options if not is_ignored(o) and not is_method_option(o) and _differ(runs, o)]
    else:
        split = list(by)
        for option in split:
            if option not in options:
                raise ValueError(f"no run has an option '{option}'")
    buckets: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        buckets.setdefault(tuple(value_of(run, o) for o in split), []).append(run)
    shown = {option: _short([values[i] for values in buckets]) for i, option in enumerate(split)}
    tables = []
    for values in sorted(buckets, key=lambda v: tuple(natural(x) for x in v)):
        settings = {option: shown[option][value] for option, value in zip(split, values)}
        parts = _by_clients(buckets[values])
        for names, members in parts:
            extra = {"client names": _abridged(names)} if len(parts) > 1 else {}
            tables.append(_table({**settings, **extra}, names, members, [o for o in options if o not in split]))
    return tables


def _differ(runs: Iterable[Run], option: str) -> bool:
    return len({value_of(run, option) for run in runs}) > 1


def _short(values: Iterable[str]) -> dict[str, str]:
    """Paths are shown by their last part where that still tells the values apart."""
    values = sorted(set(values))
    short = {v: ",".join(PurePath(p).name or p for p in v.split(",")) if "/" in v else v for v in values}
    return short if len(set(short.values())) == len(values) else {v: v for v in values}


def _abridged(names: Sequence[str]) -> str:
    return " ".join(names[:4]) + (f" ... ({len(names)})" if len(names) > 4 else "")


def _by_clients(runs: Sequence[Run]) -> list[tuple[list[str], list[Run]]]:
    parts: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        parts.setdefault(tuple(run.client_names), []).append(run)
    several = [names for names in parts if len(names) > 1]
    if len(several) == 1:
        # Pooled runs (one client with all the data) are a row among the federated ones, not a table of their own.
        return [(list(several[0]), list(runs))]
    return [(list(names), members) for names, members in parts.items()]


def _table(settings: dict[str, str], names: list[str], runs: list[Run], options: list[str]) -> Table:
    _check_inputs(runs)
    labels: dict[str, list[str]] = {}
    for method in {run.method for run in runs}:
        same = [run for run in runs if run.method == method]
        labels[method] = [
            option
            for option in options
            if not is_ignored(option) and _differ(same if is_method_option(option) else runs, option)
        ]
    rows: dict[tuple[str, ...], Row] = {}
    notes: list[str] = []
    shown = {option: _short(value_of(run, option) for run in runs) for option in options}
    for run in sorted(runs, key=lambda r: (r.seed, str(r.path))):
        own = {option: shown[option][value_of(run, option)] for option in labels[run.method]}
        row = rows.setdefault((run.method, *own.values()), Row(run.method, own, []))
        twin = next((other for other in row.runs if other.seed == run.seed), None)
        if twin is None:
            row.runs.append(run)
        else:
            notes.append(f"{run.path} left out: same options and seed as {twin.path}")
    ordered = [rows[key] for key in sorted(rows, key=lambda k: (method_rank(k[0]), *(natural(v) for v in k[1:])))]
    table = Table(settings, ordered, names, notes)
    table.notes += _differences(table, options, labels)
    return table


def _check_inputs(runs: Sequence[Run]) -> None:
    """The hashes of data and model that runs record are equal where their names are; runs without any are not asked."""
    for option, attribute in (("data", "data_sha256"), ("model", "model_sha256")):
        first: dict[str, Run] = {}
        for run in runs:
            if not run.environment.get(attribute):
                continue
            other = first.setdefault(value_of(run, option), run)
            ours, theirs = str(run.environment[attribute]).split(), str(other.environment[attribute]).split()
            if ours == theirs:
                continue
            names = value_of(run, option).split() if option == "data" else [value_of(run, option)]
            if not len(names) == len(ours) == len(theirs):
                names, ours, theirs = [value_of(run, option)], [" ".join(ours)], [" ".join(theirs)]
            pairs = zip(names, theirs, ours)
            parts = [f"{name} (sha256 {a[:12]}... and {b[:12]}...)" for name, a, b in pairs if a != b]
            raise InputsDiffer(f"{other.path} and {run.path} were made with different {option}: {', '.join(parts)}; "
                               "they cannot be averaged or compared")  # fmt: skip


def _differences(table: Table, options: Sequence[str], labels: dict[str, list[str]]) -> list[str]:
    """What the rows do not show although it differs between them."""
    notes = []
    for option in options:
        if is_method_option(option) and _differ(table.runs, option):
            plain = [row for row in table.rows if option not in labels[row.method]]
            by_value: dict[str, list[str]] = {}
            for row in plain:
                methods = by_value.setdefault(value_of(row.runs[0], option), [])
                if row.method not in methods:
                    methods.append(row.method)
            if by_value:
                listed = "; ".join(f"{value} ({', '.join(methods)})" for value, methods in by_value.items())
                notes.append(f"{option}: {listed}")
        elif _NOTED.fullmatch(option) and _differ(table.runs, option):
            values = sorted({value_of(run, option) for run in table.runs}, key=natural)
            notes.append(f"runs differ in {option}: {', '.join(values)}")
    for name, what in (("program_version", "program version"), ("git_hash", "source revision")):
        values = sorted({str(run.environment[name]) for run in table.runs if name in run.environment})
        if len(values) > 1:
            notes.append(f"runs differ in {what}: {', '.join(values)}")
    notes += [f"unfinished: {run.path} (round {last_round(run)})" for run in table.runs if not run.complete]
    return notes


def last_round(run: Run) -> int:
    """The last round that a run has evaluated."""
    done = 0
    for values in run.clients.values():
        rows = [i for i in range(len(values)) if (values[i] == values[i]).any()]
        done = max(done, rows[-1] if rows else 0)
    return int(run.rounds["round"][done])
