"""Pearson's and Spearman's correlations, and Pearson's distance, of values that may be constant."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

FloatArray = NDArray[np.float64]

DOUBLE, SINGLE = 1e-12, 1e-6
"""Deviations that are rounding errors of float64 and of float32, relative to the largest value."""


class Undefined(ValueError):
    """A correlation or distance that does not exist.

    `constant` is the number of the side that is constant, 0 or 1; None for another reason, which the message gives.
    """

    def __init__(self, message: str, constant: int | None = None) -> None:
        super().__init__(message)
        self.constant = constant


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two lists `[N]`. Raises Undefined if one is constant, ValueError for other shapes."""
    a, b = _unit(x, 0, "side"), _unit(y, 1, "side")
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"expected two lists of equal length, got shapes {a.shape} and {b.shape}")
    return float((a * b).sum())


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of two lists `[N]`; ties share their mean rank. Raises as `pearson`."""
    return pearson(rankdata(_finite(x)), rankdata(_finite(y)))


def pearson_distance(
    x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None, *, rounding: tuple[float, float] = (0.0, 0.0)
) -> float:
    """√((1 − ρ) / 2) with Pearson's ρ, of values of the same shape, with weights that sum to 1 (default: equal).

    It is half the distance of the standardised values, which loses no digits where ρ is near 1.

    Raises Undefined if one side deviates from its mean by no more than its entry in `rounding`.
    """
    a, b = (_unit(side, n, "reward", weights, rounding[n]) for n, side in enumerate((x, y)))
    if a.shape != b.shape:
        raise ValueError(f"expected values of the same shape, got {a.shape} and {b.shape}")
    return float(np.linalg.norm(a - b) / 2)


def _unit(
    values: ArrayLike, number: int, kind: str, weights: ArrayLike | None = None, rounding: float = 0.0
) -> FloatArray:
    """Deviations from the mean, times √weight, of norm 1; `number` and `kind` name the values in messages."""
    x = _finite(values)
    shares = np.full(x.shape, 1 / x.size) if weights is None else np.asarray(weights, np.float64)
    centred = np.sqrt(shares) * (x - (shares * x).sum())
    norm = float(np.linalg.norm(centred))
    if norm <= max(rounding, DOUBLE * float(np.abs(x[shares > 0]).max())):
        raise Undefined(f"the {('first', 'second')[number]} {kind} is constant over the transitions", number)
    scaled: FloatArray = centred / norm
    return scaled


def _finite(values: ArrayLike) -> FloatArray:
    x = np.asarray(values, np.float64)
    if not x.size or not np.isfinite(x).all():
        raise ValueError(f"expected finite rewards, at least one; got {x.size}, finite: {bool(np.isfinite(x).all())}")
    return x
