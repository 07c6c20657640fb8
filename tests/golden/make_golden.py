"""Make the golden files beside this script: what transformers and PEFT compute, in float64, for tiny random models.

Run:      python make_golden.py [--out FOLDER] [--check]      (default FOLDER: this script's own; one core, a minute)
          --check writes to a temporary folder instead and compares it, byte for byte, with the committed files.
Versions: torch 2.15.0, transformers 5.23.0, peft 0.21.2, tokenizers 0.23.3, safetensors 0.8.0, Python 3.11.7.
Weights are rounded to fp32 before anything is computed, so a program that loads the fp32 file starts from the very
same numbers. README.md lists every file, tensor name and shape. The script checks its own results (see `check_*`).
"""

import argparse
import contextlib
import dataclasses
import filecmp
import json
import math
import os
import pathlib
import re
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import peft
import safetensors
import safetensors.torch
import tokenizers
import torch
import transformers
from torch.nn.functional import gelu, log_softmax, logsigmoid
from torch.overrides import TorchFunctionMode

import golden_losses
from golden_models import BOS, EOS, OLDER_KEYS, VOCAB, model_table, with_older_keys

LORA_RANK, LORA_ALPHA = 4, 8
BOTTLENECK_WIDTH = 6
HEAD_RANK = 3
BETA, LAMBDA, MU = 0.1, 1.0, 0.5


# ---- what is made ----------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Case:
    """Which modules act in a case, and its loss; the field's comment lists its values."""
    lora: bool
    bottleneck: str = "none"        # none, plain, gated
    head: str = "frozen"            # frozen, full, lowrank
    pool: str = "none"              # none (no reward head), last, mean
    reward_gradient: str = "all"    # all, private (bottleneck and reward head), none (the reward head only)
    loss: str = "none"              # none, dpo, pdpo
    keep_z: bool = True             # store z (off where another case has the same)


CASES = {
    "frozen": Case(lora=False),
    "lora_dpo": Case(lora=True, loss="dpo"),
    "fedpdpo_full": Case(lora=True, bottleneck="plain", head="full", pool="last", loss="pdpo"),
    "fedpdpo_lowrank_gated_mean": Case(lora=True, bottleneck="gated", head="lowrank", pool="mean", loss="pdpo"),
    "reward_private": Case(lora=True, bottleneck="plain", head="full", pool="last", loss="pdpo",
                           reward_gradient="private", keep_z=False),
    "reward_detached_all": Case(lora=True, bottleneck="plain", head="full", pool="last", loss="pdpo",
                                reward_gradient="none", keep_z=False),
}


def make_pairs(generator):
    """Four (prompt, chosen, rejected) triples of token ids; prompts start with BOS, responses end in EOS."""
    def tokens(n):
        return torch.randint(3, VOCAB, (n,), generator=generator).tolist()

    def pair(prompt, chosen, rejected):
        return {"prompt": [BOS] + prompt, "chosen": chosen + [EOS], "rejected": rejected + [EOS]}

    shared = tokens(3)
    start = tokens(3)
    return [
        pair(tokens(4), tokens(5), tokens(3)),                        # plain
        pair(tokens(8), shared + tokens(3), shared + tokens(2)),      # the same first three response tokens
        pair(tokens(2), start, start + tokens(3)),                    # chosen but for its EOS is a prefix of rejected
        pair([], tokens(7), tokens(1)),                               # the shortest prompt; a response of two tokens
    ]


# ---- float64 through and through -------------------------------------------------------------------------------

