"""How much an error counts at each noise level, defined once: as a weight W(SNR) on the error of x0.

With SNR = 1 / sigma^2 and x0_hat = c_skip x + c_out output, an error of x0 is c_out times one of the output. So the
factor on the loss of the output is W c_out^2, whatever the network predicts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from configs.finetuning import ObjectiveConfig
from ldm.diffusion.prediction import Prediction

Weight = Callable[[Tensor, float], Tensor]  # SNR, gamma -> W

DEFAULT_GAMMA = {"min_snr": 5.0, "p2": 1.0}


def min_snr(snr: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) (Hang et al. 2023, 2303.09556)."""
    return snr.clamp(max=gamma)


def p2(snr: Tensor, gamma: float) -> Tensor:
    """SNR / (1 + SNR)^gamma (Choi et al. 2022, 2204.00227, with k = 1)."""
    return snr / (1 + snr) ** gamma


def debiased(snr: Tensor, gamma: float) -> Tensor:
    """sqrt(SNR) (Yu et al. 2023, 2310.08442)."""
    return snr.sqrt()


def edm(snr: Tensor, gamma: float) -> Tensor:
    """(sigma^2 + 1) / sigma^2 = 1 + SNR (Karras et al. 2022, 2206.00364), latents having a deviation of 1."""
    return 1 + snr


WEIGHTS: dict[str, Weight] = {"min_snr": min_snr, "p2": p2, "debiased": debiased, "edm": edm}


def loss_factor(config: ObjectiveConfig, prediction: Prediction, sigma: Tensor) -> Tensor:
    """The factor on the squared error of the network's output at noise levels sigma (b,), (b,) in sigma's dtype."""
    if config.weighting == "none":
        return torch.ones_like(sigma)
    level = sigma.double()
    gamma = config.gamma or DEFAULT_GAMMA.get(config.weighting, 0.0)
    _, c_out, _ = prediction(level)
    return (WEIGHTS[config.weighting](1 / level**2, gamma) * torch.as_tensor(c_out, dtype=torch.float64) ** 2).to(sigma)
