"""Exact methods for a finite MDP with a known model.

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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, softmax

from herdbook.tabular.mdp import MDP, Floats, check_policy

_TIE = 1e-12  # two actions are equally good up to this difference, relative to the size of the terms of Q


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The result of planning. With a finite horizon T, arrays have a leading time axis: T rows, `values` T + 1."""

    values: Floats
    """V, `[S]`."""
    q: Floats
    """Q, eq. 1, `[S, A]`."""
    policy: Floats
    """π(a | s), `[S, A]`."""
    iterations: int
    """Number of sweeps over all states, number of policy improvements, or the horizon."""


def q_values(mdp: MDP, values: Floats) -> Floats:
    """Eq. 1. values: V [S] → Q [S, A]."""
    q: Floats = mdp.expected_rewards + mdp.discount * mdp.transitions @ np.where(mdp.ends, 0.0, values)
    return q


def greedy(q: Floats) -> Floats:
    """The greedy policy of eq. 4, with the first of several best actions. q: [*B, A] → [*B, A]."""
    policy: Floats = np.eye(q.shape[-1])[q.argmax(-1)]
    return policy


def uniform(mdp: MDP) -> Floats:
    """The policy under which all actions are equally probable. `[S, A]`"""
    return np.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions)


def evaluate_policy(mdp: MDP, policy: ArrayLike) -> Floats:
    """The value of a policy by one linear solve, eq. 2. policy: [S, A] → V^π [S].

    Raises ValueError for an array that is no policy for this MDP. With γ = 1, also raises ValueError if episodes never
    end from some state, because the policy then has no value.
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

    With γ < 1, `tolerance` bounds the error of every value; with γ = 1, it bounds the last change. Raises ValueError
    for an array that is no policy for this MDP, and if `max_iterations` backups do not suffice.
    """
    pi = check_policy(mdp, policy)
    return _fixed_point(mdp, lambda q: (pi * q).sum(-1), tolerance, max_iterations)[0]


def _fixed_point(
    mdp: MDP, backup: Callable[[Floats], Floats], tolerance: float, max_iterations: int
) -> tuple[Floats, int]:
    """Repeat V ← backup(Q) from V = 0, with V = 0 in terminal states. Returns V [S] and the number of backups."""
    # With γ < 1, all later changes add up to at most `tolerance`: they form a geometric series.
    change = tolerance * (1 - mdp.discount) / mdp.discount if 0 < mdp.discount < 1 else tolerance
    values = np.zeros(mdp.num_states)
    for iteration in range(1, max_iterations + 1):
        before, values = values, np.where(mdp.ends, 0.0, backup(q_values(mdp, values)))
        if np.abs(values - before).max() <= change:
            return values, iteration
    raise _not_converged(mdp, max_iterations)


def policy_iteration(mdp: MDP, policy: ArrayLike | None = None, *, max_iterations: int = 10_000) -> Solution:
    """Evaluate by eq. 2 and improve by eq. 4 until no action is better than the policy's, up to rounding.

    Args:
        mdp: The MDP.
        policy: The initial policy `[S, A]`, by default uniform. With γ = 1, its episodes must end from every state.
        max_iterations: Largest number of improvements.

    Returns the optimal values and a deterministic optimal policy. Raises ValueError if the iteration does not converge,
    and with γ = 1 if episodes never end under one of the policies.
    """
    pi = uniform(mdp) if policy is None else check_policy(mdp, policy)
    for iteration in range(max_iterations):
        values = evaluate_policy(mdp, pi)
        q = q_values(mdp, values)
        best = _best(mdp, values, q)
        # A row of optimal actions stays as it is. Rounding could otherwise make the policy alternate for ever.
        stays = ~((pi > 0) & ~best).any(-1, keepdims=True)
        if stays.all():
            return Solution(values, q, _choice(mdp, (pi > 0) & best), iteration)
        pi = np.where(stays, pi, _choice(mdp, np.where(stays, pi > 0, best)))
    raise _not_converged(mdp, max_iterations)


def _best(mdp: MDP, values: Floats, q: Floats, slack: float = 0.0) -> NDArray[np.bool_]:
    """Mask of the best actions in each state, up to rounding and `slack`. `[S, A]` bool"""
    size = np.abs(mdp.expected_rewards) + mdp.discount * mdp.transitions @ np.abs(values)  # size of the terms of q
    best: NDArray[np.bool_] = q >= q.max(-1, keepdims=True) - slack - _TIE * size.max(-1, keepdims=True)
    return best


