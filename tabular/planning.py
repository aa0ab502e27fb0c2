"""Exact methods on a finite MDP whose model is known.

    Q(s, a)  = r(s, a) + γ Σ_s′ p(s′ | s, a) V(s′)                            (1)
    V^π      = (I − γ P_π)⁻¹ r_π                                              (2)  policy evaluation
    V_{k+1}  = Σ_a π(a | ·) Q_k(·, a)                                         (3)  iterative policy evaluation
    π′(s)    = argmax_a Q^π(s, a)                                             (4)  policy iteration
    V_{k+1}  = max_a Q_k(·, a)                                                (5)  value iteration
    V        = τ log Σ_a exp(Q(·, a) / τ),   π(a | s) = exp((Q − V) / τ)      (6)  soft value iteration
    d_π      = (I − γ P_πᵀ)⁻¹ μ,   d_π(s, a) = d_π(s) π(a | s)                (7)  occupancy measure

(1) to (5): Sutton & Barto 2018, ch. 4; (6): Ziebart 2010, ch. 9, and Haarnoja et al. 2017, arXiv:1702.08165; (7):
Puterman 1994, §6.9. The value of a terminal state is 0. A policy is π(a | s), `[S, A]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, softmax

from herdbook.tabular.mdp import MDP, Floats, check_policy

_TIE = 1e-12  # actions whose values differ by less, relative to what they are sums of, are as good as each other


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What planning gives; over a finite horizon T every array has a leading time axis, `values` with T + 1 rows."""

    values: Floats
    """V, `[S]`."""
    q: Floats
    """Q, eq. 1, `[S, A]`."""
    policy: Floats
    """π(a | s), `[S, A]`."""
    iterations: int
    """Sweeps over all states, improvements of the policy, or the horizon."""


def q_values(mdp: MDP, values: Floats) -> Floats:
    """Eq. 1. values: [S] → [S, A]."""
    q: Floats = mdp.expected_rewards + mdp.discount * mdp.transitions @ np.where(mdp.ends, 0.0, values)
    return q


def greedy(q: Floats) -> Floats:
    """The deterministic policy of eq. 4; of several best actions the first. q: [*B, A] → [*B, A]."""
    policy: Floats = np.eye(q.shape[-1])[q.argmax(-1)]
    return policy


def uniform(mdp: MDP) -> Floats:
    """All actions with the same probability. `[S, A]`"""
    return np.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions)


def evaluate_policy(mdp: MDP, policy: ArrayLike) -> Floats:
    """The value of a policy by one linear solve, eq. 2. policy: [S, A] → V^π [S].

    Raises ValueError for an array that is no policy of this MDP, and with γ = 1 for a policy that need not end, which
    has no value.
    """
    pi = check_policy(mdp, policy)
    inside, steps = _within(mdp, _chain(mdp, pi), np.ones(mdp.num_states, np.bool_))
    values = np.zeros(mdp.num_states)
    rewards = (pi * mdp.expected_rewards).sum(-1)
    values[inside] = np.linalg.solve(np.eye(len(inside)) - mdp.discount * steps, rewards[inside])
    return values


def evaluate_policy_iteratively(
    mdp: MDP, policy: ArrayLike, *, tolerance: float = 1e-10, max_iterations: int = 100_000
) -> Floats:
    """The value of a policy by repeated backups, eq. 3. policy: [S, A] → V^π [S].

    With γ < 1 no value is off by more than `tolerance`; with γ = 1 the last backup changed none by more. Raises
    ValueError for an array that is no policy of this MDP, and if `max_iterations` are not enough.
    """
    pi = check_policy(mdp, policy)
    values = np.zeros(mdp.num_states)
    for _ in range(max_iterations):
        before, values = values, np.where(mdp.ends, 0.0, (pi * q_values(mdp, values)).sum(-1))
        if np.abs(values - before).max() <= _last_change(mdp, tolerance):
            return values
    raise _not_converged(mdp, max_iterations)


