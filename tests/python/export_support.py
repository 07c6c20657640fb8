"""What the tests of `export` and `eval` share: federations with checkpoints, the calls, and the figures as arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from run_support import GOLDEN, GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, Outcome, Workspace, read

TIED = GOLDEN / "tiny_llama_tied"
MODELS = {"llama": LLAMA, "tied": TIED, "gpt2": GPT2}
OTHER_FAMILIES = {"mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3, "gpt_neox": GPT_NEOX}
# Steps that are large enough for every module to matter.
LARGE = {"steps": 4, "batch": 6, "rounds": 2, "lr_shared": 0.05, "lr_private": 0.05, "checkpoint_every": 1000, "clients": 3}
# Of fp32 sums that are added in different orders: of a number itself, or of the largest of its kind (and of 2), as
# differences of large numbers have the errors of these.
RELATIVE = 1e-5


def finished_run(space: Workspace, name: str, **options: Any) -> Path:
    """A run whose last round's checkpoint is there; its file."""
    return space.run(name, **LARGE | options)


def folder_of(run: Path) -> Path:
    return run.with_suffix(".ckpt")


def succeed(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def export(space: Workspace, run: Path, client: Any, out: Path, *more: Any) -> Path:
    succeed(space.call("export", "--checkpoint", folder_of(run), "--client", client, "--out", out, *more))
    assert not out.with_name(out.name + ".partial").exists()
    return out


def evaluate(space: Workspace, name: str, *arguments: Any, data: Any = None, ranks: int = 0) -> dict[str, Any]:
    """The file that `eval` wrote, as arrays by name, with "models" as a list of names."""
    out = space.folder / f"{name}.eval.h5"
    files = data if isinstance(data, list) else [data or space.pairs]
    succeed(space.call("eval", "--data", *files, "--out", out, "--overwrite", *arguments, ranks=ranks))
    return read_evaluation(out)


def read_evaluation(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        assert file.attrs["format"] == "fedpdpo-eval"

        def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if not isinstance(item, h5py.Dataset):
                return
            assert item.attrs["units"] and item.attrs["description"]
            found[name] = item.asstr()[:].tolist() if h5py.check_string_dtype(item.dtype) else item[...]

        file.visititems(add)
    found["models"] = found["models/names"]
    return found


def scores_of(found: dict[str, Any], model: str) -> dict[str, np.ndarray]:
    row = found["models"].index(model)
    return {name.split("/")[1]: values[row] for name, values in found.items() if name.startswith("scores/")}


def assert_same_scores(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def assert_close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    scale = max(2.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=RELATIVE, atol=RELATIVE * scale, err_msg=what)


def assert_close_scores(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name in first.keys() & second.keys():
        assert_close(first[name], second[name], name)


def assert_run_margins(run: Path, found: dict[str, Any], clients: int = 3) -> None:
    """What eval says of clients' models is what the run said at its end, pair by pair."""
    margins = {name: read(run, f"final/test/{name}") for name in ("client", "file", "pair", "margin", "margin_implicit",
                                                                  "margin_explicit")}
    flipped = read(run, "partition/flipped")
    place = {(f, p): i for i, (f, p) in enumerate(zip(found["pairs/file"], found["pairs/pair"], strict=True))}
    for client in range(clients):
        mine = np.flatnonzero(margins["client"] == client)
        assert mine.size > 0
        at = [place[margins["file"][i], margins["pair"][i]] for i in mine]
        sign = -1 if flipped[client] else 1
        ours = scores_of(found, f"client {client}")
        for name in ("margin", "margin_implicit", "margin_explicit"):
            assert_close(sign * ours[name][at], margins[name][mine], f"{name} of client {client}")


def change_fact(checkpoint: Path, name: str, value: str | None) -> None:
    """A manifest is not hashed: its facts can be changed, or taken away."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    if value is None:
        del manifest["facts"][name]
    else:
        manifest["facts"][name] = value
    path.write_text(json.dumps(manifest))
