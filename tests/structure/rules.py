"""The rules of the source tree. Each is a function of the root folder that yields one line a violation."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

# What a folder may include beside itself: core <- {io, backend} <- {comm, model, data} <- record <- train <- fed <-
# app, where comm, model and data do not know each other, and record knows comm and data.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "io": {"core"},
    "backend": {"core"},
    "comm": {"core", "io", "backend"},
    "model": {"core", "io", "backend"},
    "data": {"core", "io", "backend"},
    "record": {"core", "io", "backend", "comm", "data"},
    "train": {"core", "io", "backend", "comm", "model", "data", "record"},
    "fed": {"core", "io", "backend", "comm", "model", "data", "record", "train"},
    "app": {"core", "io", "backend", "comm", "model", "data", "record", "train", "fed"},
}

# Headers of libraries, and the files (relative to the root) that may include them.
LIBRARIES: dict[str, tuple[str, str]] = {
    "MPI": (r"mpi\.h", r"(src|include/fedpdpo)/comm/.*|src/app/session.*"),
    "NCCL": (r"nccl\.h", r"src/comm/.*"),
    "CUDA": (r"(cuda|cublas|cudnn|nvtx|nvml|cub/|cooperative_groups|thrust/|driver_types|curand|cusparse).*",
             r"src/backend/cuda/.*|src/comm/.*nccl.*"),
    "HDF5": (r"(hdf5|H5\w+)\.h", r"src/io/.*"),
    "Boost": (r"boost/.*", r"src/app/.*"),
    "oneDNN": (r"(oneapi/)?dnnl.*|oneapi/dnnl/.*", r"src/backend/cpu/.*"),
    "Highway": (r"hwy/.*", r"src/backend/cpu/.*"),
    "fmt": (r"fmt/.*", r"src/.*|tests/.*"),
}

CPP_SUFFIXES = {".cpp", ".hpp", ".h", ".cu", ".cuh"}
MOST_LINES = 500
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")', re.MULTILINE)
CONDITIONAL = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif|else)\b.*", re.MULTILINE)
# Highway compiles a file once a target by including it again; its idiom needs these directives.
HIGHWAY = re.compile(r"\bHWY_\w+|hwy/")

Rule = Callable[[Path], Iterator[str]]


def product_sources(root: Path) -> list[Path]:
    """C++ files of the product."""
    return [path for path in files(root, ("src", "include")) if path.suffix in CPP_SUFFIXES]


def files(root: Path, folders: tuple[str, ...]) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*")
                  if path.is_file() and "__pycache__" not in path.parts)


def own_files(root: Path) -> list[Path]:
    """C++ and Python files of product, tools and tests."""
    return [path for path in files(root, ("src", "include", "tests", "jobs", "data_prep", "analysis"))
            if path.suffix in CPP_SUFFIXES | {".py"}]


def folder_of(root: Path, path: Path) -> str:
    """core, io, ... for a file below src or include/fedpdpo."""
    parts = path.relative_to(root).parts
    return parts[1] if parts[0] == "src" else parts[2] if len(parts) > 3 else ""


def includes(path: Path) -> list[str]:
    return [angle or quoted for angle, quoted in INCLUDE.findall(path.read_text(encoding="utf-8"))]


def folders_are_known(root: Path) -> Iterator[str]:
    for path in product_sources(root):
        if folder_of(root, path) not in ALLOWED:
            yield f"{path.relative_to(root)}: lies in none of the folders {' '.join(ALLOWED)}"


def includes_go_one_way(root: Path) -> Iterator[str]:
    for path in product_sources(root):
        folder = folder_of(root, path)
        for name in includes(path):
            parts = name.split("/")
            if parts[0] != "fedpdpo" or len(parts) < 3:
                continue
            if parts[1] != folder and parts[1] not in ALLOWED.get(folder, set()):
                yield f"{path.relative_to(root)}: {folder} must not include {name}"


def private_headers_stay_in_their_folder(root: Path) -> Iterator[str]:
    for path in product_sources(root):
        folder = root / "src" / folder_of(root, path)
        text = path.read_text(encoding="utf-8")
        for _, name in INCLUDE.findall(text):
            if not name or name.startswith("fedpdpo/") or name.split("/")[0] in ("hwy", "oneapi"):
                continue
            if path.is_relative_to(root / "include"):
                yield f"{path.relative_to(root)}: a public header includes {name}, which is not public"
                continue
            places = [(path.parent / name).resolve(), (folder / name).resolve()]
            if not any(place.is_file() and place.is_relative_to(folder.resolve()) for place in places):
                yield f"{path.relative_to(root)}: {name} is no header of its folder"


def libraries_stay_in_their_place(root: Path) -> Iterator[str]:
    for path in product_sources(root):
        relative = path.relative_to(root).as_posix()
        for name in includes(path):
            for library, (header, place) in LIBRARIES.items():
                if re.fullmatch(header, name) and not re.fullmatch(place, relative):
                    yield f"{relative}: {library} must not be included here ({name})"


def no_conditional_compilation(root: Path) -> Iterator[str]:
    for path in product_sources(root):
        relative = path.relative_to(root).as_posix()
        for match in CONDITIONAL.finditer(path.read_text(encoding="utf-8")):
            if not (relative.startswith("src/backend/cpu/") and HIGHWAY.search(path.read_text(encoding="utf-8"))):
                yield f"{relative}: {match.group().strip()}: CMake chooses files, the preprocessor does not"


def headers_have_pragma_once(root: Path) -> Iterator[str]:
    for path in product_sources(root):
        text = path.read_text(encoding="utf-8")
        if path.suffix not in (".hpp", ".h", ".cuh") or HIGHWAY.search(text):
            continue
        if not re.search(r"^#pragma once$", text, re.MULTILINE):
            yield f"{path.relative_to(root)}: no #pragma once"


def files_are_not_too_long(root: Path) -> Iterator[str]:
    for path in own_files(root):
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > MOST_LINES:
            yield f"{path.relative_to(root)}: {count} lines, expected at most {MOST_LINES}"


def files_say_what_they_are(root: Path) -> Iterator[str]:
    for path in own_files(root):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            said = ast.get_docstring(ast.parse(text)) or re.match(r"(#!.*\n)?#(?!!)", text)
        else:
            said = text.startswith(("//", "/*"))
        if not said:
            yield f"{path.relative_to(root)}: does not open with what it is"


def operations_are_tested(root: Path) -> Iterator[str]:
    """Every virtual do_NAME of the Backend is called as ->NAME( by a test that runs on all backends."""
    header = root / "include/fedpdpo/backend/backend.hpp"
    if not header.is_file():
        return
    tests = "".join(path.read_text(encoding="utf-8") for path in sorted((root / "tests/backend").glob("test_*.cpp"))
                    if "determinism" not in path.name)
    for name in re.findall(r"virtual [^;]*?\bdo_(\w+)\(", header.read_text(encoding="utf-8")):
        if name != "allocate" and f"->{name}(" not in tests:  # whatever makes a Tensor allocates
            yield f"{header.relative_to(root)}: {name} is in no test of tests/backend"


def operations_are_timed(root: Path) -> Iterator[str]:
    """Every private virtual do_NAME of the Backend is handed on by the TimedBackend: a base's composition would be timed
    in its place."""
    header, timed = root / "include/fedpdpo/backend/backend.hpp", root / "src/backend/timed_backend.cpp"
    if not header.is_file():
        return
    text = timed.read_text(encoding="utf-8") if timed.is_file() else ""
    for name in re.findall(r"virtual [^;]*?\bdo_(\w+)\(", header.read_text(encoding="utf-8")):
        if not re.search(rf"\binner_->{name}\(", text):
            yield f"{timed.relative_to(root)}: {name} is not handed on"


RULES: tuple[Rule, ...] = (
    folders_are_known, includes_go_one_way, private_headers_stay_in_their_folder, libraries_stay_in_their_place,
    no_conditional_compilation, headers_have_pragma_once, files_are_not_too_long, files_say_what_they_are,
    operations_are_tested, operations_are_timed,
)
