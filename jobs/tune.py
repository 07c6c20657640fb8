#!/usr/bin/env python3
"""Gives every method the same number of trials, chooses by validation, and runs the other seeds as chosen.

    tune.py jobs/methods_blimp_*.grid -j 2       everything, two runs at a time, skipping what is done
    tune.py jobs/methods_blimp_*.grid --count    number of runs

A grid file names its trials (`trials = NAME.trials`, see trials.py). All trials of all grids run first, with the grid's
first seed, in the folder of the run files plus "-trials". Of each method, and each point of other axes, the trial with
the highest mean validation accuracy after the exchange (last evaluated round; the earliest among equals) is chosen: its
run file becomes the first seed's, and the other seeds run with its settings. GRID.chosen.json beside the run files says
what was tried and chosen. Stopped by Ctrl-C, the same command goes on. Needs h5py (.venv/bin/python).
Exit codes as sweep.py: 0 all done; 1 some failed; 2 bad usage, grid or run file; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from done import difference, survey
from gridfile import GridError, Task, check_inputs, read_grid
from launch import Launcher
from sweep import EXIT_BAD_INPUT, Local, default_program, positive, say
from trials import read_trials

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from analysis.runfile import RunFileError, load  # noqa: E402
from analysis.stats import Query  # noqa: E402
from analysis.summarize import overall  # noqa: E402

SELECTION = Query(split="validation", point="after")


@dataclass
class Choice:
    """One method at one point of the other axes: its trials, and its runs with the setting that was chosen."""

    grid: Path
    seeds: list[Task]  # without the trial's settings, the first seed first
    settings: list[dict[str, str]]
    accuracies: list[float] = field(default_factory=list)  # of the trials; empty before they are done
    chosen: int | None = None

    @property
    def label(self) -> str:
        others = [f"{key}={value}" for key, value in self.seeds[0].point.items() if key not in ("method", "seed")]
        return " ".join([self.seeds[0].values["method"], *others])

    def trials(self) -> list[Task]:
        """The first seed's run with each of the settings."""
        first = self.seeds[0]
        folder = first.out.parent.with_name(first.out.parent.name + "-trials")
        return [
            replace(first, values={**first.values, **setting}, out=folder / f"{first.out.stem}-t{number}.h5")
            for number, setting in enumerate(self.settings, start=1)
        ]

    def choose(self) -> None:
        """The trial with the best validation accuracy. Raises RunFileError."""
        runs = [load(task.out, SELECTION.needed) for task in self.trials()]
        self.accuracies = [overall(run, SELECTION) for run in runs]
        ranked = [accuracy if math.isfinite(accuracy) else -math.inf for accuracy in self.accuracies]
        self.chosen = max(range(len(runs)), key=lambda t: (ranked[t], -t))

    def runs(self) -> list[Task]:
        """Every seed with the chosen setting."""
        setting = self.settings[self.chosen or 0]
        return [replace(task, values={**task.values, **setting}) for task in self.seeds]

    def keep_chosen(self) -> None:
        """The chosen trial is the first seed's run: its file stands in both places."""
        target = self.seeds[0].out
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        source = self.trials()[self.chosen or 0].out
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            temporary = target.with_name(target.name + ".copy")
            shutil.copyfile(source, temporary)
            temporary.replace(target)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_arguments(argv)
    try:
        choices = [choice for grid in args.grids for choice in read_choices(grid)]
        check_distinct(choices)
        if args.count:
            print(sum(len(choice.settings) + len(choice.seeds) - 1 for choice in choices))
            return 0
        launcher = Launcher(args.program or default_program(), shlex.split(args.mpirun), args.ranks)
        return tune(choices, launcher, args.jobs, args.restarts)
    except (GridError, RunFileError) as error:
        print(f"tune.py: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("grids", nargs="+", type=Path, metavar="GRID")
    add("--count", action="store_true", help="number of runs")
    add("-j", "--jobs", type=positive, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    add("--ranks", type=positive, default=1, metavar="R", help="MPI ranks of a run (default: %(default)s)")
    add("--mpirun", default="", metavar="CMD", help="how ranks are started; '-n R' is added (default: directly, "
        "without MPI's launcher)")
    add("--program", type=Path, metavar="FILE", help="fedpdpo (default: $FEDPDPO_BIN, build/fedpdpo, or on the PATH)")
    add("--restarts", type=int, metavar="N", help="how often a run that exits with 75 is started again (default: 3)")
    args = parser.parse_args(argv)
    if not args.mpirun.strip() and args.ranks > 1:
        parser.error("--ranks: needs --mpirun")
    return args


def read_choices(path: Path) -> list[Choice]:
    """What is to be chosen in one grid."""
    tasks = read_grid(path)
    if tasks[0].trials is None:
        raise GridError(f"{path}: trials: expected a file, found none; sweep.py runs grids without")
    for key in ("method", "seed"):
        if key not in tasks[0].values:
            raise GridError(f"{path}: {key}: expected values, found none")
    trials = read_trials(tasks[0].trials)
    groups: dict[tuple[str, ...], list[Task]] = {}
    for task in tasks:
        key = tuple(value for axis, value in task.point.items() if axis != "seed")
        groups.setdefault(key, []).append(task)
    choices = []
    for seeds in groups.values():
        method = seeds[0].values["method"]
        if method not in trials:
            raise GridError(f"{tasks[0].trials}: {method}: expected trials for this method of {path}, found none")
        for key in trials[method][0]:
            if key in seeds[0].values:
                raise GridError(f"{path}: {key}: is tried for {method} and cannot be set in the grid too")
        choices.append(Choice(path, seeds, trials[method]))
    return choices


def check_distinct(choices: list[Choice]) -> None:
    seen: dict[Path, Path] = {}
    for choice in choices:
        for task in choice.seeds:
            other = seen.setdefault(task.out, choice.grid)
            if other != choice.grid:
                raise GridError(f"{choice.grid}: out: {task.out} is written by {other} too")


def tune(choices: list[Choice], launcher: Launcher, jobs: int, restarts: int | None) -> int:
    """All trials, the choices, the other seeds; then says what was chosen."""
    trials = [task for choice in choices for task in choice.trials()]
    for task in trials:
        check_settings(task)
    for grid in dict.fromkeys(choice.grid for choice in choices):
        own = [choice for choice in choices if choice.grid == grid]
        check_inputs(grid, survey([task for choice in own for task in [*choice.trials(), *choice.seeds[1:]]]).waiting)
    local = Local(renumbered(trials), launcher, jobs, restarts)
    code = local.run()
    if local.signals:
        return code
    ready = [choice for choice in choices if all(task.out.exists() for task in choice.trials())]
    for choice in ready:
        choice.choose()
        choice.keep_chosen()
        for task in choice.runs():
            check_settings(task)
    write_choices(choices)
    seeds = Local(renumbered([task for choice in ready for task in choice.runs()]), launcher, jobs, restarts)
    code = max(seeds.run(), code)
    print_choices(choices)
    return code


def renumbered(tasks: list[Task]) -> list[Task]:
    return [replace(task, index=index) for index, task in enumerate(tasks)]


def check_settings(task: Task) -> None:
    """A run file from before an edit of the trials or the grid must not pass for one of these."""
    if task.out.exists() and (reason := difference(task)):
        raise GridError(f"{task.out}: {reason}; remove the file to run it again")


def write_choices(choices: list[Choice]) -> None:
    """GRID.chosen.json beside the run files of each grid."""
    for grid in dict.fromkeys(choice.grid for choice in choices):
        own = [choice for choice in choices if choice.grid == grid and choice.chosen is not None]
        if not own:
            continue
        rows = [
            {
                "run": choice.label,
                "seed": choice.seeds[0].values["seed"],
                "trials": [
                    {"setting": setting, "validation_accuracy": accuracy if math.isfinite(accuracy) else None}
                    for setting, accuracy in zip(choice.settings, choice.accuracies)
                ],
                "chosen": choice.settings[choice.chosen],
            }
            for choice in own
        ]
        path = own[0].seeds[0].out.parent / f"{grid.stem}.chosen.json"
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)


def print_choices(choices: list[Choice]) -> None:
    for grid in dict.fromkeys(choice.grid for choice in choices):
        say(f"{grid}: validation accuracy of the trials, * chosen")
        for choice in (choice for choice in choices if choice.grid == grid):
            if choice.chosen is None:
                print(f"  {choice.label:14}  not chosen, trials are missing")
                continue
            parts = [
                f"{'*' if number == choice.chosen else ' '}{accuracy:.3f} ({described(setting)})"
                for number, (setting, accuracy) in enumerate(zip(choice.settings, choice.accuracies))
            ]
            print(f"  {choice.label:14}  {'  '.join(parts)}")


def described(setting: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items())


if __name__ == "__main__":
    sys.exit(main())
