"""Golden values of the preference losses and of AdamW; called by make_golden.py, which says how to run it.

Every loss is one line of its published definition on log-probabilities summed over the response tokens, with
the source beside it ("TRL" is huggingface/trl at commit f2cd57710ae345ea6428ae95363267fcf38a3dc8, July 2026; an older
release is named where the current one has no longer what is meant, and `dpo_loss` of 0.8.6 and 0.9.6 was run on this table).
Derivatives come from torch.autograd in float64. AdamW is torch.optim.AdamW in float64.
"""

import torch
from torch.nn.functional import logsigmoid

# Six ordinary pairs, then one whose margins (implicit -890, explicit +900) overflow a naive log(1 + exp(-m)).
# The second and the sixth are beyond the hinge's kink (beta * delta > 1); none lies on it.
TABLE = {
    "logp_chosen": [-12.25, -30.5, -7.125, -41.0, -3.75, -18.5, -9100.0],
    "logp_rejected": [-14.5, -55.25, -5.5, -38.75, -21.0, -44.0, -150.0],
    "ref_chosen": [-13.0, -33.0, -6.25, -40.5, -4.5, -20.75, -250.0],
    "ref_rejected": [-13.75, -40.0, -6.0, -39.5, -19.25, -30.0, -200.0],
    "length_chosen": [5, 12, 3, 17, 4, 9, 120],
    "length_rejected": [7, 20, 2, 15, 11, 16, 60],
    "reward_chosen": [0.5, -1.25, 0.0, 2.0, -0.375, 0.75, 400.0],
    "reward_rejected": [0.25, -0.5, 0.0, -1.5, 0.625, 0.5, -500.0],
}
OPTIONS = {
    "beta": 0.1, "lambda": 1.0, "mu": 0.5, "label_smoothing": 0.1,
    "simpo_beta": 2.0, "simpo_gamma_beta_ratio": 0.5,  # SimPO's own values for Llama-3-Base
    "orpo_lambda": 0.1,
    # Of kto_weighted; kto itself weighs both halves alike.
    "kto_chosen_weight": 1.25, "kto_rejected_weight": 0.75,
}
# The first pairs of the table that are the batch of a kto loss, whose KL they give: all seven have a chosen KL below 0
# (clamped) and a rejected one above, the first six the reverse.
KTO_BATCH = {"kto": 7, "kto_weighted": 6, "kto_reference_free": 7}
INPUTS = ("logp_chosen", "logp_rejected", "reward_chosen", "reward_rejected")


def kto_kl(name):
    """(chosen, rejected): max(0, batch mean of the log-ratios). Constants, as in the paper and in TRL's kto_trainer.py
    (kto_pair of TRL 0.8.6, from which the formula is, left them in the graph)."""
    def mean(side):
        reference = TABLE["ref_" + side] if name != "kto_reference_free" else [0.0] * len(TABLE["ref_" + side])
        ratios = [p - r for p, r in zip(TABLE["logp_" + side], reference)][:KTO_BATCH[name]]
        return max(0.0, sum(ratios) / len(ratios))
    return mean("chosen"), mean("rejected")


def kto(name, ratio_w, ratio_l, beta, w_chosen=1.0, w_rejected=1.0):
    """TRL 0.8.6 dpo_trainer.py loss_type 'kto_pair' (gone in 0.9.6): each half takes its KL from the other half; the
    trainer averages over both halves of all pairs, so a pair's own loss is the mean of its two. 1 - sigmoid(x) is
    written sigmoid(-x), which loses no digits."""
    kl_w, kl_l = kto_kl(name)
    chosen = torch.sigmoid(-beta * (ratio_w - kl_l))
    rejected = torch.sigmoid(-beta * (kl_w - ratio_l))
    return (w_chosen * chosen + w_rejected * rejected) / 2