def policy_iteration(mdp: MDP, policy: ArrayLike | None = None, *, max_iterations: int = 10_000) -> Solution:
    """Evaluate by eq. 2, improve by eq. 4, until no action is better than the policy's, but for rounding.

    Args:
        mdp: The MDP.
        policy: To begin with, `[S, A]`; by default the uniform one. With γ = 1 it must end from every state.
        max_iterations: Improvements at most.

    Returns:
        The optimal values, and a deterministic policy that has them.

    Raises:
        ValueError: With γ = 1, if a policy on the way need not end; or no convergence.
    """
    pi = uniform(mdp) if policy is None else check_policy(mdp, policy)
    for iteration in range(max_iterations):
        values = evaluate_policy(mdp, pi)
        q = q_values(mdp, values)
        best = _best(mdp, values, q)
        # Rows whose actions are all as good as the best stay: rounding would change them back and forth for ever.
        stays = ~((pi > 0) & ~best).any(-1, keepdims=True)
        if stays.all():
            return Solution(values, q, _choice(mdp, (pi > 0) & best), iteration)
        pi = np.where(stays, pi, _choice(mdp, np.where(stays, pi > 0, best)))
    raise _not_converged(mdp, max_iterations)


def _best(mdp: MDP, values: Floats, q: Floats, slack: float = 0.0) -> NDArray[np.bool_]:
    """The actions that are as good as the best of their state, but for rounding and `slack`. `[S, A]`"""
    size = np.abs(mdp.expected_rewards) + mdp.discount * mdp.transitions @ np.abs(values)  # of what q is the sum of
    best: NDArray[np.bool_] = q >= q.max(-1, keepdims=True) - slack - _TIE * size.max(-1, keepdims=True)
    return best


def _choice(mdp: MDP, among: NDArray[np.bool_]) -> Floats:
    """A deterministic policy: the first action of `among` [S, A], with γ = 1 the first that leads on to an end."""
    policy = greedy(among.astype(np.float64))
    if mdp.discount < 1:
        return policy
    ends = mdp.ends.copy()
    while True:
        leads = among & (mdp.transitions[..., ends] > 0).any(-1) & ~ends[:, None]
        if not leads.any():
            return policy
        found = leads.any(-1)
        policy[found] = greedy(leads[found].astype(np.float64))
        ends |= found


def value_iteration(mdp: MDP, *, tolerance: float = 1e-10, max_iterations: int = 100_000) -> Solution:
    """Repeated optimal backups, eq. 5.

    With γ < 1 no value is off by more than `tolerance`; with γ = 1 the last backup changed none by more. The policy is
    greedy; with γ = 1, of actions that are as good within the tolerance, by those that lead to an end. Raises
    ValueError if `max_iterations` are not enough.
    """
    values = np.zeros(mdp.num_states)
    for iteration in range(1, max_iterations + 1):
        q = q_values(mdp, values)
        before, values = values, np.where(mdp.ends, 0.0, q.max(-1))
        if np.abs(values - before).max() <= _last_change(mdp, tolerance):
            q = q_values(mdp, values)
            policy = greedy(q) if mdp.discount < 1 else _choice(mdp, _best(mdp, values, q, 2 * tolerance))
            return Solution(values, q, policy, iteration)
    raise _not_converged(mdp, max_iterations)


