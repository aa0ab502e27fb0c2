"""Finite Markov decision processes: transition probabilities, rewards, initial distribution, discount.

    p(s′ | s, a),   r(s, a, s′),   μ(s),   γ                          (Puterman 1994, §2.1)
    r(s, a) = Σ_s′ p(s′ | s, a) r(s, a, s′)                           (1)

An episode ends when it enters a terminal state, whose value is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from herdbook.core.environments import EnvironmentSource, make_environment

Floats = NDArray[np.float64]

_TOLERANCE = 1e-8  # largest error in the sum of a distribution


@dataclass(frozen=True, kw_only=True, eq=False)
class MDP:
    """A finite MDP with S states and A actions, immutable and validated when built.

    Terminal states become self-loops without reward; their rows in `transitions` and `rewards` are ignored.

    Raises ValueError for shapes that disagree, probabilities that are negative or do not sum to 1, rewards that are not
    finite, a discount outside [0, 1], and a terminal state with positive initial probability. The error names the row.
    """

    transitions: Floats
    """p(s′ | s, a), `[S, A, S]`."""
    rewards: Floats
    """r(s, a, s′), `[S, A, S]`. r(s, a) `[S, A]` and r(s) `[S]` are broadcast."""
    initial: Floats
    """μ, `[S]`."""
    discount: float
    """γ in [0, 1]. With γ = 1, methods without a horizon need policies under which every episode ends."""
    terminal: NDArray[np.bool_] | None = None
    """Mask of the terminal states, `[S]`. None: no state is terminal."""
    expected_rewards: Floats = field(init=False, repr=False)
    """r(s, a), eq. 1, `[S, A]`."""

    def __post_init__(self) -> None:
        transitions = np.array(self.transitions, np.float64)
        if transitions.ndim != 3 or transitions.shape[0] != transitions.shape[2] or 0 in transitions.shape:
            raise ValueError(f"transitions: expected [S, A, S], got shape {transitions.shape}")
        states, actions, _ = transitions.shape
        terminal = np.zeros(states, np.bool_) if self.terminal is None else np.array(self.terminal, np.bool_)
        if terminal.shape != (states,):
            raise ValueError(f"terminal: expected [{states}], got shape {terminal.shape}")
        rewards = _spread("rewards", self.rewards, (states, actions, states)).copy()
        ends = np.flatnonzero(terminal)
        transitions[ends], rewards[ends] = 0, 0
        transitions[ends, :, ends] = 1
        check_distributions("transitions", transitions, ("state", "action"))
        if not np.isfinite(rewards).all():
            s, a, t = np.argwhere(~np.isfinite(rewards))[0]
            raise ValueError(f"rewards: expected finite values, got {rewards[s, a, t]} in state {s}, action {a}")
        initial = np.array(self.initial, np.float64)
        if initial.shape != (states,):
            raise ValueError(f"initial: expected [{states}], got shape {initial.shape}")
        check_distributions("initial", initial, ())
        if initial[ends].any():
            state = int(ends[initial[ends] > 0][0])
            raise ValueError(f"initial: no episode can begin in the terminal state {state}; give it probability 0")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount: expected a value in [0, 1], got {self.discount}")
        checked = {"transitions": transitions, "rewards": rewards, "initial": initial, "terminal": terminal}
        checked["expected_rewards"] = np.einsum("sat,sat->sa", transitions, rewards)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self._freeze()

    def _freeze(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def __setstate__(self, state: dict[str, Any]) -> None:  # arrays are writable after copy and pickle
        vars(self).update(state)
        self._freeze()

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Mask of the terminal states, `[S]`."""
        assert self.terminal is not None  # set in __post_init__
        return self.terminal

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.transitions)

    @property
    def num_actions(self) -> int:
        """A."""
        return int(self.transitions.shape[1])

    def with_rewards(self, rewards: ArrayLike) -> MDP:
        """The same MDP with other (for example learned) rewards, `[S]`, `[S, A]` or `[S, A, S]`."""
        return replace(self, rewards=np.asarray(rewards, np.float64))

    def shaped(self, potential: ArrayLike) -> MDP:
        """The same MDP with rewards r + γ Φ(s′) − Φ(s) (Ng, Harada & Russell 1999). potential: Φ [S].

        Φ is 0 in terminal states. The optimal policies are the same, and the values are V − Φ.
        """
        phi = np.where(self.ends, 0.0, np.asarray(potential, np.float64))
        return self.with_rewards(self.rewards + self.discount * phi - phi[:, None, None])

    @classmethod
    def random(
        cls,
        num_states: int,
        num_actions: int,
        *,
        discount: float,
        branching: int | None = None,
        num_terminal: int = 0,
        generator: np.random.Generator,
    ) -> MDP:
        """A Garnet MDP (Archibald, McKinnon & Thomas 1995): each state and action has `branching` successors.

        `branching` None means all states. Probabilities are uniform on the simplex and rewards r(s, a) standard normal.
        The last `num_terminal` states are terminal; the initial state is uniform over the others. Raises ValueError for
        counts out of range.
        """
        branching = num_states if branching is None else branching
        if not 1 <= branching <= num_states:
            raise ValueError(f"branching: expected 1 to {num_states}, the number of states, got {branching}")
        if not 0 <= num_terminal < num_states:
            raise ValueError(f"num_terminal: expected 0 to {num_states - 1}, got {num_terminal}")
        transitions = np.zeros((num_states, num_actions, num_states))
        for row in transitions.reshape(-1, num_states):
            row[generator.choice(num_states, branching, replace=False)] = generator.dirichlet(np.ones(branching))
        terminal = np.arange(num_states) >= num_states - num_terminal
        return cls(
            transitions=transitions,
            rewards=generator.standard_normal((num_states, num_actions)),
            initial=~terminal / (~terminal).sum(),
            discount=discount,
            terminal=terminal,
        )

    @classmethod
    def from_gymnasium(cls, env: EnvironmentSource | gymnasium.Env[Any, Any], *, discount: float) -> MDP:
        """The model that a toy-text environment exposes (FrozenLake-v1, Taxi-v4, CliffWalking-v1).

        It is the model of the unwrapped environment, without time limits and other wrappers. A state is terminal if a
        reachable transition into it ends the episode.

        Raises ValueError for an environment without a model (`P` and `initial_state_distrib`), and for a state that is
        entered both with and without an end of the episode: an MDP over these states cannot represent it.
        """
        made = env if isinstance(env, gymnasium.Env) else make_environment(env)
        inner: Any = made.unwrapped
        model, initial = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
        if made is not env:
            made.close()
        if model is None or initial is None or not isinstance(inner.action_space, spaces.Discrete):
            raise ValueError(
                f"{inner}: expected an environment that exposes its model, as toy-text ones do: P "
                "({state: {action: [(probability, next state, reward, terminated)]}}) and initial_state_distrib"
            )
        initial, states, actions = np.asarray(initial, np.float64), len(initial), int(inner.action_space.n)
        transitions, weighted = np.zeros((2, states, actions, states))
        for s in range(states):
            for a in range(actions):
                for probability, successor, reward, _ in model[s][a]:
                    transitions[s, a, successor] += probability
                    weighted[s, a, successor] += probability * reward
        return cls(
            transitions=transitions,
            rewards=np.divide(weighted, transitions, out=np.zeros_like(weighted), where=transitions > 0),
            initial=initial,
            discount=discount,
            terminal=np.isin(np.arange(states), sorted(_entered(model, initial))),
        )


