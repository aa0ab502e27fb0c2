"""The value of the policy that made some episodes, learned from them without a model (Sutton & Barto 2018).

    G_t      = r_t + γ r_{t+1} + … + γ^{T−t−1} r_{T−1} + γ^{T−t} V(s_T)         (1)  return
    G_{t:n}  = r_t + … + γ^{n−1} r_{t+n−1} + γⁿ V(s_{t+n})                      (2)  n-step return, §7.1
    δ_t      = r_t + γ V(s_{t+1}) − V(s_t)                                      (3)  TD error, §6.1
    e_t(s)   = γλ e_{t−1}(s) + 1(s = s_t)                                       (4)  accumulating trace, §12.2
    V(s_t)  ← V(s_t) + α (G_t − V(s_t))                                         (5)  Monte Carlo, §5.1
    V(s_t)  ← V(s_t) + α δ_t                                                    (6)  TD(0)
    V(s)    ← V(s) + α δ_t e_t(s), all s                                        (7)  TD(λ)

V(s_T) is 0 if the episode terminated. One that was cut off goes on from V(s_T), for Monte Carlo too. With `online` each
step changes the values that the next one reads; else an episode's changes are added up and made at its end, where
TD(0) is TD(λ = 0) and Monte Carlo of all visits is TD(λ = 1), exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from herdbook.datasets.episodes import DataError, Episodes
from herdbook.tabular.mdp import Floats

Trace = Literal["accumulating", "replacing"]


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """One episode: states `[T + 1]` and rewards `[T]`; `goes_on` is 0 if it terminated, else 1."""

    states: NDArray[np.int64]
    rewards: Floats
    goes_on: float

    def values(self, values: Floats) -> Floats:
        """V(s_0 … s_T), the last one 0 where the episode terminated. [S] → [T + 1]."""
        along = values[self.states]
        along[-1] *= self.goes_on
        return along


def monte_carlo(
    episodes: Episodes,
    *,
    discount: float,
    step_size: float | None = None,
    first_visit: bool = True,
    values: ArrayLike | None = None,
) -> Floats:
    """Monte Carlo prediction, eq. 1 and 5; changes are made at the end of each episode.

    Args:
        episodes: Of one policy, with Discrete observations.
        discount: γ.
        step_size: α; None: 1 / the number of visits so far, which makes each value the mean of its returns.
        first_visit: Only the first visit of a state in an episode counts; else the changes of all are added up, and α
            must be small: with 2 / α visits in one episode values no longer settle.
        values: To begin with, [S]; by default 0, where states that are never visited stay.

    Returns:
        V [S].

    Raises:
        DataError: The observations are not Discrete.
        ValueError: A setting is out of range.
    """
    estimate = _begin(episodes, discount, step_size, values)
    visits = np.zeros(len(estimate))
    for path in _paths(episodes):
        along = path.values(estimate)
        returns, following = np.zeros_like(path.rewards), along[-1]
        for t in reversed(range(len(returns))):
            returns[t] = following = path.rewards[t] + discount * following  # eq. 1
        states, errors = path.states[:-1], returns - along[:-1]
        if first_visit:
            states, first = np.unique(states, return_index=True)
            errors = errors[first]
        changes = np.bincount(states, errors, minlength=len(estimate))
        visits += np.bincount(states, minlength=len(estimate))
        estimate += changes * (1 / np.maximum(visits, 1) if step_size is None else step_size)  # eq. 5
    return estimate


def td_zero(
    episodes: Episodes, *, discount: float, step_size: float, online: bool = True, values: ArrayLike | None = None
) -> Floats:
    """TD(0), eq. 3 and 6. Arguments, result and errors are those of `monte_carlo`."""
    estimate = _begin(episodes, discount, step_size, values)
    for path in _paths(episodes):
        read = estimate if online else estimate.copy()
        for t, (state, following) in enumerate(zip(path.states, path.states[1:], strict=False)):
            last = t == len(path.rewards) - 1
            next_value = read[following] * (path.goes_on if last else 1.0)
            estimate[state] += step_size * (path.rewards[t] + discount * next_value - read[state])  # eq. 6
    return estimate


def n_step_td(
    episodes: Episodes,
    *,
    n: int,
    discount: float,
    step_size: float,
    online: bool = True,
    values: ArrayLike | None = None,
) -> Floats:
    """n-step TD, eq. 2. With n = 1 it is TD(0); with n as long as the episodes, and not `online`, it is Monte Carlo.

    At an episode's end the windows are shorter, with the power of γ of their real length. Further arguments, result and
    errors are those of `monte_carlo`, and ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 step, got {n}")
    estimate = _begin(episodes, discount, step_size, values)
    for path in _paths(episodes):
        read, length = (estimate if online else estimate.copy()), len(path.rewards)
        for t in range(length):
            end = min(t + n, length)
            target = read[path.states[end]] * (path.goes_on if end == length else 1.0)
            for reward in path.rewards[t:end][::-1]:
                target = reward + discount * target  # eq. 2
            estimate[path.states[t]] += step_size * (target - read[path.states[t]])
    return estimate


