"""EPIC distance between reward functions, exact for tables and from samples for any function.

    C(s, a, s′) = R(s, a, s′) + γ M(s′) − M(s) − γ m                          (1)  canonical shaping
    M(s) = E[R(s, A, S′)],   m = E[M(S)],   A ~ D_A,   S and S′ ~ D_S         (2)
    d(R, R′) = √((1 − ρ(C, C′)) / 2)                                          (3)  EPIC distance

Gleave, Dennis, Legg, Russell & Leike 2021, arXiv:2006.13900, definitions 4.1, 4.2 and 4.6. ρ is Pearson's correlation
over transitions from a coverage distribution. The distance is a pseudometric in [0, 1]: 0 for rewards that differ by
positive scaling, a constant and potential shaping, 1 for the negated reward.

The paper has no episodes that end. Here a terminal state has potential 0, and nothing follows it. With

    U(s) = M(s) + γ m / (1 − γ),   U = 0 in terminal states                   (4)

eq. 1 reads C = R + γ U(s′) − U(s): R shaped by the return of a process that starts in s and then draws its states from
D_S for ever. So a transition into a terminal state has

    C(s, a, s′) = R(s, a, s′) − M(s) − γ m / (1 − γ)                          (5)

which keeps the distance 0 under shaping with h = 0 at the end. A constant c gives −γ c / (1 − γ) there and 0 elsewhere:
where episodes can end, c > 0 rewards survival and c < 0 rewards an early end, and the distance tells the two apart.
Without terminal transitions every constant is 0, and its distance from any reward is undefined.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from herdbook.core.trees import indexed
from herdbook.core.types import RewardFunction, Transitions, Tree, tree_leaves, tree_map
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.relabel import BATCH_SIZE, rewards_of, transitions_of
from herdbook.datasets.rewards import check_reward_discount
from herdbook.evaluation.correlations import DOUBLE, SINGLE, FloatArray, Undefined, pearson_distance


@dataclass(frozen=True, kw_only=True, eq=False)
class TabularCoverage:
    """Coverage distributions of a finite MDP with S states and A actions.

    Raises ValueError for shapes that disagree, for weights that are negative or do not sum to 1, for weight on
    transitions out of terminal states or on terminal states; Undefined for terminal states with γ = 1.
    """

    transitions: FloatArray
    """D, `[S, A, S]`."""
    states: FloatArray
    """D_S, `[S]`."""
    actions: FloatArray
    """D_A, `[A]`."""
    discount: float
    """γ in [0, 1]."""
    terminal: NDArray[np.bool_] | None = None
    """Mask of the terminal states, `[S]`. None: no state is terminal."""

    def __post_init__(self) -> None:
        for name in ("transitions", "states", "actions"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        states, actions = len(self.states), len(self.actions)
        ends = np.zeros(states, np.bool_) if self.terminal is None else np.asarray(self.terminal, np.bool_)
        object.__setattr__(self, "terminal", ends)
        for name, shape in (("transitions", (states, actions, states)), ("states", (states,)), ("actions", (actions,))):
            weights = getattr(self, name)
            if weights.shape != shape or not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-8:
                came = f"shape {weights.shape}, minimum {weights.min()}, sum {weights.sum()}"
                raise ValueError(f"{name}: expected a distribution {list(shape)}, got {came}")
        if ends.shape != (states,):
            raise ValueError(f"terminal: expected [{states}], got shape {ends.shape}")
        if self.states[ends].any() or self.transitions[ends].any():
            raise ValueError("expected no weight on terminal states, nor on transitions out of them, got some")
        _check_discount(self.discount, bool(ends.any()))

    @classmethod
    def uniform(
        cls, states: int, actions: int, *, discount: float, terminal: NDArray[np.bool_] | None = None
    ) -> TabularCoverage:
        """Equal weight on every non-terminal state, action and transition between them or into a terminal state."""
        goes_on = np.ones(states) if terminal is None else 1.0 - terminal
        transitions = np.broadcast_to(goes_on[:, None, None], (states, actions, states))
        return cls(
            transitions=transitions / transitions.sum(),
            states=goes_on / goes_on.sum(),
            actions=np.full(actions, 1 / actions),
            discount=discount,
            terminal=terminal,
        )


def canonically_shaped(rewards: ArrayLike, coverage: TabularCoverage) -> FloatArray:
    """C of eq. 1 and 5 for a table of rewards R(s, a, s′), [S, A, S] → [S, A, S]; rows of terminal states are 0."""
    table, c = np.asarray(rewards, np.float64), coverage
    if table.shape != c.transitions.shape:
        raise ValueError(f"expected rewards {list(c.transitions.shape)}, got shape {table.shape}")
    ends = np.asarray(c.terminal)
    table = np.where(ends[:, None, None], 0.0, table)
    means = (table @ c.states) @ c.actions  # M, eq. 2, [S]
    potential = c.discount * np.where(ends, 0.0, means)
    shaped = table + potential - means[:, None, None] - _constant(float(c.states @ means), c.discount, ends)
    canonical: FloatArray = np.where(ends[:, None, None], 0.0, shaped)
    return canonical


def epic_distance(rewards: ArrayLike, others: ArrayLike, coverage: TabularCoverage) -> float:
    """EPIC distance, eq. 3, of two tables R(s, a, s′), `[S, A, S]`, over coverage distributions.

    Raises Undefined for a reward that is zero up to shaping, ValueError for tables of another shape.
    """
    sides = [np.asarray(table, np.float64) for table in (rewards, others)]
    first, second = (canonically_shaped(table, coverage) for table in sides)
    error, other = (DOUBLE * float(np.abs(table).max()) * _horizon(coverage.discount) for table in sides)
    return pearson_distance(first, second, coverage.transitions, rounding=(error, other))


def _constant(mean: float, discount: float, terminal: NDArray[np.bool_]) -> FloatArray:
    """The last term of eq. 1, or of eq. 5 where `terminal`; of the same shape."""
    goes_on = discount * mean
    constants: FloatArray = np.where(terminal, goes_on / (1 - discount) if discount < 1 else 0.0, goes_on)
    return constants


def _horizon(discount: float) -> float:
    """1 / (1 − γ), by which rounding errors can grow; 1 for γ = 1, where nothing ends."""
    return 1 / (1 - discount) if discount < 1 else 1.0


def _check_discount(discount: float, ends: bool) -> None:
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: expected γ in [0, 1], got {discount}")
    if ends and discount == 1:
        raise Undefined("discount: expected γ < 1 where episodes can end, got 1, for which eq. 5 has no value")


# --- from samples -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledCoverage:
    """Samples of the coverage distributions. Raises ValueError for γ outside [0, 1], Undefined for γ = 1 with an end.

    Shaping with a potential changes no distance beyond rounding, however few the samples are: the same states stand for
    S and S′ of eq. 2.
    """

    transitions: Transitions
    """D: n transitions, `[n, …]`, whose `discounts` are γ · (1 − terminated)."""
    states: Tree
    """D_S: m states in which an episode goes on, leaves `[m, …]`."""
    actions: Tensor
    """D_A: m actions, `[m, …]`; the mean over A and S′ is that over the m pairs."""
    discount: float
    """γ."""

    def __post_init__(self) -> None:
        _check_discount(self.discount, bool(self.ends.any()))

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Mask of the transitions into a terminal state, `[n]`."""
        mask: NDArray[np.bool_] = (self.transitions.discounts == 0).cpu().numpy() & (self.discount > 0)
        return mask

    @classmethod
    def from_episodes(
        cls,
        episodes: Episodes,
        *,
        discount: float,
        transitions: int = 4096,
        samples: int = 256,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> SampledCoverage:
        """Coverage by recorded steps: up to n different transitions, and m states and m actions drawn independently.

        Steps outside the mask of the episodes are left out. D_S are the states before the steps, so that none is
        terminal.
        """
        generator = np.random.default_rng(seed)
        steps = np.arange(episodes.num_steps) if episodes.mask is None else np.flatnonzero(episodes.mask)
        chosen = steps if len(steps) <= transitions else np.sort(generator.choice(steps, transitions, replace=False))
        of_states, of_actions = generator.choice(steps, samples), generator.choice(steps, samples)
        (drawn,) = transitions_of(episodes, chosen, discount=discount, batch_size=len(chosen), device=device)
        rows = indexed(episodes.observations, episodes.step_rows[of_states])
        return cls(
            transitions=drawn,
            states=tree_map(lambda leaf: torch.as_tensor(leaf, device=device), rows),
            actions=torch.as_tensor(episodes.actions[of_actions], device=device),
            discount=discount,
        )

    def canonically_shaped(self, reward: RewardFunction, *, batch_size: int = BATCH_SIZE) -> tuple[FloatArray, float]:
        """C of eq. 1 and 5 for a reward function, [n] float64, and the size of its rounding errors.

        The reward function gets at most about `batch_size` transitions at once, (2 n + m) m in all.
        """
        check_reward_discount(reward, self.discount)
        rewards = rewards_of(reward, iter([self.transitions]))
        before = self._means(reward, self.transitions.observations, batch_size)  # M(s), [n]
        after = self._means(reward, self.transitions.next_observations, batch_size)  # M(s′), [n]
        means = self._means(reward, self.states, batch_size)  # M(S), [m]
        potential = self.discount * np.where(self.ends, 0.0, after)
        shaped = rewards + potential - before - _constant(float(means.mean()), self.discount, self.ends)
        largest = float(max(np.abs(values).max() for values in (rewards, before, means)))
        return shaped, SINGLE * largest * (_horizon(self.discount) if self.ends.any() else 1.0)

    def _means(self, reward: RewardFunction, states: Tree, batch_size: int) -> FloatArray:
        """M of eq. 2 at states, leaves [N, …] → [N]."""
        count, samples = len(tree_leaves(states)[0]), len(self.actions)
        chunk = max(1, batch_size // samples)
        parts = (slice(first, first + chunk) for first in range(0, count, chunk))
        batches = (self._counterfactual(tree_map(operator.itemgetter(part), states)) for part in parts)
        means: FloatArray = rewards_of(reward, batches).reshape(count, samples).mean(-1)
        return means

    def _counterfactual(self, states: Tree) -> Transitions:
        """Transitions from each of k states, leaves [k, …], to each of the m samples: leaves [k · m, …]."""
        count, samples = len(tree_leaves(states)[0]), len(self.actions)
        zeros = torch.zeros(count * samples, device=self.actions.device)
        return Transitions(
            observations=tree_map(lambda leaf: leaf.repeat_interleave(samples, 0), states),
            actions=_tiled(self.actions, count),
            rewards=zeros,
            discounts=zeros + self.discount,
            next_observations=tree_map(lambda leaf: _tiled(leaf, count), self.states),
        )


def sampled_epic_distance(
    reward: RewardFunction, other: RewardFunction, coverage: SampledCoverage, *, batch_size: int = BATCH_SIZE
) -> float:
    """EPIC distance, eq. 3, of two reward functions, estimated from samples.

    The functions are asked for transitions that never happened, from a recorded state to any other one, and there
    `rewards` are 0: a function that only returns recorded rewards has no EPIC distance. Raises Undefined for a reward
    that is zero up to shaping.
    """
    first, error = coverage.canonically_shaped(reward, batch_size=batch_size)
    second, other_error = coverage.canonically_shaped(other, batch_size=batch_size)
    return pearson_distance(first, second, rounding=(error, other_error))


def _tiled(leaf: Tensor, count: int) -> Tensor:
    """[m, …] → [count · m, …]."""
    return leaf.repeat(count, *[1] * (leaf.dim() - 1))
