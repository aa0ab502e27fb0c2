"""Normalised scores: returns on a scale where 0 and 100 are named references."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.datasets.d4rl import d4rl_references


def normalised_score(returns: ArrayLike, references: ReferenceScores) -> NDArray[np.float64]:
    """100 · (return − minimum) / (maximum − minimum) (Fu et al. 2020, arXiv:2004.07219), of any shape.

    `minari.get_normalized_score` gives a hundredth of it.
    """
    span = references.maximum - references.minimum
    return 100 * (np.asarray(returns, dtype=np.float64) - references.minimum) / span


def find_references(
    recorded: ReferenceScores | None, environment: EnvironmentSpec | str | None = None
) -> ReferenceScores | None:
    """The references recorded in a dataset; without any, D4RL's for its environment's family; None for neither."""
    if recorded is not None or environment is None:
        return recorded
    return d4rl_references(environment if isinstance(environment, str) else environment.id)


def score_line(
    returns: NDArray[np.float64], lengths: NDArray[np.int64], references: ReferenceScores | None
) -> dict[str, Any]:
    """The numbers of one evaluation, as evaluations.jsonl holds them.

    returns, lengths: of each episode. `normalized_score` is the mean over the episodes, None without references.
    """
    score = None if references is None else float(np.mean(normalised_score(returns, references)))
    return {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "normalized_score": score,
        "returns": returns.tolist(),
        "lengths": lengths.tolist(),
    }
