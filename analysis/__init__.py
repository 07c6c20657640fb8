"""Reads the run files of fedpdpo and turns them into tables and figures.

On the command line: `python -m analysis summarize DIR`, `python -m analysis study DIR` and
`python -m analysis figures DIR --out FIGDIR`.
In a script:

    import analysis
    runs = [analysis.load(path) for path in analysis.find_files(["runs/"]).finished]
    for run in runs:
        accuracy = run.clients["test/after/accuracy"]     # (R+1, C), NaN where a round was not evaluated
        print(run.method, run.seed, run.config["alpha"], accuracy[-1].mean())
"""

from .grouping import InputsDiffer, Row, Table, group
from .runfile import Files, Run, RunFileError, find_files, load

__all__ = ["Files", "InputsDiffer", "Row", "Run", "RunFileError", "Table", "find_files", "group", "load"]
