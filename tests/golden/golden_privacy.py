"""Golden values of the Renyi accountant, written to golden_privacy.json beside this file.

    pip install dp-accounting==0.6.0 mpmath==1.4.1 && python golden_privacy.py

`epsilon` and `order` come from Google's dp-accounting: Poisson-sampled Gaussian, neighbours by adding or removing one,
conversion of arXiv 2004.00010, proposition 12. For fractional orders its series is only an upper bound: it adds the sizes of
terms that alternate, and gives up an order (infinite) after 1000 terms. So `exact` is the same accountant with the
divergences of the fractional orders from the definition of A_alpha (arXiv 1908.10530) by the trapezoidal rule, and
`divergences` are that definition by mpmath's quadrature with 30 digits.
"""

import importlib.metadata
import json
import math
from pathlib import Path

import mpmath
import numpy as np
from absl import logging
from dp_accounting import dp_event
from dp_accounting.rdp import rdp_privacy_accountant as rdp

ORDERS = [1 + tenth / 10 for tenth in range(1, 100)] + list(range(11, 65)) + [128, 256, 512]
# (q, sigma, steps, delta)
POINTS = [
    (0.00417, 0.5, 3600, 1e-5), (0.00417, 0.8, 3600, 1e-5), (0.00417, 1.0, 3600, 1e-5), (0.00417, 1.3, 3600, 1e-5),
    (0.00417, 2.0, 3600, 1e-3), (0.00417, 4.0, 1, 1e-3), (0.00417, 4.0, 3600, 1e-5),
    (0.01, 0.5, 15, 1e-5), (0.01, 0.8, 100, 1e-5), (0.01, 1.0, 1, 1e-5), (0.01, 1.3, 3600, 1e-3), (0.01, 4.0, 100, 1e-3),
    (0.1, 0.5, 1, 1e-5), (0.1, 0.5, 100, 1e-3), (0.1, 0.8, 15, 1e-5), (0.1, 1.0, 100, 1e-5), (0.1, 1.3, 3600, 1e-5),
    (0.1, 2.0, 15, 1e-3), (0.1, 4.0, 3600, 1e-5),
    (0.3, 0.5, 15, 1e-3), (0.3, 1.0, 15, 1e-5), (0.3, 1.3, 100, 1e-5), (0.3, 2.0, 1, 1e-5), (0.3, 4.0, 100, 1e-3),
    (0.5, 0.8, 1, 1e-5), (0.5, 1.0, 15, 1e-5), (0.5, 2.0, 100, 1e-5), (0.5, 4.0, 3600, 1e-5), (0.5, 4.0, 15, 1e-3),
    (1.0, 0.5, 15, 1e-5), (1.0, 1.0, 100, 1e-5), (1.0, 2.0, 1, 1e-3), (1.0, 4.0, 15, 1e-5),
]
# (q, sigma, alpha)
DIVERGENCES = [
    (0.00417, 1.3, 1.1), (0.00417, 0.5, 2.5), (0.00417, 4.0, 10.9), (0.01, 0.8, 1.5), (0.01, 1.0, 7.3), (0.1, 0.5, 1.2),
    (0.1, 1.3, 4.7), (0.3, 2.0, 1.1), (0.3, 0.5, 1.3), (0.5, 0.5, 1.1), (0.5, 1.0, 2.2), (0.5, 4.0, 9.9), (0.9, 1.0, 1.7),
    (0.9, 0.5, 3.4), (0.1, 1.0, 2), (0.5, 2.0, 16), (0.01, 4.0, 64),
]


def accountant_epsilon(q, sigma, steps, delta):
    """Epsilon and the best order; an order that the package finds infinite takes no part."""
    accountant = rdp.RdpAccountant(ORDERS)
    event = dp_event.GaussianDpEvent(sigma)
    accountant.compose(event if q == 1 else dp_event.PoissonSampledDpEvent(q, event), steps)
    return tuple(map(float, accountant.get_epsilon_and_optimal_order(delta)))


def exact_divergence(q, sigma, alpha):
    """The divergence of a fractional order, the integral in double precision: its integrand is analytic, the rule exact."""
    if q == 1:
        return alpha / (2 * sigma**2)
    x = np.arange(-15 * sigma, alpha + 15 * sigma, sigma / 100)
    log_ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * x - 1) / (2 * sigma**2))
    log_terms = alpha * log_ratio - x**2 / (2 * sigma**2)
    largest = log_terms.max()
    log_sum = largest + np.log(np.exp(log_terms - largest).sum() / 100)
    return (log_sum - 0.5 * math.log(2 * math.pi)) / (alpha - 1)


def exact_epsilon(q, sigma, steps, delta):
    """The package's conversion of whole orders by the package and fractional ones by the integral."""
    whole = [order for order in ORDERS if order == int(order)]
    by_package = rdp._compute_rdp_poisson_subsampled_gaussian(q, sigma, whole)
    divergences = dict(zip(whole, by_package))
    divergences.update({order: exact_divergence(q, sigma, order) for order in ORDERS if order != int(order)})
    return float(rdp.compute_epsilon(ORDERS, [steps * divergences[order] for order in ORDERS], delta)[0])


def divergence(q, sigma, alpha):
    """log A_alpha / (alpha - 1), from the integral."""
    mpmath.mp.dps = 30
    q, sigma, alpha = mpmath.mpf(q), mpmath.mpf(sigma), mpmath.mpf(alpha)

    def integrand(x):
        ratio = (1 - q) + q * mpmath.exp((2 * x - 1) / (2 * sigma**2))
        return mpmath.npdf(x, 0, sigma) * ratio**alpha

    ends = [step * sigma for step in range(-20, 21, 2)] + [alpha + step * sigma for step in range(-20, 21, 2)]
    return float(mpmath.log(mpmath.quad(integrand, sorted(set(ends)))) / (alpha - 1))


def main():
    logging.set_verbosity(logging.ERROR)  # the orders that are given up
    tutorial = (250 / 60000, 1.3, 15 * 60000 // 250, 1e-5)
    steps = tutorial[2]
    rdp_of_step = rdp._compute_rdp_poisson_subsampled_gaussian(tutorial[0], tutorial[1], ORDERS)
    golden = {
        "format": "fedpdpo-golden-privacy",
        "version": 1,
        "made_with": {name: importlib.metadata.version(name) for name in ("dp-accounting", "mpmath", "numpy")},
        "epsilons": [],
        "divergences": [],
        # 60000 examples, batches of 250, 15 epochs: the TF Privacy tutorial's setting; `classic` by arXiv 1702.07476,
        # proposition 3, which the tutorial's 1.18 used.
        "tutorial": {
            "sampling_rate": tutorial[0], "noise_multiplier": tutorial[1], "steps": steps, "delta": tutorial[3],
            "epsilon": accountant_epsilon(*tutorial)[0],
            "classic": float(min(steps * r - math.log(tutorial[3]) / (a - 1) for a, r in zip(ORDERS, rdp_of_step))),
        },
    }
    for point in POINTS:
        epsilon, order = accountant_epsilon(*point)
        golden["epsilons"].append(dict(zip(("sampling_rate", "noise_multiplier", "steps", "delta"), point),
                                       epsilon=epsilon, order=order, exact=exact_epsilon(*point)))
    for point in DIVERGENCES:
        golden["divergences"].append(dict(zip(("sampling_rate", "noise_multiplier", "order"), point),
                                          divergence=divergence(*point)))
    text = json.dumps(golden, indent=1)
    Path(__file__).with_name("golden_privacy.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
