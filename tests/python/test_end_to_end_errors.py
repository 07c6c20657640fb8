"""Bad input and bad usage: exit code 2 and one line that names file, field, expected and found; nothing is left behind.

Every case runs on two ranks, whose other rank stays silent.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from run_support import LLAMA, MISTRAL, Outcome, Workspace, needs_program, random_pairs, write_pairs

pytestmark = needs_program

Options = dict[str, Any]
Mutation = Callable[[Path], None]


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    write_pairs(tmp_path / "pairs.h5", random_pairs())
    # mpirun need not wait a second or two before it tidies up after ranks that ended with an error.
    return Workspace(tmp_path, {"OMPI_MCA_odls_base_sigkill_timeout": "0"})


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything in the folder, but for Python's and the reference's caches."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("*")) if path.is_file() and "cache" not in path.parts}


def require_error(outcome: Outcome, *parts: str) -> str:
    """The one line, which matches the regular expressions in their order."""
    assert outcome.code == 2, outcome.err
    (line,) = outcome.error_lines
    assert outcome.err.count("error:") == 1, outcome.err
    assert re.search(".*".join(f"(?:{part})" for part in parts), line), line
    assert len(line) < 900
    return line


def refuse(space: Workspace, *parts: str, ranks: int = 2, **options: Any) -> str:
    before = listing(space.folder)
    line = require_error(space.attempt("refused", ranks=ranks, **options), *parts)
    assert listing(space.folder) == before
    return line


# Models


def change_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def in_header(change: Callable[[dict[str, Any]], None]) -> Mutation:
    return lambda model: change_header(model / "model.safetensors", change)


def in_config(**values: Any) -> Mutation:
    def mutate(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | values))

    return mutate


def truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def long_header(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])


Q0, Q1, GATE = (f"model.layers.{layer}.{name}.weight"
                for layer, name in ((0, "self_attn.q_proj"), (1, "self_attn.q_proj"), (0, "mlp.gate_proj")))


def out_of_bounds(header: dict[str, Any]) -> None:
    begin, end = header[Q0]["data_offsets"]
    header[Q0]["data_offsets"] = [begin + (1 << 30), end + (1 << 30)]


def overlap(header: dict[str, Any]) -> None:
    header[Q1]["data_offsets"] = header[Q0]["data_offsets"]


def wrong_shape(header: dict[str, Any]) -> None:
    header[GATE]["shape"] = header[GATE]["shape"][::-1]


MODELS: dict[str, tuple[Mutation, list[str]]] = {
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ["model", "safetensors", "expected", "found"]),
    "no config": (lambda m: (m / "config.json").unlink(), [r"config\.json", "expected", "found"]),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), [r"tokenizer\.json", "expected", "found"]),
    "broken config": (lambda m: (m / "config.json").write_text("{"), [r"config\.json"]),
    "truncated": (truncated, [r"model\.safetensors: ", "expected", "found"]),
    "empty": (lambda m: (m / "model.safetensors").write_bytes(b""), [r"model\.safetensors: ", "expected", "found"]),
    "header out of bounds": (long_header, [r"model\.safetensors: .*header", "expected", "found 1099511627776"]),
    "tensor out of bounds": (in_header(out_of_bounds), [r"model\.safetensors: ", re.escape(Q0), "expected", "found"]),
    "overlap": (in_header(overlap), [r"model\.safetensors: ", re.escape(Q0[:12]), "expected", "found"]),
    "wrong type": (in_header(lambda h: h[Q0].update(dtype="I32")),
                   [r"model\.safetensors: ", re.escape(Q0), "expected .*F32", "found .*I32"]),
    "unknown type": (in_header(lambda h: h[Q0].update(dtype="F7")),
                     [r"model\.safetensors: ", re.escape(Q0), "expected", "found .*F7"]),
    "wrong shape": (in_header(wrong_shape),
                    [r"model\.safetensors: ", re.escape(GATE), r"expected .*48, 32", r"found .*32, 48"]),
    "missing tensor": (in_header(lambda h: h.update({"other": h.pop(GATE)})),
                       [r"model\.safetensors: ", re.escape(GATE), "expected", "found"]),
    "unknown architecture": (in_config(model_type="mamba", architectures=["MambaForCausalLM"]),
                             [r"config\.json: architectures: expected .*LlamaForCausalLM", "found MambaForCausalLM"]),
    "a number that is text": (in_config(hidden_size="32"), [r"config\.json: ", "hidden_size", "expected", "found"]),
    "heads that do not divide": (in_config(num_key_value_heads=3),
                                 [r"config\.json: ", "key-value heads", "expected", "found 3"]),
    "short positions": (in_config(max_position_embeddings=32), ["pairs.h5", "max_length", "32 positions", "found 64"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_models(space: Workspace, case: str) -> None:
    mutate, parts = MODELS[case]
    model = shutil.copytree(LLAMA, space.folder / "model", ignore=shutil.ignore_patterns("golden.*"))
    mutate(model)
    line = refuse(space, *parts, model=model)
    assert str(space.folder) in line


def test_pairs_that_are_longer_than_the_models_attention(space: Workspace) -> None:
    model = shutil.copytree(MISTRAL, space.folder / "model", ignore=shutil.ignore_patterns("golden.*"))
    in_config(sliding_window=63)(model)
    refuse(space, r"pairs\.h5: max_length: expected at most the 63 tokens of the model's sliding_window", "found 64",
           model=model)


def test_a_model_folder_that_is_missing(space: Workspace) -> None:
    refuse(space, "nowhere", "expected", "found", model=space.folder / "nowhere")
    refuse(space, r"pairs\.h5", "expected", "found", model=space.pairs)


# Pairs


def edit(change: Callable[[h5py.File], None]) -> Mutation:
    def mutate(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return mutate


def set_attribute(name: str, value: Any) -> Mutation:
    return edit(lambda file: file.attrs.__setitem__(name, value))


def foreign_token(file: h5py.File) -> None:
    """A tokenizer with more tokens than the model, one of them in use."""
    file.attrs["vocab_size"] = np.int64(200)
    file["chosen/tokens"][5] = 150


PAIRS: dict[str, tuple[Mutation, list[str]]] = {
    "missing": (Path.unlink, ["expected", "found"]),
    "no HDF5": (lambda p: p.write_text("x" * 5000), ["expected .*HDF5", "found"]),
    "empty": (lambda p: p.write_bytes(b""), ["expected", "found"]),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-500]), ["expected", "found"]),
    "another format": (set_attribute("format", "fedpdpo-run"),
                       ["format", "expected fedpdpo-pairs", "found fedpdpo-run"]),
    "another version": (set_attribute("version", np.int64(2)), ["version", "expected 1", "found 2"]),
    "another tokenizer": (set_attribute("tokenizer_sha256", "0" * 64),
                          ["tokenizer_sha256", "expected [0-9a-f]{64}", "found 0{64}"]),
    "token beyond the data's vocabulary": (edit(lambda f: f["chosen/tokens"].__setitem__(7, 96)),
                                           [r"chosen/tokens\[7\]", "expected .*below.* 96", "found 96"]),
    "token beyond the model's vocabulary": (edit(foreign_token), ["vocab", "expected .*below 96", "found 150"]),
    "unknown split": (edit(lambda f: f["split"].__setitem__(3, 9)), [r"split\[3\]", "expected", "found 9"]),
    "label without name": (edit(lambda f: f["label"].__setitem__(3, 3)),
                           [r"label\[3\]", "expected .*3 label names", "found 3"]),
    "falling offsets": (edit(lambda f: f["rejected/offsets"].__setitem__(4, 0)),
                        [r"rejected/offsets\[4\]", "expected", "found 0"]),
    "missing dataset": (edit(lambda f: f.__delitem__("rejected/tokens")),
                        ["rejected/tokens", "expected", "found"]),
}


@pytest.mark.parametrize("case", PAIRS)
def test_bad_pairs(space: Workspace, case: str) -> None:
    mutate, parts = PAIRS[case]
    mutate(space.pairs)
    refuse(space, r"fedpdpo: error: .*pairs\.h5: ", *parts)


def test_two_files_of_one_domain(space: Workspace) -> None:
    twin = shutil.copy(space.pairs, space.folder / "twin.h5")
    refuse(space, r"twin\.h5: domain: expected", "found 'toys'", data=[space.pairs, twin])


# Partitions


def test_more_clients_than_pairs(space: Workspace) -> None:
    refuse(space, r"pairs\.h5: train pairs: expected at least 1000", "found 54", "--clients", clients=1000, min_train=1)


def test_a_client_that_stays_empty(space: Workspace) -> None:
    refuse(space, "client", "--min-train|train", "expected", "found", clients=10, min_train=9, alpha=0.01)


def test_fewer_clients_than_domains(space: Workspace) -> None:
    other = write_pairs(space.folder / "other.h5", random_pairs(domain="other"))
    refuse(space, "clients", "expected", "2", "found 1", data=[space.pairs, other], clients=1)


# Usage


USAGE: dict[str, tuple[Options, list[str]]] = {
    "unknown option": ({"lr_sharde": 1}, ["--lr-sharde", "unknown option", "--lr-shared"]),
    "unknown method": ({"method": "fedagv"}, ["--method", "expected", "fedavg", "found fedagv"]),
    "no number": ({"rounds": "many"}, ["--rounds", "expected", "found many"]),
    "negative rate": ({"lr_shared": -1}, ["--lr-shared", "expected", "found -1"]),
    "not finite": ({"beta": "nan"}, ["--beta", "expected", "found nan"]),
    "option without sense": ({"prox_mu": 1}, ["--prox-mu", "fedprox", "found .*fedavg"]),
    "no such layer": ({"lora_targets": "w_proj"}, ["--lora-targets", "expected .*q_proj", "found w_proj"]),
    "no such device": ({"device": "cuda"}, ["--device", "expected cpu", "found cuda"]),
    "nothing to refit": ({"refit": 4}, ["--refit: needs a private module", "fedavg-ft, found none with --method fedavg"]),
    "one domain": ({"groups": "domain"}, ["--groups: needs several files in --data", "found one file"]),
    "three labels": ({"groups": "clusters:2", "cluster_labels": "0,1,1"},
                     ["--cluster-labels: expected 4 numbers, one a client, found 3"]),
    "nccl without a device": ({"aggregation": "nccl"}, ["--aggregation: needs a CUDA device", "found --device cpu"]),
    "another program's option": ({"epochs": 3}, ["--epochs: unknown option", "did you mean --steps"]),
    "text": ({"data": "own.jsonl"}, [r"--data: expected pair files, .*prepare\.py", r"found own\.jsonl"]),
    "files and commas": ({"data": "a.h5,b.h5"}, ["--data: expected files separated by blanks", r"found a\.h5,b\.h5"]),
    "too many participants": ({"participation": 9}, ["--participation", "expected at most the 4 clients", "found 9"]),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage(space: Workspace, case: str) -> None:
    options, parts = USAGE[case]
    refuse(space, *parts, **options)


def test_nearest_names_are_offered_by_subcommands_as_well(space: Workspace) -> None:
    require_error(space.call("rnu"), "rnu", "unknown subcommand", "run")
    require_error(space.call("plan", "--modle", "x"), "--modle", "--model")
    assert "fedavg" in refuse(space, "found fedagv", ranks=0, method="fedagv").split("found")[1]


def test_a_mistake_in_a_config_file_is_named_by_line(space: Workspace) -> None:
    config = space.folder / "run.cfg"
    config.write_text("[federation]\nrounds = 3\nalhpa = 1\n")
    refuse(space, r"run\.cfg:3", "alhpa", "alpha", config=config)


# Options without effect


def test_what_has_no_effect_is_said_once(space: Workspace) -> None:
    """By rank 0, in a line; the run goes on, as grids give one value to many methods."""
    one_kind = write_pairs(space.folder / "one_kind.h5", random_pairs(categories=1))
    short = ["--clients", 2, "--min-train", 2]
    for options, said in (
        (["--alpha", 1, "--method", "fedavg", "--lr-private", 0.1], "--lr-private: has no effect with --method fedavg"),
        (["--alpha", 1, "--flip-clients", 0.1], "--flip-clients: has no effect: a share of 0.1 of 2 clients is none"),
        (["--alpha", 1, "--dp-clip", 1], "--dp-clip: without --dp-noise updates are clipped, but no epsilon holds"),
        (["--alpha", 1, "--clients", 1], "mpirun -n 2: more ranks than the 1 client: 1 of them stays without a client"),
        (["--alpha", 1, "--data", one_kind], "--partition dirichlet: every file's pairs have one category"),
        (["--alpha", 1], None),
        (["--partition", "quantity", "--data", one_kind], None),
    ):
        more = [*(["--data", space.pairs] if "--data" not in options else []),
                *(short if "--clients" not in options else short[2:])]
        outcome = space.call("plan", "--model", LLAMA, *more, *options, ranks=2)
        assert outcome.code == 0, outcome.err
        warnings = [line for line in outcome.err.splitlines() if "warning" in line]
        assert len(warnings) == (said is not None), warnings
        assert said is None or warnings[0].startswith(f"fedpdpo: warning: {said}"), warnings


# Outputs


def test_an_existing_output_is_kept(space: Workspace) -> None:
    path = space.folder / "kept.h5"
    path.write_text("precious")
    refuse(space, r"kept\.h5: --out: expected", "--overwrite", "found", out=path)
    assert path.read_text() == "precious"
    assert space.run("kept", overwrite=True).stat().st_size > 1000


def test_a_bad_run_does_not_replace_what_overwrite_would(space: Workspace) -> None:
    path = space.folder / "kept.h5"
    path.write_text("precious")
    refuse(space, "nowhere", "expected", "found", out=path, overwrite=True, model=space.folder / "nowhere")
    assert path.read_text() == "precious"


def test_outputs_that_cannot_be_written(space: Workspace) -> None:
    (space.folder / "file").write_text("x")
    for out in ("/proc/run.h5", space.folder / "file" / "run.h5", space.folder):
        refuse(space, "--out: expected", "found", out=out)
    line = refuse(space, r"nodir/x\.h5: --out: expected .* written, found that .* \(No such file or directory\)$",
                  out="nodir/x.h5")
    assert line.count("expected") == 1
    refuse(space, "--out", "expected", "one of --data", out=space.pairs, overwrite=True)


def test_a_checkpoint_of_other_options(space: Workspace) -> None:
    space.run("begun", checkpoint_every=1)
    folder = space.folder / "begun.ckpt"
    refuse(space, r"begun\.ckpt: --lr-shared: expected 0\.01", r"found 0\.02", checkpoint_dir=folder, resume="auto",
           lr_shared=0.02)


def test_a_checkpoint_of_other_pairs(space: Workspace) -> None:
    space.run("begun", checkpoint_every=1, rounds=2)
    write_pairs(space.pairs, random_pairs(seed=5))
    refuse(space, r"begun\.ckpt: --data: expected [0-9a-f]{64}", "found [0-9a-f]{64}", resume="auto", rounds=2,
           checkpoint_dir=space.folder / "begun.ckpt")


def test_a_checkpoint_of_another_model(space: Workspace) -> None:
    model = shutil.copytree(LLAMA, space.folder / "model", ignore=shutil.ignore_patterns("golden.*"))
    space.run("begun", checkpoint_every=1, rounds=2, model=model)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-3] ^= 1  # of a mantissa
    (model / "model.safetensors").write_bytes(weights)
    refuse(space, r"begun\.ckpt: --model: expected [0-9a-f]{64}", "found [0-9a-f]{64}", resume="auto", rounds=2,
           checkpoint_dir=space.folder / "begun.ckpt", model=model)
    # The content counts, not the place.
    space.run("moved", resume="auto", rounds=2, model=LLAMA, checkpoint_dir=space.folder / "begun.ckpt")


def test_without_mpirun_the_line_is_all_there_is(space: Workspace) -> None:
    outcome = space.attempt("refused", model=space.folder / "nowhere")
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err.count("\n") == 1 and outcome.err == require_error(outcome, "nowhere") + "\n"
