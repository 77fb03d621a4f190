"""From the network's P(binary) to another prevalence of binaries."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.paths import InputError


def prior_shift(p: ArrayLike, prevalence: float, trained_at: float = 0.5) -> NDArray:
    """P(binary) at another prevalence: Bayes' formula, a shift of the log-odds.

    Both are fractions of binaries, `p` is of any shape; certain p (0, 1) stay. Saerens, Latinne &
    Decaestecker (2002), Neural Computation 14, 21, eq. 2.4.
    """
    for name, value in (("prevalence", prevalence), ("trained_at", trained_at)):
        if not 0 < value < 1:
            raise InputError(f"`{name}` is {value}, but a fraction between 0 and 1 was expected")
    p = np.asarray(p, dtype=float)
    if prevalence == trained_at:
        return p
    binary, single = p * prevalence * (1 - trained_at), (1 - p) * (1 - prevalence) * trained_at
    return binary / (binary + single)
