"""Confidence intervals of rates over prompts that were drawn several times each: the prompts are what is resampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A rate with its interval; clusters: prompts (or pairs) behind it; trials: pictures. None without any trial."""

    rate: float | None
    low: float | None
    high: float | None
    clusters: int
    trials: int

    def __str__(self) -> str:
        if self.rate is None or self.low is None or self.high is None:
            return "-"
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def interval(outcomes: Sequence[Sequence[bool]], *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The share of True among all trials, outcomes[cluster][trial], with the interval of a cluster bootstrap.

    Whole clusters are drawn with replacement (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8), so that four
    pictures of one prompt do not count as four independent trials. Empty clusters are left out. Where every outcome is
    the same the bootstrap knows no width: the open end is then that of Clopper and Pearson for the number of clusters.
    """
    clusters = [list(cluster) for cluster in outcomes if cluster]
    if not clusters:
        return Interval(None, None, None, 0, 0)
    if not 0 < level < 1:
        raise ValueError(f"A confidence level is between 0 and 1, not {level}: 0.95 is usual.")
    n = len(clusters)
    right = torch.tensor([sum(cluster) for cluster in clusters], dtype=torch.float64)
    sizes = torch.tensor([len(cluster) for cluster in clusters], dtype=torch.float64)
    rate, trials = float(right.sum() / sizes.sum()), int(sizes.sum())
    tail = (1 - level) / 2
    if rate in (0.0, 1.0):
        open_end = tail ** (1 / n)
        low, high = (open_end, 1.0) if rate else (0.0, 1 - open_end)
        return Interval(rate, low, high, n, trials)
    chosen = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    rates = right[chosen].sum(1) / sizes[chosen].sum(1)
    low, high = torch.quantile(rates, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(rate, low, high, n, trials)
