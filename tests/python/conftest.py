"""What the Python tests share: import paths, a runner for prepare.py, and where models and data are.

Tests that need ../shared or a fetched model skip with a reason where it is missing; all others need no network.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Programs of data_prep import their siblings as scripts do; the analysis package is imported from the root.
for folder in (ROOT, ROOT / "data_prep"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

SHARED = ROOT.parent / "shared"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from prepare_support import make_model

    return make_model(tmp_path / "tiny-model")


@pytest.fixture
def prepare(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    """run(rows, *options): rows are objects or raw lines; the outcome has exit code, output and the file."""
    import prepare as program
    from prepare_support import Outcome

    def run(rows, *options: str, model: Path = model, out: str = "out.h5"):
        source = rows
        if not isinstance(rows, Path):
            source = tmp_path / "pairs.jsonl"
            source.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        path = tmp_path / out
        arguments = ["--in", str(source), "--model", str(model), "--domain", "test", "--out", str(path), *options]
        if "--max-length" not in options and "--default-length" not in options:
            arguments += ["--max-length", "256"]
        if out == "out.h5" and "--keep" not in options:
            path.unlink(missing_ok=True)
        try:
            code = program.main([argument for argument in arguments if argument not in ("--keep", "--default-length")])
        except SystemExit as exit_:  # argparse
            code = exit_.code
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err, path)

    return run


@pytest.fixture
def shared_data() -> Path:
    folder = SHARED / "data"
    if not (folder / "blimp" / "pairs.jsonl.gz").is_file():
        pytest.skip(f"no preference data in {folder}")
    return folder


@pytest.fixture
def stories() -> Path:
    folder = SHARED / "models" / "stories260k"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no model in {folder}")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    folder = Path(os.environ.get("FEDPDPO_SMOLLM2") or ROOT / "build" / "models" / "smollm2-135m-instruct")
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"SmolLM2 is not in {folder}; data_prep/fetch_model.py gets it; FEDPDPO_SMOLLM2 can name a place")
    return folder


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory):
    """A folder with pairs of three categories, for runs of the real program."""
    from run_support import Workspace, random_pairs, write_pairs

    folder = tmp_path_factory.mktemp("space")
    write_pairs(folder / "pairs.h5", random_pairs())
    return Workspace(folder)
