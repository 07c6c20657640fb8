#!/bin/bash
# The demonstration, from texts to figures: synthetic pairs, tokenised; the runs of jobs/demo.grid; tables and figures.
# usage: jobs/demo.sh PYTHON, from the root of a checkout that has been built. Model and domains are those of
# jobs/demo.cfg. What is done already is kept.
set -euo pipefail
python=${1:?usage: demo.sh PYTHON}
ranks=${RANKS:-2}
model=$(sed -n 's/^model = //p' jobs/demo.cfg)
domains=$(sed -n 's|^data = demo/pairs/\(.*\)\.h5$|\1|p' jobs/demo.cfg)

phase() { printf '\n[%s] %s\n' "$(date +%H:%M:%S)" "$*"; }

phase "preference pairs: synthetic, generated from templates"
"$python" data_prep/demo_pairs.py --out demo/texts
for domain in $domains; do
  [ -f "demo/pairs/$domain.h5" ] && continue
  mkdir -p demo/pairs
  "$python" data_prep/prepare.py --in "demo/texts/$domain.jsonl" --model "$model" --category category \
    --domain "$domain" --max-length 96 --out "demo/pairs/$domain.h5"
done

phase "federations: local, fedavg and fedpdpo, $ranks ranks each"
"$python" jobs/sweep.py jobs/demo.grid --local --ranks "$ranks"

phase "tables (synthetic data)"
"$python" -m analysis summarize demo/runs

phase "figures"
"$python" -m analysis figures demo/runs --out demo/figures
phase "done: run files in demo/runs, figures in demo/figures"