def _entered(model: Mapping[int, Mapping[int, Sequence[Any]]], initial: Floats) -> set[int]:
    """The terminal states among those that an episode can reach."""
    ends: set[int] = set()
    goes_on = {int(s) for s in np.flatnonzero(initial)}
    waiting = list(goes_on)
    while waiting:
        for outcomes in model[waiting.pop()].values():
            for probability, successor, _, terminated in outcomes:
                state = int(successor)
                if not probability:
                    continue
                if terminated:
                    ends.add(state)
                elif state not in goes_on:
                    goes_on.add(state)
                    waiting.append(state)
    if both := sorted(ends & goes_on):
        raise ValueError(f"state {both[0]} is entered both with and without an end of the episode")
    return ends


def _spread(name: str, values: ArrayLike, shape: tuple[int, int, int]) -> Floats:
    """Broadcast `[S]`, `[S, A]` or `[S, A, S]` → `[S, A, S]`."""
    array = np.asarray(values, np.float64)
    if array.ndim not in (1, 2, 3) or array.shape != shape[: array.ndim]:
        expected = ", ".join(str(list(shape[:n])) for n in (1, 2, 3))
        raise ValueError(f"{name}: expected one of {expected}, got shape {array.shape}")
    return np.broadcast_to(array.reshape(array.shape + (1,) * (3 - array.ndim)), shape)


def check_distributions(name: str, rows: Floats, axes: tuple[str, ...]) -> None:
    """Raise ValueError unless the last axis holds distributions. The error names the row by the names in `axes`."""

    def where(index: NDArray[np.intp]) -> str:
        row = ", ".join(f"{axis} {i}" for axis, i in zip(axes, index.tolist(), strict=False))
        return f"{name} of {row}" if row else name

    bad = np.argwhere(~(rows >= 0))  # NaN too
    if len(bad):
        raise ValueError(f"{where(bad[0])}: expected probabilities, got {rows[tuple(bad[0])]}")
    sums = rows.sum(-1)
    off = np.argwhere(np.abs(sums - 1) > _TOLERANCE)
    if len(off):
        raise ValueError(f"{where(off[0])}: expected probabilities that sum to 1, got a sum of {sums[tuple(off[0])]}")


def check_policy(mdp: MDP, policy: ArrayLike) -> Floats:
    """π(a | s) `[S, A]` as float64. Raises ValueError, naming the row, if it is no policy for this MDP."""
    array = np.asarray(policy, np.float64)
    if array.shape != (mdp.num_states, mdp.num_actions):
        raise ValueError(f"policy: expected [{mdp.num_states}, {mdp.num_actions}], got shape {array.shape}")
    check_distributions("policy", array, ("state",))
    return array
