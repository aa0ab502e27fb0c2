"""Model-free prediction: the value of the policy that generated some episodes (Sutton & Barto 2018).

    G_t      = r_t + γ r_{t+1} + … + γ^{T−t−1} r_{T−1} + γ^{T−t} V(s_T)         (1)  return
    G_{t:n}  = r_t + … + γ^{n−1} r_{t+n−1} + γⁿ V(s_{t+n})                      (2)  n-step return, §7.1
    δ_t      = r_t + γ V(s_{t+1}) − V(s_t)                                      (3)  TD error, §6.1
    e_t(s)   = γλ e_{t−1}(s) + 1(s = s_t)                                       (4)  accumulating trace, §12.2
    V(s_t)  ← V(s_t) + α (G_t − V(s_t))                                         (5)  Monte Carlo, §5.1
    V(s_t)  ← V(s_t) + α δ_t                                                    (6)  TD(0)
    V(s)    ← V(s) + α δ_t e_t(s), all s                                        (7)  TD(λ)

V(s_T) is 0 if the episode terminated. A truncated episode is bootstrapped from V(s_T), for Monte Carlo too. With
`online`, each step updates the values that the next step reads. Else the updates of an episode are summed and applied
at its end; TD(0) then equals TD(λ = 0), and every-visit Monte Carlo equals TD(λ = 1) with
accumulating traces, exactly.
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
        """V(s_0), …, V(s_T), with V(s_T) = 0 if the episode terminated. [S] → [T + 1]"""
        along = values[self.states]
        along[-1] *= self.goes_on
        return along

    def steps(self) -> Iterator[tuple[int, float, int, float]]:
        """(s_t, r_t, s_{t+1}, 0 if the step terminates the episode, else 1) for each t."""
        goes_on = np.ones_like(self.rewards)
        goes_on[-1] = self.goes_on
        return zip(self.states[:-1], self.rewards, self.states[1:], goes_on, strict=True)


def monte_carlo(
    episodes: Episodes,
    *,
    discount: float,
    step_size: float | None = None,
    first_visit: bool = True,
    values: ArrayLike | None = None,
) -> Floats:
    """Monte Carlo prediction, eq. 1 and 5, with updates at the end of each episode.

    Args:
        episodes: Episodes of one policy, with Discrete observations.
        discount: γ.
        step_size: α. None: 1 / the number of visits so far, so that each value is the mean of its returns.
        first_visit: Count only the first visit of a state in an episode. Else the updates of all visits are summed, and
            α must be small: values do not converge if a state has 2 / α or more visits in an episode.
        values: Initial values [S], by default 0. States that are never visited keep them.

    Returns V [S]. Raises DataError if the observations are not Discrete, and ValueError if a setting is out of range.
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
    """TD(0), eq. 3 and 6: `td_lambda` without traces. Returns V, [S]; raises ValueError as `td_lambda` does."""
    estimate = _begin(episodes, discount, step_size, values)
    for path in _paths(episodes):
        read = estimate if online else estimate.copy()
        for state, reward, following, goes_on in path.steps():
            estimate[state] += step_size * (reward + discount * goes_on * read[following] - read[state])  # eq. 6
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
    """n-step TD, eq. 2. n = 1 is TD(0); n at least the length of the episodes is Monte Carlo, if not `online`.

    Windows at the end of an episode are shorter than n; the power of γ is their actual length. The other arguments, the
    result and the errors are those of `td_zero`. Also raises ValueError if n < 1.
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
        episodes, discount, values: See `monte_carlo`.
        decay: λ in [0, 1].
        step_size: α.
        trace: A visit adds 1 to its state's trace (accumulating), or sets it to 1 (replacing; Singh & Sutton 1996).
        online: Update the values at each step; else at the end of the episode.

    Returns V [S]. Raises the errors of `monte_carlo`, and ValueError for λ outside [0, 1] or an unknown trace.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: expected λ in [0, 1], got {decay}")
    if trace not in ("accumulating", "replacing"):
        raise ValueError(f"trace: expected accumulating or replacing, got {trace!r}")
    estimate = _begin(episodes, discount, step_size, values)
    for path in _paths(episodes):
        read, eligibility = (estimate if online else estimate.copy()), np.zeros(len(estimate))
        for state, reward, following, goes_on in path.steps():
            error = reward + discount * goes_on * read[following] - read[state]  # eq. 3
            eligibility *= discount * decay
            eligibility[state] = 1.0 if trace == "replacing" else eligibility[state] + 1.0  # eq. 4
            estimate += step_size * error * eligibility  # eq. 7
    return estimate


def _begin(episodes: Episodes, discount: float, step_size: float | None, values: ArrayLike | None) -> Floats:
    """The initial values [S]. Raises the errors of `monte_carlo`."""
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
    """The episodes, with states counted from 0."""
    assert isinstance(episodes.observation_space, spaces.Discrete)
    states = episodes.observations - int(episodes.observation_space.start)
    for number in range(len(episodes)):
        begin, end = episodes.offsets[number : number + 2]
        yield _Path(
            states=states[begin + number : end + number + 1],
            rewards=episodes.rewards[begin:end],
            goes_on=0.0 if episodes.terminated[end - 1] else 1.0,
        )