def _choice(mdp: MDP, among: NDArray[np.bool_]) -> Floats:
    """A deterministic policy: the first action in `among` [S, A]; with γ = 1, the first that leads to an end."""
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

    With γ < 1, `tolerance` bounds the error of every value; with γ = 1, it bounds the last change. The policy is
    greedy; with γ = 1, it takes among equally good actions one that leads to an end. Raises ValueError if
    `max_iterations` backups do not suffice.
    """
    values, iterations = _fixed_point(mdp, lambda q: q.max(-1), tolerance, max_iterations)
    q = q_values(mdp, values)
    policy = greedy(q) if mdp.discount < 1 else _choice(mdp, _best(mdp, values, q, 2 * tolerance))
    return Solution(values, q, policy, iterations)


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
        temperature: τ > 0. The limit τ → 0 is `value_iteration`.
        horizon: None for the fixed point. T for T backups from V_T = 0; row t of the result then belongs to time t
            (values `[T + 1, S]`, q and policy `[T, S, A]`).
        tolerance: Error of the fixed point, as in `value_iteration`.
        max_iterations: Largest number of backups for the fixed point.

    Raises ValueError if τ or T is not positive, or if the iteration does not converge.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected a value > 0, got {temperature}")

    def soft_maximum(q: Floats) -> Floats:
        value: Floats = temperature * logsumexp(q / temperature, axis=-1)
        return value

    if horizon is None:
        values, iterations = _fixed_point(mdp, soft_maximum, tolerance, max_iterations)
        q = q_values(mdp, values)
    elif horizon < 1:
        raise ValueError(f"horizon: expected at least 1 step, got {horizon}")
    else:
        values, iterations = np.zeros((horizon + 1, mdp.num_states)), horizon
        q = np.zeros((horizon, mdp.num_states, mdp.num_actions))
        for t in reversed(range(horizon)):
            q[t] = q_values(mdp, values[t + 1])
            values[t] = np.where(mdp.ends, 0.0, soft_maximum(q[t]))
    return Solution(values, q, softmax((q - q.max(-1, keepdims=True)) / temperature, axis=-1), iterations)


def occupancy(mdp: MDP, policy: ArrayLike) -> Floats:
    """The occupancy measure d_π(s, a) = Σ_t γᵗ P(s_t = s, a_t = a), eq. 7. policy: [S, A] → [S, A].

    It is 0 in terminal states, sums to 1 / (1 − γ) if there are none, and satisfies Σ d(s, a) r(s, a) = Σ μ(s) V^π(s).
    Over a finite horizon, the policy is one per step, [T, S, A], and the sum is over t = 0 … T − 1.

    Raises ValueError as `evaluate_policy` does, but with γ = 1 episodes need only end from the states that are reached.
    """
    if np.ndim(policy) == 3:
        policies, states = np.asarray(policy, np.float64), visitation(mdp, policy)[:-1]
        weights = mdp.discount ** np.arange(len(policies))
        summed: Floats = np.einsum("t,ts,tsa->sa", weights, np.where(mdp.ends, 0.0, states), policies)
        return summed
    pi = check_policy(mdp, policy)
    chain = _chain(mdp, pi)
    inside, steps = _within(mdp, chain, _closure(mdp.initial > 0, chain.T))
    visits = np.zeros(mdp.num_states)
    visits[inside] = np.linalg.solve(np.eye(len(inside)) - mdp.discount * steps.T, mdp.initial[inside])
    counts: Floats = visits[:, None] * pi
    return counts


def visitation(mdp: MDP, policy: ArrayLike) -> Floats:
    """State distributions P(s_t = s) for t = 0 … T, undiscounted. policy: one per step, [T, S, A] → [T + 1, S].

    Terminal states are absorbing, so that each row sums to 1. Raises ValueError for an array that is no sequence of
    policies for this MDP.
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
    """The non-terminal states in the mask `among` [S] as indices [n], and the chain restricted to them [n, n].

    With γ = 1, raises ValueError if episodes never end from one of them.
    """
    if mdp.discount == 1 and (endless := among & ~_closure(mdp.ends, chain)).any():
        raise ValueError(
            f"from state {int(np.flatnonzero(endless)[0])} the policy never ends, so with discount 1 it has no value; "
            "use a discount < 1, or a horizon"
        )
    inside = np.flatnonzero(among & ~mdp.ends)
    return inside, chain[np.ix_(inside, inside)]


def _closure(states: NDArray[np.bool_], links: Floats) -> NDArray[np.bool_]:
    """Mask [S] of the states from which `states` [S] are reached along `links` [S, S] > 0, and of `states`."""
    while (more := states | (links[:, states] > 0).any(-1)).sum() > states.sum():
        states = more
    return states


def _not_converged(mdp: MDP, iterations: int) -> ValueError:
    if mdp.discount < 1:
        return ValueError(f"not converged after {iterations:,} iterations")
    endless = np.flatnonzero(~_closure(mdp.ends, mdp.transitions.max(1)))
    hint = f"from state {endless[0]} no episode can end" if len(endless) else "a policy that need not end has none"
    return ValueError(f"not converged after {iterations:,} iterations; with discount 1 there may be no limit: {hint}")
