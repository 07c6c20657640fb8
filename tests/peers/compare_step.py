"""One DPO training step with LoRA: fedpdpo against PyTorch (transformers + PEFT), interleaved on the same machine.

    python tests/peers/compare_step.py --model build/models/smollm2-135m-instruct [--tokens 128/128/128] [--pairs 2]
        [--rounds 5] [--threads 1] [--precision fp32|bf16] [--binary build/fedpdpo]

The peer is described in peers.py. Both sides count a pair's tokens once: prompt + chosen + rejected.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from peers import DTYPES, Peer, run_bench
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", default="128/128/128")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--binary", default="build/fedpdpo")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lengths = [int(n) for n in options.tokens.split("/")]
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=DTYPES[options.precision],
                                                attn_implementation="sdpa")  # fmt: skip
    peer = Peer(base, lengths, torch.device("cpu"))
    ids = peer.batch(options.pairs, seed=1)
    cached = peer.reference(ids)
    peer.step(ids, None)
    seconds: dict[str, list[float]] = {"fedpdpo": [], "peer, reference: cached": [], "peer, reference: each step": []}
    for _ in range(options.rounds):
        bench = run_bench(options.binary, "--method", "fedavg", "--model", options.model, "--tokens", options.tokens,
                          "--pairs", options.pairs, "--repeats", 1, "--threads", options.threads, "--precision",
                          options.precision)  # fmt: skip
        seconds["fedpdpo"].append(bench["results"][0]["seconds_median"])
        seconds["peer, reference: cached"].append(peer.seconds(ids, cached))
        seconds["peer, reference: each step"].append(peer.seconds(ids, None))
    tokens = options.pairs * sum(lengths)
    ours = statistics.median(seconds["fedpdpo"])
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.precision}, {options.pairs} pairs of "
          f"{options.tokens}, medians of {options.rounds} interleaved")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:28} {median:8.3f} s  {tokens / median:8.1f} tokens/s  fedpdpo is {median / ours:5.2f} x")


if __name__ == "__main__":
    main()
