"""tests/device_check.sh with DEVICE=cpu: its steps run, its table says how they ended, and it notices what goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from run_support import PROGRAM, ROOT, environment, needs_program, random_pairs, write_pairs

pytestmark = needs_program


def check(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    tests = PROGRAM.parent / "tests"
    given = {"DEVICE": "cpu", "TINY": "1", "PROGRAM": str(PROGRAM), "PYTHON": sys.executable,
             "MPIRUN": "mpirun", "TEST_BACKEND": str(tests / "test_backend"), "TEST_TRAIN": str(tests / "test_train")}
    return subprocess.run([ROOT / "tests" / "device_check.sh", *arguments, "--out", folder], text=True,
                          capture_output=True, timeout=300, env=environment(folder) | given | settings)


def results(done: subprocess.CompletedProcess[str]) -> dict[int, tuple[str, str]]:
    """Result and note by step, from the table at the end."""
    rows = re.findall(r"^ *(\d) [a-z-]+ +(PASS|FAIL|TIME|SKIP) +[-\d]+ s?(.*)$", done.stdout, re.MULTILINE)
    return {int(step): (result, note.strip()) for step, result, note in rows}


def test_what_needs_no_device_passes(tmp_path: Path) -> None:
    done = check(tmp_path, "--steps", "5-7,8,3", "--budget", "250")
    found = results(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {step: result for step, (result, _) in found.items()} == {3: "SKIP", 5: "PASS", 6: "PASS", 7: "PASS", 8: "PASS"}
    assert "equal: fp32-one fp32-again; equal: fp32-one fp32-two; equal: bf16-one" in found[5][1]
    assert "exit code 2: --device: expected" in found[6][1] and "cuda:9" in found[6][1]
    assert "equal: whole killed; equal: whole stopped" in found[7][1]
    assert re.search(r"^ +3 +4 +1 +\d+ ", (tmp_path / "tables.txt").read_text(), re.MULTILINE)
    with tarfile.open(tmp_path / "logs.tar.gz") as logs:
        names = {Path(name).name for name in logs.getnames()}
        bench = json.load(logs.extractfile("logs/bench-tiny.json"))
    assert {"00-machine.log", "05-equal-runs.log", "07-failures.log", "08-bench.log"} <= names
    assert len(bench["results"]) == 4 and all(result["pairs_per_second"] > 0 for result in bench["results"])
    assert (tmp_path / "summary.txt").read_text().splitlines()[-1] == done.stdout.splitlines()[-1]


def test_failures_are_noticed(tmp_path: Path) -> None:
    # A program whose runs all write something else, and tests that are not there.
    program = tmp_path / "program"
    program.write_text(f'#!/bin/bash\nif [[ $1 == run ]]; then set -- "$@" --lr-shared 0.0$RANDOM; fi\nexec {PROGRAM} "$@"\n')
    program.chmod(0o755)
    done = check(tmp_path / "out", "--steps", "1,5", PROGRAM=str(program), TEST_BACKEND="/nowhere/test_backend")
    found = results(done)
    assert done.returncode == 1
    assert found[1] == ("FAIL", "not there: /nowhere/test_backend (make -f Makefile.cluster bundle BUNDLE_TESTS=1, or a build)")
    assert found[5][0] == "FAIL" and "differs from" in found[5][1]


def suite_program(path: Path, body: str) -> dict[str, str]:
    """Setting of a test program with the tests A, B and C, whose runs of $filter are `body`."""
    path.write_text("#!/bin/bash\nif [[ $* == *--gtest_list_tests* ]]; then printf 'Suite.\\n  A\\n  B  # a value\\n  C\\n'; exit; fi\n"
                    f"filter=${{*#--gtest_filter=}}\n{body}\n")
    path.chmod(0o755)
    return {"TEST_BACKEND": str(path)}


def test_tests_that_were_skipped_do_not_pass_on_a_device(tmp_path: Path) -> None:
    program = suite_program(tmp_path / "tests", 'for test in ${filter//:/ }; do echo "[  SKIPPED ] $test (0 ms)"; done')
    for device, expected in (("cuda", "FAIL"), ("cpu", "SKIP")):
        done = check(tmp_path / device, "--steps", "1", DEVICE=device, **program)
        assert results(done)[1] == (expected, "0 passed, 3 skipped, 0 failed")


def test_a_failing_test_is_named_and_a_crash_takes_no_other_test_with_it(tmp_path: Path) -> None:
    outcome = '''for test in ${filter//:/ }; do
echo "[ RUN      ] $test"
case $test in
  Suite.B) FAIL ;;
  *) echo "[       OK ] $test (1 ms)" ;;
esac
done'''
    fails = 'echo "[  FAILED  ] $test, where GetParam() = x (3 ms)"; exit 1'
    done = check(tmp_path / "fails", "--steps", "1", **suite_program(tmp_path / "a", outcome.replace("FAIL", fails, 1)))
    assert results(done)[1] == ("FAIL", "failed: Suite.B; 1 passed, 0 skipped, 1 failed")
    for ending, code in (("kill -SEGV $$", 139), ("exec sleep 100", 124), ('echo "CUDA: a kernel failed: x"; exit 1', 1)):
        program = suite_program(tmp_path / "b", outcome.replace("FAIL", ending, 1))
        done = check(tmp_path / "crashes", "--steps", "1", GTEST_SECONDS="3", **program)
        assert results(done)[1] == ("FAIL", f"exit code {code} in Suite.B; the tests of Suite one by one; "
                                            f"failed: Suite.B (exit code {code}); 2 passed, 0 skipped, 1 failed")


def test_limits_of_time_and_bad_options(tmp_path: Path) -> None:
    found = results(check(tmp_path, "--steps", "5,6", "--budget", "5"))
    assert {result for result, _ in found.values()} == {"SKIP"}
    sleeper = tmp_path / "tests"
    sleeper.write_text("#!/bin/bash\n"
                       "if [[ $1 == --gtest_list_tests ]]; then printf 'Suite.\\n  Test\\n'; exit; fi\n"
                       "echo 'as far as it came'\nsleep 100\n")
    sleeper.chmod(0o755)
    found = results(check(tmp_path, "--steps", "1", "--budget", "11", TEST_BACKEND=str(sleeper)))
    assert found[1] == ("TIME", "as far as it came")
    with tarfile.open(tmp_path / "logs.tar.gz") as logs:
        assert logs.extractfile("logs/01-operations.log").read() == b"as far as it came\n"
    for arguments in (("--steps", "0"), ("--steps", "1-x"), ("--budget", "x"), ("--bogus", "1"), ("--steps",)):
        done = check(tmp_path, *arguments)
        assert done.returncode == 2 and "expected" in done.stderr


def step_function(folder: Path, command: str, **settings: str) -> str:
    script = f"set -u; source {ROOT}/tests/device/steps.sh; {command}"
    return subprocess.run(["bash", "-c", script], cwd=folder, text=True, capture_output=True, check=True,
                          env=environment(folder) | {"PYTHON": sys.executable} | settings).stdout


def test_a_new_archive_takes_the_place_of_an_old_bundle(tmp_path: Path) -> None:
    said, made = tmp_path / "bundle" / "fedpdpo", tmp_path / "new"
    for text in ("first", "second"):
        (made / "bundle").mkdir(parents=True, exist_ok=True)
        (made / "bundle" / "fedpdpo").write_text(text)
        with tarfile.open(tmp_path / "bundle.tar.gz", "w:gz") as archive:
            archive.add(made / "bundle", "bundle")
        step_function(tmp_path, "unpack_bundle")
        assert said.read_text() == text
        said.write_text("as it was unpacked")
        step_function(tmp_path, "unpack_bundle")
        assert said.read_text() == "as it was unpacked"
    (tmp_path / "bundle" / ".archive").unlink()  # made here, not unpacked
    (tmp_path / "bundle.tar.gz").write_text("older")
    step_function(tmp_path, "unpack_bundle")
    assert said.read_text() == "as it was unpacked"


def test_libraries_of_python_packages_are_found(tmp_path: Path) -> None:
    for place in ("nvidia/cu13/lib/libcublasLt.so.99", "nvidia/nccl/lib/libnccl.so.99", "own/libown.so.99"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    # The tool's names, with a version that no machine has.
    command = "eval \"$(declare -f find_libraries | sed 's/so.[0-9]*/so.99/g')\"; find_libraries; echo $LD_LIBRARY_PATH"
    found = step_function(tmp_path, command, DEVICE="cuda", PYTHONPATH=str(tmp_path), LD_LIBRARY_PATH=str(tmp_path / "own"))
    assert found.strip().split(":") == [str(tmp_path / place) for place in ("own", "nvidia/cu13/lib", "nvidia/nccl/lib")]
    assert step_function(tmp_path, "library_here libown.so.99", LD_LIBRARY_PATH=str(tmp_path / "own")).strip() == (
        f"{tmp_path}/own/libown.so.99")


def test_its_pairs_are_those_of_the_end_to_end_tests(tmp_path: Path) -> None:
    made = write_pairs(tmp_path / "pairs.h5", random_pairs())
    committed = ROOT / "tests" / "golden" / "tiny_pairs.h5"
    assert pair_contents(committed) == pair_contents(made)


def pair_contents(path: Path) -> dict[str, object]:
    import h5py

    with h5py.File(path) as file:
        found: dict[str, object] = {f"@{name}": str(value) for name, value in file.attrs.items()}
        for name in ("prompt", "chosen", "rejected"):
            found |= {f"{name}/{part}": file[name][part][...].tolist() for part in ("tokens", "offsets")}
        return found | {name: file[name][...].tolist() for name in ("label", "split", "label_names")}