def td_lambda(
    episodes: Episodes,
    *,
    decay: float,
    discount: float,
    step_size: float,
    trace: Trace = "accumulating",
    online: bool = True,
    values: ArrayLike | None = None,
) -> Floats:
    """TD(λ) with eligibility traces, eq. 3, 4 and 7.

    Args:
        episodes: As for `monte_carlo`.
        decay: λ in [0, 1].
        discount: γ.
        step_size: α.
        trace: Of a state that is visited again: one more (accumulating), or one (replacing; Singh & Sutton 1996).
        online: Changes are made at each step; else at the episode's end.
        values: As for `monte_carlo`.

    Returns:
        V [S].

    Raises:
        DataError, ValueError: As `monte_carlo`, and for λ outside [0, 1] or another trace.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: expected λ in [0, 1], got {decay}")
    if trace not in ("accumulating", "replacing"):
        raise ValueError(f"trace: expected accumulating or replacing, got {trace!r}")
    estimate = _begin(episodes, discount, step_size, values)
    for path in _paths(episodes):
        read, eligibility = (estimate if online else estimate.copy()), np.zeros(len(estimate))
        for t, (state, following) in enumerate(zip(path.states, path.states[1:], strict=False)):
            last = t == len(path.rewards) - 1
            next_value = read[following] * (path.goes_on if last else 1.0)
            error = path.rewards[t] + discount * next_value - read[state]  # eq. 3
            eligibility *= discount * decay
            eligibility[state] = 1.0 if trace == "replacing" else eligibility[state] + 1.0  # eq. 4
            estimate += step_size * error * eligibility  # eq. 7
    return estimate


def _begin(episodes: Episodes, discount: float, step_size: float | None, values: ArrayLike | None) -> Floats:
    """The values to begin with, [S], once everything has been found good."""
    space = episodes.observation_space
    if not isinstance(space, spaces.Discrete):
        raise DataError(f"{episodes.source}: expected Discrete observations for a table of values, got {space}")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: expected γ in [0, 1], got {discount}")
    if step_size is not None and not 0 < step_size <= 1:
        raise ValueError(f"step_size: expected α in (0, 1], got {step_size}")
    size = int(space.n)
    estimate = np.zeros(size) if values is None else np.array(values, np.float64)
    if estimate.shape != (size,):
        raise ValueError(f"values: expected [{size}], got shape {estimate.shape}")
    return estimate


def _paths(episodes: Episodes) -> Iterator[_Path]:
    """The episodes, states numbered from 0."""
    assert isinstance(episodes.observation_space, spaces.Discrete)
    states = episodes.observations - int(episodes.observation_space.start)
    for number in range(len(episodes)):
        begin, end = episodes.offsets[number : number + 2]
        yield _Path(
            states=states[begin + number : end + number + 1],
            rewards=episodes.rewards[begin:end],
            goes_on=0.0 if episodes.terminated[end - 1] else 1.0,
        )