def variants(t, o):
    """The losses with a reference, without it (TRL 0.9.6 dpo_trainer.py `reference_free`: the reference's log-ratio is 0;
    also for kto, whose kto_pair there ignored the option) and with log-ratios per response token (Lambert et al. 2024,
    Tulu 3, arXiv 2411.15124; TRL dpo_trainer.py loss_type 'sigmoid_norm')."""
    beta, smoothing = o["beta"], o["label_smoothing"]
    free = (t["logp_chosen"], t["logp_rejected"])
    ratio = (free[0] - t["ref_chosen"], free[1] - t["ref_rejected"])

    def per_token(pair):
        return pair[0] / t["length_chosen"], pair[1] / t["length_rejected"]

    losses = {}
    for suffix, (w, l) in {"_reference_free": free, "_length_normalized": per_token(ratio),
                           "_reference_free_length_normalized": per_token(free)}.items():
        m = beta * (w - l)
        losses |= {
            "dpo" + suffix: -logsigmoid(m),
            "cdpo" + suffix: -(1 - smoothing) * logsigmoid(m) - smoothing * logsigmoid(-m),
            "robust" + suffix:
                (-(1 - smoothing) * logsigmoid(m) + smoothing * logsigmoid(-m)) / (1 - 2 * smoothing),
            "hinge" + suffix: torch.relu(1 - m),
        }
    mean_w, mean_l = per_token(free)
    losses["ipo_reference_free"] = (mean_w - mean_l - 1 / (2 * beta)) ** 2
    losses["kto_reference_free"] = kto("kto_reference_free", *free, beta)
    return {name: (value, "the loss of that name with other log-ratios, see variants() in golden_losses.py")
            for name, value in losses.items()}


def loss_functions(t, o):
    """Name -> (per-pair losses, source) for the columns `t` (double tensors) of the table and the options `o`."""
    beta, smoothing = o["beta"], o["label_smoothing"]
    ratio_w = t["logp_chosen"] - t["ref_chosen"]
    ratio_l = t["logp_rejected"] - t["ref_rejected"]
    m_i = beta * (ratio_w - ratio_l)
    m_e = t["reward_chosen"] - t["reward_rejected"]
    mean_w = t["logp_chosen"] / t["length_chosen"]
    mean_l = t["logp_rejected"] / t["length_rejected"]

    simpo_gamma = o["simpo_gamma_beta_ratio"] * o["simpo_beta"]
    # log odds(y) = log p - log(1 - p) with p = exp(mean log-probability); log(-expm1(x)) = log(1 - e^x).
    log_odds = (mean_w - torch.log(-torch.expm1(mean_w))) - (mean_l - torch.log(-torch.expm1(mean_l)))
    return {
        "dpo": (-logsigmoid(m_i),
                "Rafailov et al. 2023 (arXiv 2305.18290) eq. 7; TRL dpo_trainer.py loss_type 'sigmoid'"),
        "cdpo": (-(1 - smoothing) * logsigmoid(m_i) - smoothing * logsigmoid(-m_i),
                 "Mitchell 2023 (ericmitchell.ai/cdpo.pdf) eq. 3; TRL 0.9.6 dpo_trainer.py 'sigmoid' with"
                 " label_smoothing"),
        "robust": ((-(1 - smoothing) * logsigmoid(m_i) + smoothing * logsigmoid(-m_i)) / (1 - 2 * smoothing),
                   "Chowdhury et al. 2024 (arXiv 2403.00409); TRL dpo_trainer.py loss_type 'robust'"),
        "ipo": ((ratio_w / t["length_chosen"] - ratio_l / t["length_rejected"] - 1 / (2 * beta)) ** 2,
                "Azar et al. 2023 (arXiv 2310.12036) eq. 17 on per-token means; TRL dpo_trainer.py loss_type 'ipo'"),
        "ipo_sum": ((ratio_w - ratio_l - 1 / (2 * beta)) ** 2,
                    "Azar et al. 2023 (arXiv 2310.12036) eq. 17 as printed, on sums (TRL before length normalisation)"),
        "hinge": (torch.relu(1 - m_i),
                  "Zhao et al. 2023, SLiC-HF (arXiv 2305.10425), and RSO (2309.06657); TRL dpo_trainer.py 'hinge'"),
        "simpo": (-logsigmoid(o["simpo_beta"] * (mean_w - mean_l) - simpo_gamma),
                  "Meng et al. 2024 (arXiv 2405.14734) eq. 6, gamma = gamma_beta_ratio * beta; TRL cpo_trainer.py 'simpo'"),
        "orpo": (-mean_w - o["orpo_lambda"] * logsigmoid(log_odds),
                 "Hong et al. 2024 (arXiv 2403.07691) eq. 6 and 7; TRL orpo_trainer.py, whose likelihood term also counts"
                 " the prompt's tokens and averages over the batch's tokens: here, as in the paper, over the response's"),
        "kto": (kto("kto", ratio_w, ratio_l, beta),
                "Ethayarajh et al. 2024 (arXiv 2402.01306) eq. 7; TRL 0.8.6 dpo_trainer.py 'kto_pair', mean of a"
                " pair's two halves, KL constant"),
        "kto_weighted": (kto("kto_weighted", ratio_w, ratio_l, beta, o["kto_chosen_weight"], o["kto_rejected_weight"]),
                         "kto with the weights of TRL kto_trainer.py's desirable_weight and undesirable_weight"),
        "sft": (-mean_w, "negative log-likelihood of the chosen response, mean over its tokens (TRL sft_trainer.py with"
                         " completion_only_loss and one sequence a batch)"),
        "sft_sum": (-t["logp_chosen"], "negative log-likelihood of the chosen response, summed over its tokens"),
        "reward": (-logsigmoid(m_e), "Bradley-Terry; Ouyang et al. 2022 (arXiv 2203.02155) eq. 1; TRL reward_trainer.py"),
        "pdpo": (-logsigmoid(m_i + o["lambda"] * m_e) - o["mu"] * logsigmoid(m_e), "fedpdpo design, section 2"),
    } | variants(t, o)


