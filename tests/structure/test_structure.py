"""The source tree keeps its rules (rules.py), and each rule notices a planted violation."""

from __future__ import annotations

from pathlib import Path

import pytest
import rules

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_tree_keeps(rule: rules.Rule) -> None:
    assert list(rule(ROOT)) == []


def test_tree_is_looked_at() -> None:
    found = {rules.folder_of(ROOT, path) for path in rules.product_sources(ROOT)}
    assert {"core", "io", "fed", "app"} <= found
    assert any(rules.includes(path) for path in rules.product_sources(ROOT))


SOUND = {
    "include/fedpdpo/core/error.hpp": "// Errors.\n#pragma once\n",
    "include/fedpdpo/comm/communicator.hpp": '// Ranks.\n#pragma once\n#include "fedpdpo/core/error.hpp"\n',
    "src/comm/communicator.cpp": '// Ranks.\n#include <mpi.h>\n#include "parts.hpp"\n',
    "src/comm/parts.hpp": "// Parts.\n#pragma once\n",
    "src/comm/nccl_sum.cpp": "// Sums.\n#include <nccl.h>\n#include <cuda_runtime.h>\n",
    "src/fed/methods/one.cpp": '// One.\n#include "methods.hpp"\n#include "fedpdpo/comm/communicator.hpp"\n',
    "src/fed/methods.hpp": "// All.\n#pragma once\n",
    "src/app/session.cpp": "// MPI's beginning and end.\n#include <mpi.h>\n#include <fmt/format.h>\n",
    "src/app/options.cpp": "// Options.\n#include <boost/program_options/parsers.hpp>\n",
    "src/io/hdf5.cpp": "// HDF5.\n#include <hdf5.h>\n",
    "src/backend/cpu/rows.cpp":
        "// Rows.\n#undef HWY_TARGET_INCLUDE\n#include <hwy/foreach_target.h>\n#if HWY_ONCE\n#endif\n",
    "src/backend/cuda/kernels.cu": "// Kernels.\n#include <cublasLt.h>\n",
    "include/fedpdpo/backend/backend.hpp":
        "// Operations.\n#pragma once\nclass Backend { virtual void do_copy(float) = 0; };\n",
    "src/backend/timed_backend.cpp": "// All, timed.\nvoid f() { inner_->copy(1); inner_->axpy(1); }\n",
    "tests/backend/test_copy.cpp": "// Copies.\nvoid f() { backend->copy(1); }\n",
    "analysis/table.py": '#!/usr/bin/env python3\n"""Tables."""\n',
}

PLANTED = [
    (rules.folders_are_known, "src/utils/x.cpp", "// X.\n"),
    (rules.includes_go_one_way, "src/core/x.cpp", '// X.\n#include "fedpdpo/io/json.hpp"\n'),
    (rules.includes_go_one_way, "src/io/x.cpp", '// X.\n#include "fedpdpo/backend/backend.hpp"\n'),
    (rules.includes_go_one_way, "include/fedpdpo/model/x.hpp", '// X.\n#pragma once\n#include <fedpdpo/data/pairs.hpp>\n'),
    (rules.includes_go_one_way, "src/comm/x.cpp", '// X.\n  # include "fedpdpo/data/pairs.hpp"\n'),
    (rules.includes_go_one_way, "src/record/x.cpp", '// X.\n#include "fedpdpo/model/config.hpp"\n'),
    (rules.includes_go_one_way, "src/train/x.cpp", '// X.\n#include "fedpdpo/fed/options.hpp"\n'),
    (rules.includes_go_one_way, "src/fed/x.cpp", '// X.\n#include "fedpdpo/app/command_line.hpp"\n'),
    (rules.private_headers_stay_in_their_folder, "src/fed/x.cpp", '// X.\n#include "../comm/parts.hpp"\n'),
    (rules.private_headers_stay_in_their_folder, "src/fed/x.cpp", '// X.\n#include "parts.hpp"\n'),
    (rules.private_headers_stay_in_their_folder, "include/fedpdpo/fed/x.hpp", '// X.\n#pragma once\n#include "methods.hpp"\n'),
    (rules.libraries_stay_in_their_place, "src/fed/x.cpp", "// X.\n#include <mpi.h>\n"),
    (rules.libraries_stay_in_their_place, "src/app/x.cpp", "// X.\n#include <mpi.h>\n"),
    (rules.libraries_stay_in_their_place, "src/backend/x.cpp", "// X.\n#include <nccl.h>\n"),
    (rules.libraries_stay_in_their_place, "src/comm/x.cpp", "// X.\n#include <cuda_runtime_api.h>\n"),
    (rules.libraries_stay_in_their_place, "src/backend/x.cpp", "// X.\n#include <cublas_v2.h>\n"),
    (rules.libraries_stay_in_their_place, "src/record/x.cpp", "// X.\n#include <hdf5.h>\n"),
    (rules.libraries_stay_in_their_place, "include/fedpdpo/io/x.hpp", "// X.\n#pragma once\n#include <H5Dpublic.h>\n"),
    (rules.libraries_stay_in_their_place, "src/fed/x.cpp", "// X.\n#include <boost/optional.hpp>\n"),
    (rules.libraries_stay_in_their_place, "include/fedpdpo/core/x.hpp", "// X.\n#pragma once\n#include <fmt/core.h>\n"),
    (rules.libraries_stay_in_their_place, "src/model/x.cpp", "// X.\n#include <oneapi/dnnl/dnnl.hpp>\n"),
    (rules.libraries_stay_in_their_place, "src/model/x.cpp", "// X.\n#include <hwy/highway.h>\n"),
    (rules.no_conditional_compilation, "src/core/x.cpp", "// X.\n#ifdef FEDPDPO_CUDA\n#endif\n"),
    (rules.no_conditional_compilation, "include/fedpdpo/core/x.hpp", "// X.\n#pragma once\n#if 1\n#endif\n"),
    (rules.no_conditional_compilation, "src/backend/cpu/x.cpp", "// X.\n#ifdef __AVX512F__\n#endif\n"),
    (rules.headers_have_pragma_once, "include/fedpdpo/core/x.hpp", "// X.\n"),
    (rules.files_are_not_too_long, "src/core/x.cpp", "// X.\n" * 501),
    (rules.files_are_not_too_long, "jobs/x.py", '"""X."""\n' + "x = 1\n" * 500),
    (rules.files_say_what_they_are, "src/core/x.cpp", '#include "fedpdpo/core/error.hpp"\n'),
    (rules.files_say_what_they_are, "tests/python/x.py", "import os\n"),
    (rules.operations_are_tested, "include/fedpdpo/backend/backend.hpp",
     "// Operations.\n#pragma once\nclass Backend { virtual void do_axpy(float) = 0; };\n"),
    (rules.operations_are_timed, "src/backend/timed_backend.cpp", "// All, timed.\n"),
]


def plant(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path, text in SOUND.items():
        plant(tmp_path, path, text)
    return tmp_path


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_sound_tree_is_accepted(tree: Path, rule: rules.Rule) -> None:
    assert list(rule(tree)) == []


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED,
                         ids=[f"{rule.__name__}-{number}" for number, (rule, _, _) in enumerate(PLANTED)])
def test_planted_violation_is_named(tree: Path, rule: rules.Rule, path: str, text: str) -> None:
    plant(tree, path, text)
    found = [line for each in rules.RULES for line in each(tree)]
    assert len(list(rule(tree))) == 1, found
    assert found == list(rule(tree)), "no other rule speaks"
    assert found[0].startswith(path)


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(rules.RULES)
