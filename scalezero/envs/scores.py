"""How do the normalised scores of many tasks become one number?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Mean and median of normalised scores."""

    mean: float
    median: float


def summarise(scores: Mapping[str, float]) -> Summary:
    """The mean and median of normalised scores by task name; on Atari, human-normalised.

    Tasks without a known scale (nan) are left out; both are nan when there are no others.
    """
    known = [score for score in scores.values() if np.isfinite(score)]
    if not known:
        return Summary(float("nan"), float("nan"))
    return Summary(float(np.mean(known)), float(np.median(known)))
