#!/bin/bash
# Everything that only a machine with a GPU can show, in one command from the repository's root:
#
#   tests/device_check.sh [--steps 1-7,9] [--budget SECONDS] [--out DIR]
#
#   1 operations   every operation on the device against the double reference
#   2 training     whole steps against the CPU, again with every output checked
#   3 sanitizer    compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#   4 quick-bench  SmolLM2-135M's shape in bf16 and fp32, with a profile by operation
#   5 equal-runs   the same results on one rank twice and on two ranks; a cohort twice
#   6 devices      --device auto; a device that is not there
#   7 failures     killed and resumed; a signal; out of device memory
#   8 bench        all shapes: 1, 8, 32, 100 clients with 1 and 4 pairs each
#   9 peers        against PyTorch (transformers + PEFT)
#
# It goes on after a failure, ends with a table, and its exit code is 1 if anything failed. A step has a time limit, all of
# them a budget (570 s): where a call may take 10 minutes, steps 1,2,4-7 are meant as one, 8, 9 and 3 as one each. DIR ($OUT,
# else device-check) gets summary.txt, tables.txt, and logs.tar.gz with a log a step and all figures as JSON, saved every 15 s.
# The programs are those of bundle/ (bundle.tar.gz is unpacked for it), else of build/; PROGRAM, MPIRUN, TEST_BACKEND,
# TEST_TRAIN, PYTHON name others. Where cuBLASLt and NCCL are PyTorch's alone, they are taken from there.
# DEVICE=cpu and TINY=1 (tiny models everywhere) try the script itself where there is no GPU.
set -uo pipefail

steps=1-9 budget=570 out=${OUT:-device-check} inside=
while [[ $# -gt 0 ]]; do
  case $1 in
    --steps) steps=${2-} ;;
    --budget) budget=${2-} ;;
    --out) out=${2-} ;;
    --inside) inside=${2-} ;;
    *) echo "device_check: $1: expected --steps, --budget or --out" >&2; exit 2 ;;
  esac
  shift 2 || { echo "device_check: $1: expected a value, found nothing" >&2; exit 2; }
done
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." || exit 2

names=(machine operations training sanitizer quick-bench equal-runs devices failures bench peers)
limits=(30 180 120 480 120 120 60 120 560 560)
source tests/device/steps.sh
if [[ -n $inside ]]; then
  "step_$inside"
  exit
fi

wanted=()
for part in ${steps//,/ }; do
  if [[ ! $part =~ ^[1-9](-[1-9])?$ ]]; then
    echo "device_check: --steps: expected numbers from 1 to 9 as 1-4,8, found $steps" >&2
    exit 2
  fi
  for ((n = ${part%-*}; n <= ${part#*-}; ++n)); do wanted+=("$n"); done
done
if [[ ! $budget =~ ^[0-9]+$ ]]; then
  echo "device_check: --budget: expected seconds, found $budget" >&2
  exit 2
fi

mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/logs"
export CHECK_WORK=$work
find_programs || exit 2
needs_file "$PROGRAM" || exit 2
failed=0

# What was found so far, also if this call is cut off later. A log may grow while it is read.
save() {
  local archive=$work/logs-$BASHPID.tar.gz
  tar -czf "$archive" -C "$work" logs 2> /dev/null
  mv "$archive" "$out/logs.tar.gz"
}

run_step() {
  local number=$1 name=${names[$1]} limit=${limits[$1]} left=$((budget - SECONDS)) start=$SECONDS code result note log
  log=$work/logs/$(printf '%02d-%s.log' "$number" "$name")
  if ((left < 10)); then
    printf '%2d %-12s %-4s %5s  %s\n' "$number" "$name" SKIP - "no time left" | tee -a "$out/summary.txt"
    return
  fi
  ((limit < left)) || limit=$left
  CHECK_SECONDS=$limit timeout --kill-after=10 "$limit" "$BASH" tests/device_check.sh --out "$out" --inside "$number" \
    > "$log" 2>&1 < /dev/null
  code=$?
  note=$(sed -n 's/^note: //p' "$log" | awk '{ printf "%s%s", (NR > 1 ? "; " : ""), $0 }')
  case $code in
    0) result=PASS ;;
    77) result=SKIP ;;
    124 | 137)
      result=TIME
      sleep 6  # what the step had started is ended by now, with its memory on the device
      ;;
    *) result=FAIL ;;
  esac
  [[ $result == PASS || $result == SKIP ]] || failed=1
  if [[ ($result == FAIL || $result == TIME) && -z $note ]]; then note=$(grep -v '^$' "$log" | tail -n 1 | cut -c 1-160); fi
  printf '%2d %-12s %-4s %3d s  %s\n' "$number" "$name" "$result" "$((SECONDS - start))" "$note" |
    tee -a "$out/summary.txt"
  if [[ $number == 8 || $number == 9 ]]; then cat "$log" >> "$out/tables.txt"; fi
  save
}

rm -f "$out/summary.txt" "$out/tables.txt"
while sleep 15; do save; done > /dev/null 2>&1 &
saver=$!
trap 'kill $saver 2> /dev/null; rm -rf "$work"' EXIT
step_0 > "$work/logs/00-machine.log" 2>&1
sed -n 's/^note: //p' "$work/logs/00-machine.log" | tee -a "$out/summary.txt"
for number in "${wanted[@]}"; do run_step "$number"; done
kill $saver
wait $saver 2> /dev/null
save
echo
[[ ! -f $out/tables.txt ]] || cat "$out/tables.txt"
echo "device_check: summary.txt, tables.txt and logs.tar.gz in $out"
cat "$out/summary.txt"
exit $failed