def golden_losses():
    """The table, the options, and for every loss its per-pair values and derivatives (each pair's own, unaveraged)."""
    columns = {name: torch.tensor(column, dtype=torch.float64) for name, column in TABLE.items()}
    for name in INPUTS:
        columns[name].requires_grad_()
    losses = {}
    for name, (values, source) in loss_functions(columns, OPTIONS).items():
        gradients = torch.autograd.grad(values.sum(), [columns[i] for i in INPUTS], allow_unused=True,
                                        retain_graph=True)
        losses[name] = {"source": source, "value": values.tolist()}
        if name in KTO_BATCH:
            losses[name] |= {"batch": KTO_BATCH[name], "kl": list(kto_kl(name))}
        for i, gradient in zip(INPUTS, gradients):
            gradient = torch.zeros(len(values), dtype=torch.float64) if gradient is None else gradient
            assert torch.isfinite(gradient).all(), f"{name}: derivative by {i} is not finite"
            losses[name]["d_" + i] = gradient.tolist()
    check_losses(losses)
    return {"format": "fedpdpo-golden-losses", "version": 1, "options": OPTIONS, "pairs": TABLE, "losses": losses}


def check_losses(losses):
    """Central differences of every loss by every input agree with autograd."""
    step = 1e-4
    for i in INPUTS:
        shifted = []
        for sign in (1, -1):
            columns = {name: torch.tensor(column, dtype=torch.float64) for name, column in TABLE.items()}
            columns[i] = columns[i] + sign * step
            shifted.append(loss_functions(columns, OPTIONS))
        for name in losses:
            numeric = (shifted[0][name][0] - shifted[1][name][0]) / (2 * step)
            exact = torch.tensor(losses[name]["d_" + i], dtype=torch.float64)
            torch.testing.assert_close(numeric, exact, rtol=1e-6, atol=1e-8, msg=lambda m: f"{name} by {i}: {m}")


def golden_adamw():
    """Five steps of AdamW on two parameter groups ("shared" and "private", their own learning rates).

    With clipping, one norm is taken over both groups and the gradients are scaled by
    min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does; the third step's gradient is small
    enough to pass unclipped.
    """
    cases = []
    settings = [("clipped", 0.01, 1.0), ("plain", 0.0, None)]
    for name, weight_decay, max_norm in settings:
        generator = torch.Generator().manual_seed(11)
        sizes, rates = {"shared": 5, "private": 3}, {"shared": 3e-3, "private": 1e-2}
        values = {g: torch.randn(n, dtype=torch.float64, generator=generator).requires_grad_() for g, n in sizes.items()}
        optimizer = torch.optim.AdamW([{"params": [values[g]], "lr": rates[g]} for g in sizes],
                                      betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, foreach=False)
        initial = {g: v.tolist() for g, v in values.items()}
        steps = []
        for step in range(5):
            scale = 0.05 if step == 2 else 2.0
            gradients = {g: scale * torch.randn(n, dtype=torch.float64, generator=generator) for g, n in sizes.items()}
            for g, v in values.items():
                v.grad = gradients[g].clone()
            norm = torch.cat(list(gradients.values())).norm()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(values.values(), max_norm, foreach=False)
            optimizer.step()
            steps.append({
                "gradient": {g: v.tolist() for g, v in gradients.items()},
                "norm": norm.item(),
                "clipped_gradient": {g: v.grad.tolist() for g, v in values.items()},
                "value": {g: v.tolist() for g, v in values.items()},
                "exp_avg": {g: optimizer.state[v]["exp_avg"].tolist() for g, v in values.items()},
                "exp_avg_sq": {g: optimizer.state[v]["exp_avg_sq"].tolist() for g, v in values.items()},
            })
        cases.append({"name": name, "lr": rates, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": weight_decay,
                      "max_norm": max_norm, "initial": initial, "steps": steps})
    return {"format": "fedpdpo-golden-adamw", "version": 1, "cases": cases}
