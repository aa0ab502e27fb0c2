"""Transition probabilities as one matrix, for methods that plan many times in the same MDP."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix

from herdbook.tabular.mdp import MDP, Floats

_SPARSE = 0.2  # largest share of non-zero probabilities for which sparse products are faster


class Dynamics:
    """p(s′ | s, a) of an MDP as a matrix `[S · A, S]` in float64, sparse if most probabilities are 0.

    Rewards and discount of the MDP are not read.
    """

    def __init__(self, mdp: MDP) -> None:
        self.num_states, self.num_actions, self.ends = mdp.num_states, mdp.num_actions, mdp.ends
        table = mdp.transitions.reshape(-1, mdp.num_states)
        self.sparse = csr_matrix(table) if np.count_nonzero(table) <= _SPARSE * table.size else None
        self.dense = torch.tensor(mdp.transitions)  # [S, A, S]
        self._flat = self.dense.view(table.shape)

    def expected(self, values: Floats) -> Floats:
        """Σ_s′ p(s′ | s, a) V(s′). values: V [S] → [S, A]."""
        ahead = self._flat @ torch.from_numpy(values) if self.sparse is None else self.sparse @ values
        return np.asarray(ahead).reshape(self.num_states, self.num_actions)

    def arrivals(self, visits: Floats) -> Floats:
        """Σ_{s, a} d(s, a) p(s′ | s, a). visits: d [S, A] → [S]."""
        flat = visits.reshape(-1)
        arriving = self._flat.T @ torch.from_numpy(flat) if self.sparse is None else self.sparse.T @ flat
        return np.asarray(arriving)

    def chain(self, weights: Floats) -> torch.Tensor:
        """Σ_a w(s, a) p(s′ | s, a). weights: w [S, A] → [S, S]; a policy gives its transition probabilities."""
        return (torch.from_numpy(weights)[:, None] @ self.dense)[:, 0]
