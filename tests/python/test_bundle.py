"""The program needs no CUDA library to start, and a bundle of it (jobs/bundle.sh) runs from its own libraries alone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from run_support import MPI_SETTINGS, PROGRAM, ROOT, Workspace, assert_same, needs_program

BUNDLE, STAND_IN = ROOT / "jobs" / "bundle.sh", ROOT / "jobs" / "stand_in.sh"
TOOLS = ("cc", "nm", "readelf", "ldd", "strip")
SYSTEM = re.compile(r"(ld-linux[^/]*|libc|libm|libdl|libpthread|librt|libresolv|libutil|libanl|libnss_\w+)\.so[.\d]*")

needs_tools = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"not all of {' '.join(TOOLS)} are there")


def needed(file: Path) -> list[str]:
    """The libraries that a file names itself."""
    said = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", said)


@needs_program
@needs_tools
def test_the_program_names_no_cuda_library() -> None:
    names = needed(PROGRAM)
    assert any(name.startswith("libc.so") for name in names), "it is read at all"
    assert [name for name in names if re.match(r"lib(cu|nv|nccl)", name)] == []


# Stand-ins


SYMBOLS = "REAL_1 { global: real_add; real_table; };\nREAL_2 { global: real_scale; } REAL_1;\n"
REAL = "int real_table[2] = {1, 2};\nint real_add(int x) { return x + 1; }\nint real_scale(int x) { return 2 * x; }\n"
USER = """
int real_add(int), real_scale(int);
int user_alone(int x) { return x - 1; }
int user_add(int x) { return real_add(x); }
int user_scale(int x) { return real_scale(x); }
"""
PROGRAM_SOURCE = """
#include <stdio.h>
int user_alone(int), user_add(int), user_scale(int);
int main(int count, char** words) {
  int x = count == 1 ? user_alone(5) : words[1][0] == 'a' ? user_add(5) : user_scale(5);
  printf("%d\\n", x);
}
"""


class Libraries:
    """libreal.so.1 with versioned symbols, libuser.so, which calls it, and a program that calls libuser.so."""

    def __init__(self, folder: Path, user: str = USER) -> None:
        self.folder = folder
        (folder / "real.map").write_text(SYMBOLS)
        self.compile("libreal.so.1", REAL, "-shared", "-fPIC", "-Wl,-soname,libreal.so.1", "-Wl,--version-script=real.map")
        self.compile("libuser.so", user, "-shared", "-fPIC", "-Wl,-soname,libuser.so", "-Wl,--no-as-needed",
                     "./libreal.so.1")

    def compile(self, name: str, source: str, *options: str) -> None:
        (self.folder / "source.c").write_text(source)
        subprocess.run(["cc", "source.c", "-o", name, *options], cwd=self.folder, check=True)

    def stand_in(self, needed: str = "libreal.so.1") -> subprocess.CompletedProcess[str]:
        return subprocess.run([STAND_IN, "libuser.so", needed], cwd=self.folder, capture_output=True, text=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["./program", *words], cwd=self.folder, env={"LD_LIBRARY_PATH": "."}, capture_output=True,
                              text=True)


@needs_tools
def test_a_stand_in_takes_the_place_of_a_library_that_is_never_called(tmp_path: Path) -> None:
    libraries = Libraries(tmp_path)
    libraries.compile("program", PROGRAM_SOURCE, "./libuser.so", "-Wl,--allow-shlib-undefined")
    assert [libraries.run(*words).stdout for words in ([], ["a"], ["s"])] == ["4\n", "6\n", "10\n"]
    done = libraries.stand_in()
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "libreal.so.1").unlink()
    assert "no_real.so.1" in needed(tmp_path / "libuser.so") and "libreal.so.1" not in needed(tmp_path / "libuser.so")
    alone = libraries.run()
    assert (alone.returncode, alone.stdout, alone.stderr) == (0, "4\n", "")
    for word, function in (("a", "real_add"), ("s", "real_scale")):
        called = libraries.run(word)
        assert called.returncode == -signal.SIGABRT
        assert called.stderr == f"{function} was called, but this bundle has only a stand-in for libreal.so.1\n"


@needs_tools
@pytest.mark.parametrize(("user", "needed", "said"), [
    (USER, "libother.so.1", "does not link libother.so.1"),
    ("int user_alone(int x) { return x - 1; }", "libreal.so.1", "asks for no symbol of libreal.so.1"),
    ("extern int real_table[]; int user_first(void) { return real_table[0]; }", "libreal.so.1",
     "libreal.so.1 is more than functions: real_table"),
])
def test_what_no_stand_in_can_replace_is_refused(tmp_path: Path, user: str, needed: str, said: str) -> None:
    libraries = Libraries(tmp_path, user)
    before = (tmp_path / "libuser.so").read_bytes()
    done = libraries.stand_in(needed)
    assert done.returncode == 1
    assert done.stderr == f"stand_in: libuser.so: {said}\n"
    assert (tmp_path / "libuser.so").read_bytes() == before
    assert list(tmp_path.glob("no_*")) == []


# The bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(name.startswith(("libasan", "libubsan")) for name in needed(PROGRAM)):
        pytest.skip(f"{PROGRAM} was built with sanitizers")
    folder = tmp_path_factory.mktemp("bundle")
    made = subprocess.run([BUNDLE, PROGRAM, folder / "made"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return (folder / "made").rename(folder / "moved")


class Bundled(Workspace):
    """Runs the bundle, with its own mpirun and nothing of this environment; loaders report to loaded.PID."""

    bundle: Path

    def run(self, name: str, *, ranks: int = 0, **options: object) -> Path:
        options = self.options(name, options)
        start = [self.bundle / "mpirun", "-n", str(ranks)] if ranks else []
        settings = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "LD_DEBUG": "libs",
                    "LD_DEBUG_OUTPUT": str(self.folder / f"{name}-loaded"), "FEDPDPO_CACHE": str(self.folder / "cache")}
        done = subprocess.run([*start, self.bundle / "fedpdpo", *self.arguments("run", **options)], cwd=self.folder,
                              env=MPI_SETTINGS | settings, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return Path(str(options["out"]))

    def loaded(self, name: str) -> list[list[str]]:
        """By process of the program, the paths of all libraries that it loaded, at its start or later."""
        found = []
        for path in self.folder.glob(f"{name}-loaded.*"):
            before, control, after = path.read_text().partition(f"transferring control: {self.bundle}/bin/fedpdpo")
            if control:  # the process was a shell first
                at_start = before.rpartition("transferring control:")[2]
                found.append(re.findall(r"calling init: (/\S+)", at_start + after))
        return found


@needs_program
@needs_tools
def test_a_bundle_is_small_and_runs_from_its_own_libraries(space: Workspace, bundle: Path) -> None:
    size = int(subprocess.run(["du", "-sm", bundle], capture_output=True, text=True, check=True).stdout.split()[0])
    assert size < 64
    moved = Bundled(space.folder)
    moved.bundle = bundle
    for name, ranks in (("bundled-alone", 0), ("bundled-2", 2)):
        assert_same(space.run(f"{name}-here", ranks=ranks), moved.run(name, ranks=ranks))
        processes = moved.loaded(name)
        assert len(processes) == max(ranks, 1)
        for libraries in processes:
            for folder in ("lib", "openmpi"):
                assert any(path.startswith(f"{bundle}/{folder}/") for path in libraries), "they are seen at all"
            assert [path for path in libraries
                    if not path.startswith(f"{bundle}/") and not SYSTEM.fullmatch(Path(path).name)] == []


@needs_program
@needs_tools
def test_a_bundle_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "BUNDLE_TESTS", "1")
    copy = shutil.copy(PROGRAM, tmp_path / "fedpdpo")
    done = subprocess.run([BUNDLE, copy, tmp_path / "bundle"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "bundle: BUNDLE_TESTS: build test_backend first"
