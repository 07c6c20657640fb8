"""Training many clients on a device: fedpdpo's cohorts against PyTorch (transformers + PEFT), interleaved in one run.

    python tests/peers/compare_device.py [--shapes smollm2-135m,smollm2-360m,llama-3.2-1b] [--clients 1,8,32,100]
        [--pairs 1,4] [--tokens 128/128/128] [--rounds 3] [--seconds 480] [--device cuda] [--precision bf16]
        [--binary bundle/fedpdpo] [--json FILE]

The work: a DPO step with LoRA of rank 8 on all linear layers for each of N clients with P pairs of its own, at a named
shape (or --model FOLDER's) with random weights; nothing is downloaded. The peers (peers.py): (a) clients one after
another, timed over --sequential-clients of them, whose number does not matter to their pairs/s; (b) one client at its best
batch, grown until pairs/s gains nothing or memory ends. Both with the reference cached and computed at each step. Each
round is fedpdpo's whole sweep, then each peer once; all ratios are of medians over the rounds of one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peers import DTYPES, Clients, Peer, Reference, best_batch, give_back_memory, random_llama, run_bench


def product_rate(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """Operations a second of torch's own product of two random square matrices: a check of fedpdpo's ceiling."""
    a, b = (torch.rand(side, side, device=device, dtype=dtype) - 0.5 for _ in range(2))
    (a @ b).sum().item()
    times = []
    for _ in range(10):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times)


class Comparison:
    """One shape: samples of pairs/s by name, round by round."""

    def __init__(self, options: argparse.Namespace, shape: str, deadline: float, end: float) -> None:
        self.options, self.deadline, self.end = options, deadline, end
        self.device = torch.device(options.device)
        self.source = ["--model", options.model] if options.model else ["--shape", shape]
        self.pairs = [int(n) for n in options.pairs.split(",")]
        self.lengths = [int(n) for n in options.tokens.split("/")]
        self.ours: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.sequential: dict[tuple[int, Reference], list[float]] = {}
        self.best: dict[Reference, list[float]] = {reference: [] for reference in Reference}
        self.best_pairs = 0
        self.by_batch: dict[int, float] = {}
        self.bench: dict[str, Any] = {}
        self.torch_ceiling = 0.0

    def run(self) -> None:
        # Alone on the device first: the shape, and which combinations fit.
        self.bench = self.run_ours()
        base = random_llama(self.bench["model"], DTYPES[self.options.precision], self.device)
        peer = Peer(base, self.lengths, self.device)
        if peer.num_trainables() != self.bench["trainables"]:
            raise RuntimeError(f"not the same work: {peer.num_trainables()} trainables in PEFT, "
                               f"{self.bench['trainables']} in fedpdpo")
        clients = {pairs: Clients(peer, self.options.sequential_clients, pairs) for pairs in self.pairs}
        for group in clients.values():
            group.seconds(Reference.EACH_STEP)
        left = max(10.0, self.deadline - time.monotonic())
        self.best_pairs, self.by_batch = best_batch(peer, self.options.most_pairs, left / 4)
        ids = peer.batch(self.best_pairs, seed=1)
        cached = peer.reference(ids)
        for done in range(self.options.rounds):
            start = time.monotonic()
            for pairs, group in clients.items():
                for reference in Reference:
                    self.sequential.setdefault((pairs, reference), []).append(
                        len(group.ids) * pairs / group.seconds(reference))
            for reference in Reference:
                seconds = peer.seconds(ids, cached if reference is Reference.CACHED else None)
                self.best[reference].append(self.best_pairs / seconds)
            if self.device.type == "cuda":
                self.torch_ceiling = product_rate(self.device, DTYPES[self.options.precision])
            peer.optimizer.zero_grad(set_to_none=True)
            give_back_memory()
            self.record(self.run_ours())
            if done + 1 < self.options.rounds and time.monotonic() + (time.monotonic() - start) > self.deadline:
                print(f"no time for more than {done + 1} rounds", file=sys.stderr)
                break

    def run_ours(self) -> dict[str, Any]:
        o = self.options
        return run_bench(o.binary, "--method", "fedavg", *self.source, "--tokens", o.tokens, "--clients", o.clients,
                         "--pairs", o.pairs, "--device", o.device, "--precision", o.precision, "--repeats", 2,
                         "--most-seconds", o.most_seconds, "--threads", o.threads, *o.bench_options.split(),
                         seconds=max(10.0, self.end - time.monotonic()))  # fmt: skip

    def record(self, bench: dict[str, Any]) -> None:
        for result in bench["results"]:
            self.ours.setdefault((result["clients"], result["pairs"]), []).append(result)

    def rows(self) -> list[dict[str, Any]]:
        """One a combination of clients and pairs."""
        rows = []
        best = {reference: statistics.median(values) for reference, values in self.best.items()}
        for (clients, pairs), results in self.ours.items():
            measured = [result for result in results if not result["left_out"]]
            row: dict[str, Any] = {"clients": clients, "pairs": pairs, "left_out": results[-1]["left_out"]}
            rows.append(row)
            if not measured:
                continue
            rate = statistics.median(result["pairs_per_second"] for result in measured)
            row |= {"left_out": "", "pairs_per_second": rate, "cohort": measured[-1]["cohort"],
                    "memory_bytes": measured[-1]["memory_bytes"],
                    "share_of_ceiling": statistics.median(result["share_of_ceiling"] for result in measured)}
            for reference in Reference:
                name = reference.name.lower()
                row[f"over_sequential_{name}"] = rate / statistics.median(self.sequential[pairs, reference])
                row[f"over_best_{name}"] = rate / best[reference]
        return rows

    def report(self) -> dict[str, Any]:
        return {
            "model": self.bench["model"], "program": self.bench["program"], "trainables": self.bench["trainables"],
            "device_description": self.bench["device_description"], "driver": self.bench["driver"],
            "rounds": len(self.best[Reference.CACHED]), "rows": self.rows(), "torch_ceiling": self.torch_ceiling,
            "sequential_clients": self.options.sequential_clients,
            "sequential": [{"pairs": pairs, "reference": reference.value, "pairs_per_second": values}
                           for (pairs, reference), values in self.sequential.items()],
            "best_batch": {"pairs": self.best_pairs, "by_batch": self.by_batch,
                           "pairs_per_second": {reference.value: values for reference, values in self.best.items()}},
            "ours": [result for results in self.ours.values() for result in results]}  # fmt: skip

    def table(self) -> str:
        o, rows = self.options, self.rows()
        lines = [
            f"{self.bench['model']['name']}: {self.bench['device_description']}, {o.precision}, pairs of {o.tokens}, "
            f"LoRA rank 8 on all linear layers ({self.bench['trainables'] / 1e6:.3f} M)",
            f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}; medians of "
            f"{len(self.best[Reference.CACHED])} interleaved rounds; pairs/s"]  # fmt: skip
        if self.torch_ceiling:
            lines.append(f"  torch's own product of 8192^3: {self.torch_ceiling / 1e12:.0f} TFLOP/s")
        for (pairs, reference), values in self.sequential.items():
            lines.append(f"  peer, one after another, {pairs:>4} pair(s) a client, reference {reference.value:9} "
                         f"{statistics.median(values):10.2f}")
        for reference, values in self.best.items():
            lines.append(f"  peer, one client's best batch,  {self.best_pairs:>4} pair(s), reference "
                         f"{reference.value:9} {statistics.median(values):10.2f}")
        lines.append(f"  {'fedpdpo':>7} {'':>5} {'':>6} {'':>10} {'':>8}  {'times one after another':>24}  "
                     f"{'times the best batch':>24}")
        lines.append(f"  {'clients':>7} {'pairs':>5} {'cohort':>6} {'pairs/s':>10} {'ceiling':>8}  {'cached':>12}"
                     f"{'each step':>12}  {'cached':>12}{'each step':>12}")
        for row in rows:
            start = f"  {row['clients']:>7} {row['pairs']:>5} "
            if row["left_out"]:
                lines.append(start + row["left_out"])
                continue
            lines.append(f"{start}{row['cohort']:>6} {row['pairs_per_second']:>10.2f} "
                         f"{100 * row['share_of_ceiling']:>6.1f} %  {row['over_sequential_cached']:>12.2f}"
                         f"{row['over_sequential_each_step']:>12.2f}  {row['over_best_cached']:>12.2f}"
                         f"{row['over_best_each_step']:>12.2f}")
        return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="smollm2-135m,smollm2-360m,llama-3.2-1b")
    parser.add_argument("--model", help="a Llama folder whose shape is taken, instead of --shapes")
    parser.add_argument("--clients", default="1,8,32,100")
    parser.add_argument("--pairs", default="1,4")
    parser.add_argument("--tokens", default="128/128/128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=480, help="for all shapes together")
    parser.add_argument("--most-seconds", type=float, default=2, help="bench's, a combination")
    parser.add_argument("--sequential-clients", type=int, default=8)
    parser.add_argument("--most-pairs", type=int, default=1024, help="where the growth of the best batch ends")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--binary", default="bundle/fedpdpo")
    parser.add_argument("--bench-options", default="", help="more options of fedpdpo bench, as one word")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available() and options.device != "cpu":
        parser.error(f"--device {options.device}: torch sees no CUDA device")
    torch.set_num_threads(options.threads)
    shapes = [options.model] if options.model else options.shapes.split(",")
    end = time.monotonic() + options.seconds
    reports = []
    failed = 0
    for i, shape in enumerate(shapes):
        now = time.monotonic()
        comparison = Comparison(options, shape, now + max(0.0, end - now) / (len(shapes) - i), end)
        try:
            comparison.run()
        except (RuntimeError, torch.OutOfMemoryError) as error:
            failed = 1
            print(f"{shape}: {error}", file=sys.stderr, flush=True)
            if not comparison.ours:  # not one whole round
                continue
        finally:
            give_back_memory()
        print(comparison.table(), flush=True)
        reports.append(comparison.report())
        if options.json:
            options.json.write_text(json.dumps(
                {"format": "fedpdpo-peers", "torch": torch.__version__, "transformers": transformers.__version__,
                 "peft": peft.__version__, "command_line": sys.argv, "shapes": reports}, indent=1))  # fmt: skip
    sys.exit(failed)


if __name__ == "__main__":
    main()