class KeepDouble(TorchFunctionMode):
    """While active, float32 does not exist: every cast or construction that asks for it gets float64.

    transformers computes norms, rotary angles and the attention's softmax in float32 whatever the model's type.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        double = lambda value: torch.float64 if value is torch.float32 else value
        return func(*map(double, args), **{name: double(value) for name, value in (kwargs or {}).items()})


def random_fp32(generator, *shape, std=1.0, mean=0.0):
    """Normal numbers that fp32 holds exactly, as float64."""
    return (mean + std * torch.randn(*shape, dtype=torch.float64, generator=generator)).float().double()


def random_weights(model, generator):
    """Weights that keep activations of order one: unlike default initialisation, every term can be seen."""
    conv1d = {name + ".weight" for name, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    embedding_std = 0.4 if model.config.tie_word_embeddings else 1.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                is_norm = name.endswith("weight")
                value = random_fp32(generator, *p.shape, mean=1.0 if is_norm else 0.0, std=0.2)
            elif any(part in name for part in ("embed_tokens", "embed_in", "wte", "wpe")):
                value = random_fp32(generator, *p.shape, std=embedding_std)
            else:
                fan_in = p.shape[0] if name in conv1d else p.shape[1]
                value = random_fp32(generator, *p.shape, std=1.0 / math.sqrt(fan_in))
            p.copy_(value)


def private_modules(generator, head0):
    """Name -> leaf tensor of the private modules, none at its neutral start. V, d = the head's shape."""
    V, d = head0.shape
    m = BOTTLENECK_WIDTH
    values = {
        "bottleneck.down": random_fp32(generator, m, d, std=1.0 / math.sqrt(d)),
        "bottleneck.bias": random_fp32(generator, m, std=0.3),
        "bottleneck.up": random_fp32(generator, d, m, std=0.5 / math.sqrt(m)),
        "bottleneck.gate": random_fp32(generator, d, mean=0.4, std=0.2),
        "head.weight": (head0 + random_fp32(generator, V, d, std=0.3 / math.sqrt(d))).float().double(),
        "head.q": random_fp32(generator, V, HEAD_RANK, std=0.3),
        "head.p": random_fp32(generator, HEAD_RANK, d, std=1.0 / math.sqrt(d)),
        "reward.weight": random_fp32(generator, d, std=1.0 / math.sqrt(d)),
        "reward.bias": random_fp32(generator, 1, std=0.3),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


# ---- the model of a client -------------------------------------------------------------------------------------

class Golden:
    """A tiny pretrained model with PEFT's LoRA and the private modules; evaluates cases in float64."""

    def __init__(self, config, targets, seed):
        generator = torch.Generator().manual_seed(seed)
        self.config, self.targets = config, targets
        self.pairs = make_pairs(generator)
        with KeepDouble():
            config._attn_implementation = "eager"
            self.pretrained = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        random_weights(self.pretrained, generator)
        self.head0 = self.pretrained.get_output_embeddings().weight.detach().clone()
        self.state = {k: v.detach().clone() for k, v in self.pretrained.state_dict().items()}
        with KeepDouble():
            self.reference = self.token_logps_by_transformers(self.pretrained)

            lora = peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=targets,
                                   bias="none", task_type="CAUSAL_LM",
                                   fan_in_fan_out=config.model_type == "gpt2")
            self.policy = peft.get_peft_model(self.pretrained, lora).double().eval()
        self.trainables = {}
        for name, p in self.policy.named_parameters():
            if p.requires_grad:
                std = 1.0 / math.sqrt(p.shape[1]) if "lora_A" in name else 0.1
                p.data.copy_(random_fp32(generator, *p.shape, std=std))
                self.trainables[name.removeprefix("base_model.model.").replace(".default", "")] = p
        self.lora_names = list(self.trainables)
        self.trainables |= private_modules(generator, self.head0)

    def token_logps_by_transformers(self, model):
        """(pair, side) -> log-probabilities of the response's tokens, (R,), by the model's own forward."""
        out = {}
        for i, side, ids, P in self.sequences():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            logp = log_softmax(logits[P - 1:-1], dim=-1)
            out[i, side] = logp.gather(1, torch.tensor(ids[P:])[:, None])[:, 0].detach()
        return out

    def sequences(self):
        """Yields (pair index, side, ids of [prompt | response], prompt length P); each is run alone, unpadded."""
        for i, pair in enumerate(self.pairs):
            for side in ("chosen", "rejected"):
                yield i, side, pair["prompt"] + pair[side], len(pair["prompt"])

    def trainable_names(self, case):
        """The names that a case trains, in order."""
        private = []
        if case.bottleneck != "none":
            private += ["bottleneck.down", "bottleneck.bias", "bottleneck.up"]
        if case.bottleneck == "gated":
            private += ["bottleneck.gate"]
        private += {"frozen": [], "full": ["head.weight"], "lowrank": ["head.q", "head.p"]}[case.head]
        if case.pool != "none":
            private += ["reward.weight", "reward.bias"]
        return (self.lora_names if case.lora else []) + private

    def bottleneck(self, case, h):
        """plain: z = h + M(h); gated: z = (1 - g) * h + g * M(h); M(h) = U gelu(D h + b), gelu exact (erf). (T, d)"""
        if case.bottleneck == "none":
            return h
        t = self.trainables
        m = gelu(h @ t["bottleneck.down"].T + t["bottleneck.bias"]) @ t["bottleneck.up"].T
        if case.bottleneck == "plain":
            return h + m
        return (1 - t["bottleneck.gate"]) * h + t["bottleneck.gate"] * m

    def head(self, case):
        """The (V, d) matrix of the case's LLM head."""
        t = self.trainables
        if case.head == "full":
            return t["head.weight"]
        return self.head0 + t["head.q"] @ t["head.p"] if case.head == "lowrank" else self.head0

    def run_sequence(self, case, ids, P):
        """z (T, d), log-probabilities of the response's tokens (R,), and the reward (a scalar) of one sequence."""
        with contextlib.nullcontext() if case.lora else self.policy.disable_adapter():
            backbone = self.policy.get_base_model().base_model
            h = backbone(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        z = self.bottleneck(case, h)
        logp = log_softmax(z[P - 1:-1] @ self.head(case).T, dim=-1)  # position t predicts token t + 1
        token_logp = logp.gather(1, torch.tensor(ids[P:])[:, None])[:, 0]
        reward = torch.zeros((), dtype=torch.float64)
        if case.pool != "none":
            z_reward = {"all": lambda: z, "none": lambda: z.detach(),
                        "private": lambda: self.bottleneck(case, h.detach())}[case.reward_gradient]()
            pooled = z_reward[-1] if case.pool == "last" else z_reward[P:].mean(dim=0)
            reward = self.trainables["reward.weight"] @ pooled + self.trainables["reward.bias"][0]
        return z, token_logp, reward

    def run(self, case):
        """Everything that a case defines, with the graph: a dictionary of per-pair tensors and the mean loss."""
        with KeepDouble():
            z, token_logp, reward = {}, {}, {}
            for i, side, ids, P in self.sequences():
                z[i, side], token_logp[i, side], reward[i, side] = self.run_sequence(case, ids, P)
            column = lambda table, side: torch.stack([table[i, side].sum() for i in range(len(self.pairs))])
            r = {"logp_chosen": column(token_logp, "chosen"), "logp_rejected": column(token_logp, "rejected"),
                 "ref_chosen": column(self.reference, "chosen"), "ref_rejected": column(self.reference, "rejected"),
                 "reward_chosen": column(reward, "chosen"), "reward_rejected": column(reward, "rejected")}
            r["implicit_margin"] = BETA * ((r["logp_chosen"] - r["ref_chosen"])
                                           - (r["logp_rejected"] - r["ref_rejected"]))
            r["explicit_margin"] = r["reward_chosen"] - r["reward_rejected"]
            if case.loss == "dpo":
                r["pair_loss"] = -logsigmoid(r["implicit_margin"])
            elif case.loss == "pdpo":
                r["pair_loss"] = (-logsigmoid(r["implicit_margin"] + LAMBDA * r["explicit_margin"])
                             - MU * logsigmoid(r["explicit_margin"]))
            if "pair_loss" in r:
                r["mean_loss"] = r["pair_loss"].mean()
        return r, z, token_logp

    def gradients(self, case, mean_loss):
        """Name -> gradient of the mean loss, for every trainable of the case."""
        names = self.trainable_names(case)
        return dict(zip(names, torch.autograd.grad(mean_loss, [self.trainables[n] for n in names])))


# ---- checks ----------------------------------------------------------------------------------------------------

def check_model(golden, folder):
    """The saved fp32 model, read back and run by transformers as anyone would, agrees with the float64 reference."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert plain.dtype == torch.float32
    assert plain.config.tie_word_embeddings == golden.config.tie_word_embeddings
    assert plain.config._attn_implementation == "sdpa", "expected another attention than the golden model's"
    if hasattr(golden.config, "rope_parameters"):
        assert plain.config.rope_parameters == golden.config.rope_parameters
    for name, value in plain.state_dict().items():
        assert torch.equal(value.double(), golden.state[name]), name
    for key, logp in golden.token_logps_by_transformers(plain).items():
        torch.testing.assert_close(logp.double(), golden.reference[key], rtol=1e-5, atol=1e-5)
    # The reference by transformers' own LM forward is the "frozen" case's, through the adapter-bearing model.
    for key, logp in golden.run(CASES["frozen"])[2].items():
        assert logp.dtype == torch.float64
        torch.testing.assert_close(logp.detach(), golden.reference[key], rtol=1e-12, atol=1e-12)


def check_neutral_start(golden):
    """With B = 0, U = 0 (gated: g = 0), H = H0 or Q = 0, every policy is the reference."""
    saved = {name: p.detach().clone() for name, p in golden.trainables.items()}
    with torch.no_grad():
        for name, p in golden.trainables.items():
            if "lora_B" in name or name in ("bottleneck.up", "bottleneck.gate", "head.q"):
                p.zero_()
        golden.trainables["head.weight"].copy_(golden.head0)
        for case in CASES.values():
            for key, logp in golden.run(case)[2].items():
                torch.testing.assert_close(logp, golden.reference[key], rtol=1e-12, atol=1e-12)
        for name, p in golden.trainables.items():
            p.copy_(saved[name])


def check_gradients(golden, case, gradients):
    """Central differences of the mean loss along one random direction of every trainable agree with autograd."""
    generator = torch.Generator().manual_seed(99)
    step = 1e-5
    for name, gradient in gradients.items():
        p = golden.trainables[name]
        direction = torch.randn(p.shape, dtype=torch.float64, generator=generator)
        loss = []
        with torch.no_grad():
            saved = p.detach().clone()
            for sign in (1, -1):
                p.copy_(saved + sign * step * direction)
                loss.append(golden.run(case)[0]["mean_loss"].item())
            p.copy_(saved)
        numeric, exact = (loss[0] - loss[1]) / (2 * step), (gradient * direction).sum().item()
        assert abs(numeric - exact) <= 1e-6 * abs(exact) + 1e-9, f"{name}: {numeric} by differences, {exact} by autograd"


def check_stopped_gradients(all_gradients):
    """What stopping the reward's gradient may and may not change."""
    full, private, detached = (all_gradients[c] for c in ("fedpdpo_full", "reward_private", "reward_detached_all"))
    close = lambda a, b: torch.allclose(a, b, rtol=1e-10, atol=1e-14)
    for name in full:
        if "lora" in name:
            assert close(private[name], detached[name]) and not close(private[name], full[name]), name
        elif name.startswith("bottleneck"):
            assert close(private[name], full[name]) and not close(detached[name], full[name]), name
        else:
            assert close(private[name], full[name]) and close(detached[name], full[name]), name


# ---- files -----------------------------------------------------------------------------------------------------

def write_json(path, value):
    """Indented JSON with each list of plain values on one line; Python's repr keeps all 17 digits of a double."""
    text = json.dumps(value, indent=1, allow_nan=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m.group(1)) + "]", text)
    path.write_text(text + "\n")


