"""How do the returns of many tasks become one number?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalezero.envs.catalog import find


@dataclass(frozen=True)
class Summary:
    """Normalised scores: of each task, and their mean and median."""

    scores: Mapping[str, float]
    mean: float
    median: float


def summarise(returns: Mapping[str, float]) -> Summary:
    """`returns` by task name, each on the scale from random play (0) to the ceiling (1).

    On Atari these are human-normalised scores. Tasks without a known scale are left out of the
    mean and the median, which are nan when there are none.
    """
    scores = {name: find(name).normalised(value) for name, value in returns.items()}
    known = [score for score in scores.values() if np.isfinite(score)]
    if not known:
        return Summary(scores, float("nan"), float("nan"))
    return Summary(scores, float(np.mean(known)), float(np.median(known)))
