"""What the tests of the analysis package share: synthetic run files, the command line, and cells of its tables.

`write_run` writes the run file format with h5py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import analysis
from analysis import cli
from analysis.grouping import group

NAN = float("nan")
TEXT = h5py.string_dtype()
SETTINGS = {"alpha": "0.3", "model": "m", "data": "d.h5", "rounds": "2", "lr-shared": "0.01", "flip-clients": "0"}


def write_run(
    path: Path,
    method: str = "fedavg",
    seed: int = 1,
    accuracy: Any = ((0.5, 0.5), (0.6, 0.7), (0.7, 0.8)),
    validation: Any = None,
    margin: Any = (1.0, 1.0, -1.0, 1.0),
    client: Any = None,
    pair: Any = None,
    names: Sequence[str] | None = None,
    domains: Sequence[str] = ("d",),
    explicit: Any = None,
    status: str = "complete",
    environment: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a run; options are given with underscores for the dashes of the command line."""
    accuracy = np.asarray(accuracy, dtype=float)
    rounds, clients = accuracy.shape
    margin = np.asarray(margin, dtype=float)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:

        def dataset(name: str, values: Any, units: str = "1") -> None:
            item = file.create_dataset(name, data=values)
            item.attrs["units"] = units
            item.attrs["description"] = "what it is"

        file.attrs["format"] = "fedpdpo-run"
        file.attrs["version"] = np.int64(1)
        file.attrs["status"] = status
        config = file.create_group("config")
        given = {key.replace("_", "-"): value for key, value in options.items()}
        resolved = {
            **SETTINGS,
            **given,
            "method": method,
            "seed": seed,
            "out": str(path),
            "command_line": f"run {path}",
        }
        for key, value in resolved.items():
            config.attrs[key] = str(value)
        for key, value in {"device": "cpu", "num_ranks": 1, **(environment or {})}.items():
            file.require_group("environment").attrs[key] = value
        dataset("rounds/round", np.arange(rounds, dtype=np.int64))
        dataset("clients/test/after/accuracy", accuracy)
        dataset("clients/test/after/loss", 1.0 - accuracy, "nat")
        dataset("clients/test/before/accuracy", accuracy + 0.1)
        dataset("clients/validation/after/accuracy", accuracy if validation is None else np.asarray(validation, float))
        dataset("clients/train/tokens", np.full((rounds, clients), 8.0), "token")
        if explicit is not None:
            dataset("clients/test/after/accuracy_implicit", accuracy - 0.05)
            dataset("clients/test/after/accuracy_explicit", np.full((rounds, clients), explicit))
        partition = file.create_group("partition")
        partition.create_dataset("client_names", data=list(names or [f"c{i}" for i in range(clients)]), dtype=TEXT)
        partition.create_dataset("domain_names", data=list(domains), dtype=TEXT)
        partition.create_dataset("label_names", data=["verbs", "nouns", "islands"], dtype=TEXT)
        partition["client_domain"] = (np.arange(clients) % len(domains)).astype(np.int32)
        histogram = 1 + np.arange(clients * 9).reshape(clients, 3, 3) % (7 + len(str(resolved["alpha"])))
        partition["label_histogram"] = histogram.astype(np.int64)
        partition["flipped"] = np.zeros(clients)
        partition["train/pair"] = np.arange(5, dtype=np.uint64)
        owner = np.arange(margin.size) * clients // margin.size if client is None else client
        dataset("final/test/client", np.asarray(owner, dtype=np.int32))
        dataset("final/test/file", np.zeros(margin.size, dtype=np.uint32))
        dataset("final/test/pair", np.asarray(np.arange(margin.size) if pair is None else pair, dtype=np.uint64))
        dataset("final/test/margin", margin)
        dataset("timings/total", np.ones(rounds), "s")
    return path


def tables_of(*paths: Path, by: Sequence[str] | None = None) -> list[analysis.Table]:
    return group([analysis.load(path) for path in paths], by)


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def cells(text: str, label: str) -> list[str]:
    """Columns of the one line of an aligned table that starts with `label`."""
    (line,) = [line for line in text.splitlines() if line.startswith(label + "  ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]
