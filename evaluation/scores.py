"""Normalised scores: returns on a scale from 0 to 100 between two reference returns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.datasets.d4rl import d4rl_references, environment_references


def normalised_score(returns: ArrayLike, references: ReferenceScores) -> NDArray[np.float64]:
    """100 · (return − minimum) / (maximum − minimum), of any shape (Fu et al. 2020, arXiv:2004.07219).

    `minari.get_normalized_score` omits the factor 100.
    """
    span = references.maximum - references.minimum
    return 100 * (np.asarray(returns, dtype=np.float64) - references.minimum) / span


def find_references(
    recorded: ReferenceScores | None, environment: EnvironmentSpec | str | None = None
) -> ReferenceScores | None:
    """The references recorded in a dataset, else D4RL's for its environment's family and time limit, else None."""
    if recorded is not None or environment is None:
        return recorded
    return d4rl_references(environment) if isinstance(environment, str) else environment_references(environment)


def score_line(
    returns: NDArray[np.float64], lengths: NDArray[np.int64], references: ReferenceScores | None
) -> dict[str, Any]:
    """One evaluation's entries in evaluations.jsonl, from the returns and lengths of its episodes.

    `normalized_score` is the mean over episodes; None without references.
    """
    score = None if references is None else float(np.mean(normalised_score(returns, references)))
    return {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "normalized_score": score,
        "returns": returns.tolist(),
        "lengths": lengths.tolist(),
    }
