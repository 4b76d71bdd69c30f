"""What a network was trained to predict, as three coefficients of the noise level.

    x0_hat = c_skip * x + c_out * network(c_in * x),    x = x0 + sigma * noise

One row per parameterisation replaces every branch on the prediction type, in sampling and in the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from configs.architecture import DiffusionConfig

Level: TypeAlias = float | Tensor
Coefficients: TypeAlias = tuple[Level, Level, Level]  # c_skip, c_out, c_in
Prediction: TypeAlias = Callable[[Level], Coefficients]


def epsilon(sigma: Level) -> Coefficients:
    """The network predicts the noise (DDPM, 2006.11239)."""
    return 1.0, -sigma, (sigma**2 + 1) ** -0.5


def v_prediction(sigma: Level) -> Coefficients:
    """The network predicts v = a noise - s x0 (Salimans and Ho 2022, 2202.00512)."""
    return 1 / (sigma**2 + 1), -sigma * (sigma**2 + 1) ** -0.5, (sigma**2 + 1) ** -0.5


def sample(sigma: Level) -> Coefficients:
    """The network predicts x0 itself."""
    return 0.0, 1.0, (sigma**2 + 1) ** -0.5


def flow(sigma: Level) -> Coefficients:
    """The network predicts noise - x0 at (1 - t) x0 + t noise, t = sigma / (1 + sigma) (2210.02747)."""
    return 1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma)


def edm(sigma_data: float = 0.5) -> Prediction:
    """Preconditioning for data of standard deviation `sigma_data` (Karras et al. 2022, 2206.00364, table 1).

    With sigma_data = 1 the network is the negative of a v-predicting one.
    """

    def coefficients(sigma: Level) -> Coefficients:
        total = sigma**2 + sigma_data**2
        return sigma_data**2 / total, sigma * sigma_data * total**-0.5, total**-0.5

    return coefficients


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": epsilon,
    "v_prediction": v_prediction,
    "sample": sample,
    "flow": flow,
    "edm": edm(),
}


def prediction_of(config: DiffusionConfig) -> Prediction:
    """The row named by `config.prediction`."""
    if config.prediction == "edm":
        return edm(config.sigma_data)
    if config.prediction not in PREDICTIONS:
        raise ValueError(f"unknown prediction {config.prediction!r}: use one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[config.prediction]