def soft_value_iteration(
    mdp: MDP,
    *,
    temperature: float = 1.0,
    horizon: int | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 100_000,
) -> Solution:
    """The values and the policy that maximise reward plus τ times entropy, eq. 6.

    Args:
        mdp: The MDP.
        temperature: τ > 0; towards 0 it becomes `value_iteration`.
        horizon: None: the fixed point, to `tolerance` as in `value_iteration`. T: backups from V_T = 0; row t of the
            result belongs to time t (values `[T + 1, S]`, q and policy `[T, S, A]`).
        tolerance: Of the fixed point.
        max_iterations: Sweeps at most.

    Raises:
        ValueError: τ or T is not positive; or no convergence.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected a value > 0, got {temperature}")
    if horizon is not None:
        return _soft_backups(mdp, temperature, horizon)
    values = np.zeros(mdp.num_states)
    for iteration in range(1, max_iterations + 1):
        before, values = values, _soft_values(mdp, q_values(mdp, values), temperature)
        if np.abs(values - before).max() <= _last_change(mdp, tolerance):
            q = q_values(mdp, values)
            return Solution(values, q, _soft_policy(q, temperature), iteration)
    raise _not_converged(mdp, max_iterations)


def _soft_backups(mdp: MDP, temperature: float, horizon: int) -> Solution:
    if horizon < 1:
        raise ValueError(f"horizon: expected at least 1 step, got {horizon}")
    values = np.zeros((horizon + 1, mdp.num_states))
    q = np.zeros((horizon, mdp.num_states, mdp.num_actions))
    for t in reversed(range(horizon)):
        q[t] = q_values(mdp, values[t + 1])
        values[t] = _soft_values(mdp, q[t], temperature)
    return Solution(values, q, _soft_policy(q, temperature), horizon)


def _soft_values(mdp: MDP, q: Floats, temperature: float) -> Floats:
    return np.where(mdp.ends, 0.0, temperature * logsumexp(q / temperature, axis=-1))


def _soft_policy(q: Floats, temperature: float) -> Floats:
    policy: Floats = softmax((q - q.max(-1, keepdims=True)) / temperature, axis=-1)
    return policy


def occupancy(mdp: MDP, policy: ArrayLike) -> Floats:
    """How often each action is taken in each state: Σ_t γᵗ P(s_t = s, a_t = a), eq. 7. policy: [S, A] → [S, A].

    Terminal states, where nothing is decided, have 0. Without any the sum is 1 / (1 − γ), and always
    Σ d(s, a) r(s, a) = Σ μ(s) V^π(s). Raises ValueError as `evaluate_policy` does; only what is reached must end.
    """
    pi = check_policy(mdp, policy)
    chain = _chain(mdp, pi)
    inside, steps = _within(mdp, chain, _closure(mdp.initial > 0, chain.T))
    visits = np.zeros(mdp.num_states)
    visits[inside] = np.linalg.solve(np.eye(len(inside)) - mdp.discount * steps.T, mdp.initial[inside])
    counts: Floats = visits[:, None] * pi
    return counts


def visitation(mdp: MDP, policy: ArrayLike) -> Floats:
    """P(s_t = s) for t = 0 … T, undiscounted. policy: of every step, [T, S, A] → [T + 1, S].

    Who has reached a terminal state stays there, so each row sums to 1. Raises ValueError for an array that is no
    sequence of policies of this MDP.
    """
    policies = np.asarray(policy, np.float64)
    if policies.ndim != 3:
        raise ValueError(f"policy: expected [T, {mdp.num_states}, {mdp.num_actions}], got shape {policies.shape}")
    rows = [mdp.initial]
    for pi in policies:
        rows.append(rows[-1] @ _chain(mdp, check_policy(mdp, pi)))
    return np.stack(rows)


def _chain(mdp: MDP, policy: Floats) -> Floats:
    """P_π(s′ | s), [S, S]."""
    chain: Floats = np.einsum("sa,sat->st", policy, mdp.transitions)
    return chain


def _within(mdp: MDP, chain: Floats, among: NDArray[np.bool_]) -> tuple[NDArray[np.intp], Floats]:
    """The states n of `among` [S] where an episode goes on, and the chain between them, [n, n].

    Raises ValueError, with γ = 1, if it never ends from one of them.
    """
    if mdp.discount == 1 and (endless := among & ~_closure(mdp.ends, chain)).any():
        raise ValueError(
            f"from state {int(np.flatnonzero(endless)[0])} the policy never ends, so with discount 1 it has no value; "
            "use a discount < 1, or a horizon"
        )
    inside = np.flatnonzero(among & ~mdp.ends)
    return inside, chain[np.ix_(inside, inside)]


def _closure(states: NDArray[np.bool_], links: Floats) -> NDArray[np.bool_]:
    """The states [S] from which these are reached by `links` [S, S] > 0."""
    while (more := states | (links[:, states] > 0).any(-1)).sum() > states.sum():
        states = more
    return states


def _last_change(mdp: MDP, tolerance: float) -> float:
    """The change of a backup that is followed by no more than `tolerance` in total (a geometric series)."""
    return tolerance * (1 - mdp.discount) / mdp.discount if 0 < mdp.discount < 1 else tolerance


def _not_converged(mdp: MDP, iterations: int) -> ValueError:
    if mdp.discount < 1:
        return ValueError(f"not converged after {iterations:,} iterations")
    endless = np.flatnonzero(~_closure(mdp.ends, mdp.transitions.max(1)))
    hint = f"from state {endless[0]} no episode can end" if len(endless) else "a policy that need not end has none"
    return ValueError(f"not converged after {iterations:,} iterations; with discount 1 there may be no limit: {hint}")
