"""One DPO training step with LoRA: fedpdpo against PyTorch (transformers + PEFT), interleaved on the same machine.

    python tests/peers/compare_step.py --model build/models/smollm2-135m-instruct [--tokens 128/128/128] [--pairs 2]
        [--rounds 5] [--threads 1] [--precision fp32|bf16] [--binary build/fedpdpo]

The peer is what a loop around TRL's DPO does: chosen and rejected as two sequences of a batch without padding (all lengths are
equal here), SDPA attention, LoRA of rank 8 on all linear layers, the reference computed at every step by switching the
adapter off (`reference: each step`, TRL's default with PEFT) or taken as given (`reference: cached`,
`precompute_ref_log_probs`). Both sides count a pair's tokens once: prompt + chosen + rejected. Needs torch, transformers, peft.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def sequence_log_probs(model, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Sum of the response tokens' log-probabilities of every row of ids (B, T)."""
    logits = model(ids).logits[:, prompt - 1 : -1].float()
    return torch.gather(logits.log_softmax(-1), 2, ids[:, prompt:, None]).sum((1, 2))


class Peer:
    """The stock step."""

    def __init__(self, path: str, lengths: list[int], pairs: int, dtype: torch.dtype) -> None:
        base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(base, config)
        for name, p in self.model.named_parameters():
            if "lora_" in name:
                p.data = p.data.float() if dtype == torch.float32 else p.data
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)
        prompt, chosen, rejected = lengths
        assert chosen == rejected, "the peer's batch is not padded: responses of equal length"
        vocabulary = base.config.vocab_size
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(vocabulary, (pairs, prompt), generator=generator).repeat(2, 1)
        responses = torch.randint(vocabulary, (2 * pairs, chosen), generator=generator)
        self.ids, self.prompt, self.pairs = torch.cat([prompts, responses], 1), prompt, pairs
        with torch.no_grad(), self.model.disable_adapter():
            self.reference = sequence_log_probs(self.model, self.ids, prompt)

    def step(self, reference_each_step: bool) -> float:
        start = time.perf_counter()
        reference = self.reference
        if reference_each_step:
            with torch.no_grad(), self.model.disable_adapter():
                reference = sequence_log_probs(self.model, self.ids, self.prompt)
        ratio = sequence_log_probs(self.model, self.ids, self.prompt) - reference
        loss = -torch.nn.functional.logsigmoid(0.1 * (ratio[: self.pairs] - ratio[self.pairs :])).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", default="128/128/128")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--binary", default="build/fedpdpo")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lengths = [int(n) for n in options.tokens.split("/")]
    peer = Peer(options.model, lengths, options.pairs, torch.float32 if options.precision == "fp32" else torch.bfloat16)
    command = [options.binary, "bench", "--method", "fedavg", "--model", options.model, "--tokens", options.tokens,
               "--pairs", str(options.pairs), "--repeats", "1", "--threads", str(options.threads),
               "--precision", options.precision]  # fmt: skip
    peer.step(True)
    seconds: dict[str, list[float]] = {"fedpdpo": [], "peer, reference: cached": [], "peer, reference: each step": []}
    for _ in range(options.rounds):
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds["fedpdpo"].append(float(re.search(r"AdamW: ([0-9.]+) s", output).group(1)))
        seconds["peer, reference: cached"].append(peer.step(False))
        seconds["peer, reference: each step"].append(peer.step(True))
    tokens = options.pairs * sum(lengths)
    ours = statistics.median(seconds["fedpdpo"])
    print(f"torch {torch.__version__}, {options.threads} thread(s), {options.precision}, {options.pairs} pairs of "
          f"{options.tokens}, medians of {options.rounds} interleaved")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:28} {median:8.3f} s  {tokens / median:8.1f} tokens/s  fedpdpo is {median / ours:5.2f} x")


if __name__ == "__main__":
    main()