def write_model(golden, folder):
    """config.json and model.safetensors as save_pretrained writes them, in fp32."""
    model = transformers.AutoModelForCausalLM.from_config(golden.config, dtype=torch.float32)
    model.load_state_dict(golden.state)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if folder.name in OLDER_KEYS:
        config = with_older_keys(json.loads((folder / "config.json").read_text()))
        write_json(folder / "config.json", dict(sorted(config.items())))


def write_tokenizer(folder):
    """A word-level tokenizer: <unk>, <s>, </s> and 93 two-letter words ("ba", "be", ...), BOS put in front."""
    words = [c + v for c in "bcdfghjklmnpqrstvwz" for v in "aeiou"][:VOCAB - 3]
    vocab = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>"] + words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "model_max_length": 128})

    # AutoTokenizer would take the class that belongs to the model_type of config.json.
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert len(loaded) == VOCAB and (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (BOS, EOS, 0)
    assert loaded("ba  be zz\nwo</s>")["input_ids"] == [1, 3, 4, 0, vocab["wo"], 2]
    assert loaded.decode([3, 4, 95]) == "ba be " + words[92]


def make_model(name, folder):
    """Writes one model's folder."""
    config, targets, case_names, seed = model_table(list(CASES))[name]
    folder.mkdir(parents=True, exist_ok=True)
    golden = Golden(config, targets, seed)
    write_model(golden, folder)
    write_tokenizer(folder)
    check_model(golden, folder)
    check_neutral_start(golden)

    tensors, cases, all_gradients, used = {}, {}, {}, set()
    for case_name in case_names:
        case = CASES[case_name]
        result, z, token_logp = golden.run(case)
        names = golden.trainable_names(case)
        for (i, side), value in z.items():
            if case.keep_z:
                tensors[f"case/{case_name}/z/{i}/{side}"] = value
            tensors[f"case/{case_name}/token_logp/{i}/{side}"] = token_logp[i, side]
        if case.loss != "none":
            all_gradients[case_name] = golden.gradients(case, result["mean_loss"])
            if case.reward_gradient == "all":
                check_gradients(golden, case, all_gradients[case_name])
            tensors |= {f"case/{case_name}/grad/{n}": g for n, g in all_gradients[case_name].items()}
        used |= set(names)
        modules = {k: v for k, v in dataclasses.asdict(case).items() if k != "keep_z"}
        cases[case_name] = modules | {"trainables": names} | {k: v.tolist() for k, v in result.items()}
    if "reward_private" in all_gradients:
        check_stopped_gradients(all_gradients)

    for trainable, value in golden.trainables.items():
        if trainable in used:
            tensors["param/" + trainable] = value.float()
            assert torch.equal(value.float().double(), value), f"{trainable} is not exact in fp32"
    # One metadata key at most: safetensors writes several in an order that changes from run to run.
    safetensors.torch.save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")
    write_json(folder / "golden.json", {
        "format": "fedpdpo-golden", "version": 1, "made_with": versions(), "seed": seed,
        "model_type": config.model_type,
        "lora": {"rank": LORA_RANK, "alpha": LORA_ALPHA, "targets": targets},
        "bottleneck_width": BOTTLENECK_WIDTH, "head_rank": HEAD_RANK,
        "beta": BETA, "lambda": LAMBDA, "mu": MU,
        "pairs": golden.pairs, "cases": cases})


def versions():
    return {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, peft, tokenizers, safetensors)}


def make_all(out):
    """Writes every folder and file below `out`."""
    for name in model_table(list(CASES)):
        make_model(name, out / name)
    write_json(out / "golden_losses.json", golden_losses.golden_losses())
    write_json(out / "golden_adamw.json", golden_losses.golden_adamw())


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=here)
    parser.add_argument("--check", action="store_true", help="compare a fresh copy with the committed files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not options.check:
        make_all(options.out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        fresh = pathlib.Path(temporary)
        make_all(fresh)
        files = sorted(p.relative_to(fresh) for p in fresh.rglob("*") if p.is_file())
        different = [str(f) for f in files if not filecmp.cmp(fresh / f, options.out / f, shallow=False)]
        raise SystemExit(f"differ: {', '.join(different)}" if different else 0)


if __name__ == "__main__":
    main()
