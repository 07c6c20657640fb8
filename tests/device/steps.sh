# shellcheck shell=bash disable=SC2054
# The steps of tests/device_check.sh, each a function. Lines `note: ...` go into the summary. 0: passed, 77: not possible
# here, anything else: failed.

export OMPI_ALLOW_RUN_AS_ROOT=${OMPI_ALLOW_RUN_AS_ROOT:-1} OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}
export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1} PYTHONUNBUFFERED=1
# Ranks here share cores and a device; a container may forbid them to read one another's memory.
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}

note() { echo "note: $*"; }

# Where CUDA's tools lie, if nobody has said so.
PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer

# Anew where bundle/ came out of another archive than the one that is there now.
unpack_bundle() {
  local archive
  [[ -f bundle.tar.gz ]] || return 0
  archive=$(sha256sum bundle.tar.gz)
  if [[ -d bundle && ! -f bundle/.archive ]] || [[ -d bundle && $(< bundle/.archive) == "$archive" ]]; then return 0; fi
  rm -rf bundle && tar -xzf bundle.tar.gz && echo "$archive" > bundle/.archive
}

# library_here NAME: where the program finds it by itself. library_elsewhere NAME: with the driver, or in a package of $PYTHON.
library_here() {
  local folder found loader=${LD_LIBRARY_PATH:-}
  for folder in ${loader//:/ } ${CUDA_HOME:+"$CUDA_HOME/lib64"} ${CUDA_PATH:+"$CUDA_PATH/lib64"} /usr/local/cuda/lib64; do
    [[ ! -e $folder/$1 ]] || { echo "$folder/$1"; return; }
  done
  found=$(LC_ALL=C ldconfig -p 2> /dev/null | sed -n "s/^\t$1 .*x86-64.* => //p" | head -n 1)
  [[ -n $found ]] && echo "$found"
}
library_elsewhere() {
  [[ ! -e /usr/local/nvidia/lib64/$1 ]] || { echo "/usr/local/nvidia/lib64/$1"; return; }
  "$PYTHON" -c '
import pathlib, sys
for folder in map(pathlib.Path, sys.path):
    for found in sorted(folder.absolute().glob("nvidia/*/lib/" + sys.argv[1])):
        sys.exit(print(found))' "$1" 2> /dev/null
}

# What the program opens on a device is made to be found.
find_libraries() {
  local name found
  [[ $DEVICE != cpu ]] || return 0
  for name in libcuda.so.1 libcublasLt.so.13 libnccl.so.2; do
    library_here "$name" > /dev/null && continue
    found=$(library_elsewhere "$name")
    [[ -z $found ]] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${found%/*}
  done
}

# Ranks talk over the loopback interface, which a bare machine may have down.
need_loopback() {
  (exec 3<> /dev/udp/127.0.0.1/9) 2> /dev/null || ip link set lo up 2> /dev/null || "$PYTHON" -c '
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    flags = struct.unpack("16sh14x", fcntl.ioctl(s, 0x8913, struct.pack("16sh14x", b"lo", 0)))[1]
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))' || note "the loopback interface is down"
}

find_programs() {
  unpack_bundle || return 1
  local root=build tests=build/tests mpirun=mpirun
  if [[ -x bundle/fedpdpo ]]; then root=bundle tests=bundle mpirun=$PWD/bundle/mpirun; fi
  export DEVICE=${DEVICE:-cuda} TINY=${TINY:-} PYTHON=${PYTHON:-python3}
  export PROGRAM=${PROGRAM:-$PWD/$root/fedpdpo} MPIRUN=${MPIRUN:-$mpirun}
  export TEST_BACKEND=${TEST_BACKEND:-$PWD/$tests/test_backend} TEST_TRAIN=${TEST_TRAIN:-$PWD/$tests/test_train}
  export OPERATIONS=${OPERATIONS:-CudaInstructions.*:*/cuda}
  find_libraries
}

# bounded SECONDS COMMAND...: ended after that time, with or against its will; with the step, too, whose process group it is in.
bounded() { timeout --foreground --kill-after=5 "$@"; }

needs_file() {
  [[ -x $1 ]] && return
  note "not there: $1 (make -f Makefile.cluster bundle BUNDLE_TESTS=1, or a build)"
  return 1
}

# gtest_alone PROGRAM SECONDS TESTS: those tests in one process; its output in $CHECK_WORK/gtest.log. What was said so far
# stays where the step's time ends.
gtest_alone() {
  bounded "$2" "$1" --gtest_filter="$3" 2>&1 | tee "$CHECK_WORK/gtest.log"
  return "${PIPESTATUS[0]}"
}
tests_with() { sed -n "s/^\[ *$1 *\] \([A-Za-z][^ ,]*\).* ([0-9]* ms)\$/\1/p" "$CHECK_WORK/gtest.log"; }

# gtest_run PROGRAM FILTER: suite by suite, each in a process of its own with its limit, since a kernel that fails takes
# all later work of its process with it, and one that never ends all that follows. Where that happens, the suite's tests
# are run one by one. Some tests must have run; on a device none may have been skipped.
gtest_run() {
  local program=$1 filter=$2 seconds=${GTEST_SECONDS:-30} line suite='' code test
  local passed=0 skipped=0 failures=() suites=()
  declare -A tests=()
  while IFS= read -r line; do
    if [[ $line =~ ^([A-Za-z][A-Za-z0-9_/]*)\.( |$) ]]; then
      suite=${BASH_REMATCH[1]}
      if [[ $suite == CudaInstructions ]]; then suites=("$suite" "${suites[@]}"); else suites+=("$suite"); fi
    elif [[ -n $suite && $line =~ ^\ \ ([A-Za-z0-9_/]+) ]]; then
      tests[$suite]+=${tests[$suite]:+:}$suite.${BASH_REMATCH[1]}
    fi
  done < <(bounded 20 "$program" --gtest_list_tests --gtest_filter="$filter" 2> /dev/null)
  for suite in "${suites[@]}"; do
    gtest_alone "$program" "$seconds" "${tests[$suite]}"
    code=$?
    if ((code > 1)) || grep -qE '(CUDA|cuBLASLt): (a kernel failed|the device is lost)' "$CHECK_WORK/gtest.log"; then
      test=$(sed -n 's/^\[ RUN      \] //p' "$CHECK_WORK/gtest.log" | tail -n 1)
      note "exit code $code in $test; the tests of $suite one by one"
      for test in ${tests[$suite]//:/ }; do
        CUDA_LAUNCH_BLOCKING=1 gtest_alone "$program" $((seconds / 3)) "$test"
        code=$?
        if ((code > 0)); then failures+=("$test"); note "failed: $test (exit code $code)"; fi
        if ((code == 0)) && [[ -n $(tests_with OK) ]]; then passed=$((passed + 1)); fi
        if [[ -n $(tests_with SKIPPED) ]]; then skipped=$((skipped + 1)); fi
      done
    else
      passed=$((passed + $(tests_with OK | wc -l))) skipped=$((skipped + $(tests_with SKIPPED | wc -l)))
      for test in $(tests_with FAILED); do failures+=("$test"); note "failed: $test"; done
    fi
  done
  note "$passed passed, $skipped skipped, ${#failures[@]} failed"
  if ((passed == 0 && skipped > 0 && ${#failures[@]} == 0)) && [[ $DEVICE == cpu ]]; then return 77; fi
  ((passed > 0 && skipped == 0 && ${#failures[@]} == 0))
}

step_0() {
  need_loopback
  note "program: $("$PROGRAM" --version 2>&1 | head -n 1)"
  note "device: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null || echo 'no nvidia-smi')"
  local name
  [[ $DEVICE == cpu ]] || for name in libcuda.so.1 libcublasLt.so.13 libnccl.so.2; do
    note "library: $(library_here $name || echo "no $name")"
  done
  nvidia-smi 2> /dev/null
  nvcc --version 2> /dev/null | tail -n 2
  [[ ! -x bundle/bin/fedpdpo ]] || LD_LIBRARY_PATH=bundle/lib ldd bundle/bin/fedpdpo
  uname -a
  nproc
  free -g
  "$PYTHON" --version
}

step_1() {
  local filter=$OPERATIONS
  # The real cuBLASLt's descriptors, which need no device: where it is not found, the rest need not be looked at.
  [[ $DEVICE == cpu ]] || filter+=':CublasLtLibrary.TheRealLibrary*'
  needs_file "$TEST_BACKEND" && gtest_run "$TEST_BACKEND" "$filter"
}

step_2() {
  needs_file "$TEST_TRAIN" || return 1
  local failed=0 GTEST_SECONDS=${GTEST_SECONDS:-60}
  gtest_run "$TEST_TRAIN" 'CudaParity*' || { (($? == 77)) && return 77; failed=1; }
  # Also after a failure: it names the operation. Graphs are not for it.
  FEDPDPO_CUDA_CHECK=1 gtest_run "$TEST_TRAIN" 'CudaParity*-*Graphs*' || failed=1
  # NCCL may be missing here: then runs take their sums to the host.
  bounded 40 "$TEST_TRAIN" --gtest_filter='CudaNccl*' > "$CHECK_WORK/nccl.log" 2>&1 || failed=1
  cat "$CHECK_WORK/nccl.log"
  note "NCCL: $(sed -n 's/^\[ *\(OK\|SKIPPED\|FAILED\) *\] CudaNccl.*/\1/p' "$CHECK_WORK/nccl.log" | head -n 1)"
  return $failed
}

step_3() {
  if ! command -v compute-sanitizer > /dev/null || [[ $DEVICE == cpu ]]; then
    note "no compute-sanitizer, or no device"
    return 77
  fi
  needs_file "$TEST_TRAIN" && needs_file "$TEST_BACKEND" || return 1
  local tool what program filter code failed=0 late=0 seconds options
  seconds=$(((${CHECK_SECONDS:-480} - 10) / 6 - 5))
  ((seconds > 5)) || seconds=5
  # All operations by the tools that look at single kernels, then whole training steps, with the tensor kernels in them.
  for what in memcheck:operations racecheck:operations synccheck:operations memcheck:train racecheck:train initcheck:train; do
    tool=${what%:*} program=$TEST_TRAIN filter=CudaParity.TrainingStepsOnBf16Weights
    [[ $what != *:operations ]] || program=$TEST_BACKEND filter=$OPERATIONS
    options=(--tool "$tool" --target-processes all --error-exitcode 9)
    if [[ $tool == memcheck && $(compute-sanitizer --help) == *--track-stream-ordered-races* ]]; then
      options+=(--track-stream-ordered-races all)
    fi
    echo "== $what"
    timeout --kill-after=5 "$seconds" compute-sanitizer "${options[@]}" "$program" --gtest_filter="$filter" \
      > "$CHECK_WORK/sanitizer.log" 2>&1
    code=$?
    tail -n 400 "$CHECK_WORK/sanitizer.log"
    if [[ $code == 124 || $code == 137 ]]; then
      late=1
      note "$what: more than $seconds s"
    elif [[ $code != 0 ]]; then
      failed=1
      note "$what: exit code $code, $(grep 'ERROR SUMMARY' "$CHECK_WORK/sanitizer.log" | tail -n 1)"
    else
      note "$what clean"
    fi
  done
  ((failed == 0)) || return 1
  ((late == 0)) || return 124
}

# Where the figures are tried out: a tiny model instead of the shape.
bench_source() {
  if [[ -n $TINY ]]; then echo "--model tests/golden/tiny_llama --tokens 8/6/6 --ceiling 64"; else echo "--shape $1"; fi
}

# quick_bench PRECISION NAME OPTIONS...: a line of figures, and what is left of them where it fails.
quick_bench() {
  local precision=$1 name=$2 code
  shift 2
  # shellcheck disable=SC2046
  bounded 60 "$PROGRAM" bench $(bench_source smollm2-135m) --method fedavg --device "$DEVICE" --precision "$precision" \
    --clients 1,8 --pairs 4 --repeats 3 --most-seconds 5 "$@" --json "$CHECK_WORK/logs/quick-$name.json" |
    tee "$CHECK_WORK/bench.log"
  code=${PIPESTATUS[0]}
  note "$name, 8 clients of 4 pairs: $(awk '$1 == 8 && $2 == 4 && $5 ~ /^[0-9.]+$/ {
    line = $6 " pairs/s, " $9 " % of the ceiling" } END { print line ? line : "no figures" }' "$CHECK_WORK/bench.log")"
  return "$code"
}

step_4() {
  local failed=0
  quick_bench bf16 bf16 --profile || failed=1
  # What the profile is to be held against: bytes and arithmetic, counted.
  # shellcheck disable=SC2046
  "$PROGRAM" bench --count $(bench_source smollm2-135m) --method fedavg --precision bf16 --clients 8 --pairs 4 || failed=1
  # Passes whose activations the cache may hold.
  quick_bench bf16 bf16-4096-rows --micro-rows 4096 || failed=1
  # Algorithms that are chosen for a small pass: what these cost a full one.
  FEDPDPO_CUDA_ROWS=512 quick_bench bf16 bf16-rows-512 || failed=1
  quick_bench fp32 fp32 --profile || failed=1
  return $failed
}

# federation_command NAME RANKS OPTIONS...: $command becomes a run of a tiny federation, $CHECK_WORK/NAME.h5.
federation_command() {
  local name=$1 ranks=$2
  shift 2
  command=("$PROGRAM" run --model tests/golden/tiny_llama --data tests/golden/tiny_pairs.h5 --clients 4 --alpha 1
    --min-train 2 --steps 2 --batch 4 --lora-rank 2 --seed 1 --device "$DEVICE" --reference-cache "$CHECK_WORK/$name.cache"
    --out "$CHECK_WORK/$name.h5" --overwrite "$@")
  ((ranks == 1)) || command=("$MPIRUN" -n "$ranks" "${command[@]}")
}

federation() {
  federation_command "$@"
  bounded "${RUN_SECONDS:-60}" "${command[@]}"
}

hash_of() { "$PROGRAM" inspect "$CHECK_WORK/$1.h5" | sed -n 's/^ *results sha256 //p'; }

# equal NAME NAME...: all hold the same numbers.
equal() {
  local first name other
  first=$(hash_of "$1")
  for name in "$@"; do
    other=$(hash_of "$name")
    if [[ -z $first || $other != "$first" ]]; then
      "$PROGRAM" inspect "$CHECK_WORK/$1.h5" "$CHECK_WORK/$name.h5"
      note "$name differs from $1"
      return 1
    fi
  done
  note "equal: $*"
}

rounds() { if [[ -n $TINY ]]; then echo 2; else echo 4; fi; }

step_5() {
  local precision options failed=0
  for precision in fp32 bf16; do
    # Bits are promised for clients that train one after another: a cohort's rows share the products of a pass.
    options=(--rounds "$(rounds)" --precision "$precision" --cohort 1)
    federation "$precision-one" 1 "${options[@]}" || return 1
    federation "$precision-again" 1 "${options[@]}" || return 1
    equal "$precision"-{one,again} || failed=1
    if federation "$precision-two" 2 "${options[@]}"; then
      equal "$precision"-{one,two} || failed=1
    else
      note "$precision: no run on two ranks"
      failed=1
    fi
  done
  federation cohort 1 --rounds "$(rounds)" --cohort 4 || return 1
  federation cohort-again 1 --rounds "$(rounds)" --cohort 4 || return 1
  equal cohort cohort-again || failed=1
  "$PROGRAM" inspect "$CHECK_WORK/fp32-one.h5" "$CHECK_WORK/cohort.h5"
  if [[ $(hash_of fp32-one) == "$(hash_of cohort)" ]]; then note "a cohort gives its clients' own bits"; fi
  return $failed
}

# fails CODE TEXT COMMAND...: ends with that code and one line of its own, which holds the text.
fails() {
  local code=$1 text=$2 found lines log=$CHECK_WORK/fails.log
  shift 2
  "$@" > "$log" 2>&1
  found=$?
  cat "$log"
  lines=$(grep -c '^fedpdpo: error: ' "$log")
  if [[ $found != "$code" || $lines != 1 ]] || ! grep -q "^fedpdpo: error: .*$text" "$log"; then
    note "exit code $found with $lines lines, expected $code and one line with '$text': ${*: -6}"
    return 1
  fi
  note "exit code $code: $(sed -n 's/^fedpdpo: error: //p' "$log" | cut -c 1-110)"
}

step_6() {
  local log=$CHECK_WORK/auto.log expected='device auto: cuda:0'
  [[ $DEVICE != cpu ]] || expected='device auto: '
  DEVICE=auto federation auto 1 --rounds 0 > "$log" 2>&1 || { cat "$log"; return 1; }
  cat "$log"
  grep -q "$expected" "$log" || { note "no line '$expected'"; return 1; }
  note "$(grep -o 'device auto: .*' "$log" | head -n 1)"
  DEVICE=cuda:9 fails 2 cuda:9 federation nine 1 --rounds 0
}

# until_checkpoint NAME SIGNAL OPTIONS...: starts a run and sends the signal once it has saved twice; its exit code.
until_checkpoint() {
  local name=$1 signal=$2 pid saved=0
  shift 2
  federation_command "$name" 1 --checkpoint-every 1 "$@"
  "${command[@]}" &
  pid=$!
  while ((saved < 2)) && kill -0 $pid 2> /dev/null; do
    saved=$(find "$CHECK_WORK/$name.ckpt" -name manifest.json 2> /dev/null | wc -l)
    sleep 0.02
  done
  kill "-$signal" $pid 2> /dev/null
  wait $pid
}

# Takes the device's memory but for about 200 MiB, in pieces that can be had, says so, and keeps it.
hold_memory='
import time, torch
held, size = [], 1 << 30
while size >= 16 << 20:
    try:
        if torch.cuda.mem_get_info()[0] - size < 200 << 20:
            raise torch.OutOfMemoryError
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
torch.cuda.synchronize()
print("held", flush=True)
time.sleep(100)
'

step_7() {
  local many=60 code holder failed=0
  [[ -z $TINY ]] || many=5
  federation whole 1 --rounds $many || return 1
  until_checkpoint killed KILL --rounds $many
  code=$?
  [[ $code != 0 && ! -e $CHECK_WORK/killed.h5 ]] || { note "the run was over before it could be killed"; return 1; }
  if [[ $DEVICE == cuda && -z $TINY ]] && "$PYTHON" -c 'import torch; assert torch.cuda.is_available()' 2> /dev/null; then
    "$PYTHON" -c "$hold_memory" > "$CHECK_WORK/held.log" 2>&1 &
    holder=$!
    for ((i = 0; i < 300; ++i)); do grep -q held "$CHECK_WORK/held.log" && break; sleep 0.1; done
    if grep -q held "$CHECK_WORK/held.log"; then
      fails 1 memory federation killed 1 --rounds $many --checkpoint-every 1 --resume auto || failed=1
    else
      cat "$CHECK_WORK/held.log"
      note "PyTorch did not take the memory: a run without it was not tried"
    fi
    kill $holder 2> /dev/null
    wait $holder 2> /dev/null
  else
    note "no PyTorch with this device: a run without memory was not tried"
  fi
  federation killed 1 --rounds $many --checkpoint-every 1 --resume auto || return 1
  equal whole killed || return 1
  until_checkpoint stopped TERM --rounds $many
  code=$?
  [[ $code == 75 ]] || { note "SIGTERM: exit code $code, expected 75"; return 1; }
  federation stopped 1 --rounds $many --checkpoint-every 1 --resume auto || return 1
  equal whole stopped || return 1
  if [[ $DEVICE == cpu ]]; then
    note "no device whose memory could end"
  else
    local source clients=2000  # with a full head each, 340 MB
    source=$(bench_source smollm2-135m)
    [[ -z $TINY ]] || clients=20000
    # shellcheck disable=SC2086
    fails 1 "out of device memory" bounded 60 "$PROGRAM" bench $source --method fedpdpo --device "$DEVICE" \
      --clients $clients --repeats 1 || failed=1
  fi
  return $failed
}

step_8() {
  local shape code failed=0 shapes=(smollm2-135m smollm2-360m llama-3.2-1b llama-7b) clients=1,8,32,100 left end
  [[ -z $TINY ]] || shapes=(tiny) clients=1,3
  end=$((SECONDS + ${CHECK_SECONDS:-560} - 10))
  for ((i = 0; i < ${#shapes[@]}; ++i)); do
    shape=${shapes[$i]}
    left=$(((end - SECONDS) / (${#shapes[@]} - i)))
    # shellcheck disable=SC2046
    bounded "$((left > 6 ? left - 5 : 1))" "$PROGRAM" bench $(bench_source "$shape") --method fedavg --device "$DEVICE" \
      --precision bf16 --clients $clients --pairs 1,4 --repeats 5 --most-seconds 20 \
      --json "$CHECK_WORK/logs/bench-$shape.json"
    code=$?
    if [[ $code == 124 || $code == 137 ]]; then note "$shape: cut off after $left s"; elif [[ $code != 0 ]]; then note "$shape: exit code $code"; fi
    [[ $code == 0 ]] || failed=1
  done
  return $failed
}

step_9() {
  if ! "$PYTHON" -c 'import torch, transformers, peft' 2> /dev/null; then
    note "$PYTHON has no torch, transformers and peft"
    return 77
  fi
  local arguments=(--shapes smollm2-135m,smollm2-360m,llama-3.2-1b --clients 1,32,100 --precision bf16)
  [[ -z $TINY ]] || arguments=(--model tests/golden/tiny_llama --tokens 8/6/6 --clients 1,3 --precision fp32 --rounds 1
    --most-pairs 4 --bench-options "--ceiling 64")
  "$PYTHON" tests/peers/compare_device.py "${arguments[@]}" --pairs 1,4 --device "$DEVICE" --binary "$PROGRAM" \
    --seconds "$((${CHECK_SECONDS:-560} - 20))" --json "$CHECK_WORK/logs/peers.json"
}
