"""Model-free control with tables: Q-learning, n-step SARSA and Monte Carlo (Sutton & Barto 2018).

    Q(s_t, a_t) ← Q(s_t, a_t) + α (G_t − Q(s_t, a_t))                                       (1)  Monte Carlo, §5.4
    G_t = r_t + … + γ^{n−1} r_{t+n−1} + γⁿ Q(s_{t+n}, a_{t+n})                              (2)  n-step SARSA, §7.2
    Q(s_t, a_t) ← Q(s_t, a_t) + α (r_t + γ max_a Q(s_{t+1}, a) − Q(s_t, a_t))               (3)  Q-learning, §6.5

Actions are ε-greedy, with ties broken uniformly at random. The value after a termination is 0. A truncated episode is
bootstrapped from Q of its final observation; Monte Carlo takes the mean of that Q under the ε-greedy policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from herdbook.tabular.mdp import Floats

Schedule = float | Callable[[int], float]
"""A constant, or a function of the episode's number, which starts at 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """The result of learning."""

    q: Floats
    """Action values, `[S, A]`."""
    returns: Floats
    """Undiscounted returns of the ε-greedy policy, `[episodes]`."""
    lengths: NDArray[np.int64]
    """Numbers of steps, `[episodes]`."""


def q_learning(
    env: gymnasium.Env[Any, Any],
    *,
    episodes: int,
    discount: float,
    step_size: float,
    epsilon: Schedule,
    generator: np.random.Generator,
    max_steps: int = 10_000,
) -> Learned:
    """Q-learning (Watkins 1989), eq. 3: off-policy control, which learns the values of the greedy policy.

    Args:
        env: An environment with Discrete observations and actions. Each episode is reset with its own seed.
        episodes: Number of episodes.
        discount: γ.
        step_size: α.
        epsilon: ε, probability of a uniformly random action.
        generator: Randomness of the actions and the reset seeds.
        max_steps: Episodes are truncated after this many steps.

    Raises ValueError if the spaces are not Discrete or a setting is out of range.
    """
    table = _Table(env, episodes, discount, step_size, generator, max_steps)
    q = table.q
    for number in range(episodes):
        chance, state = _epsilon(epsilon, number), table.reset()
        while table.goes_on:
            action = table.choose(state, chance)
            following, reward, terminated = table.step(action)
            next_value = 0.0 if terminated else q[following].max()
            q[state, action] += step_size * (reward + discount * next_value - q[state, action])  # eq. 3
            state = following
    return table.learned()


def sarsa(
    env: gymnasium.Env[Any, Any],
    *,
    episodes: int,
    discount: float,
    step_size: float,
    epsilon: Schedule,
    generator: np.random.Generator,
    n: int = 1,
    max_steps: int = 10_000,
) -> Learned:
    """n-step SARSA (Rummery & Niranjan 1994), eq. 2: on-policy control, which learns the values of the ε-greedy policy.

    Windows at the end of an episode are shorter than n; the power of γ is their actual length. The other arguments, the
    result and the errors are those of `q_learning`. Also raises ValueError if n < 1.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 step, got {n}")
    table = _Table(env, episodes, discount, step_size, generator, max_steps)
    for number in range(episodes):
        chance, state = _epsilon(epsilon, number), table.reset()
        action = table.choose(state, chance)
        window: list[tuple[int, int, float]] = []  # the last n steps, not yet updated
        while table.goes_on:
            following, reward, terminated = table.step(action)
            window.append((state, action, reward))
            state, action = following, table.choose(following, chance)
            if len(window) == n:
                table.update(window, 0.0 if terminated else table.q[state, action], step_size)
                del window[0]
        while window:  # the shorter windows at the end of the episode
            table.update(window, 0.0 if terminated else table.q[state, action], step_size)
            del window[0]
    return table.learned()


def monte_carlo_control(
    env: gymnasium.Env[Any, Any],
    *,
    episodes: int,
    discount: float,
    epsilon: Schedule,
    generator: np.random.Generator,
    step_size: float | None = None,
    first_visit: bool = True,
    max_steps: int = 10_000,
) -> Learned:
    """On-policy Monte Carlo control, eq. 1, with updates at the end of each episode.

    With `step_size=None`, α is 1 / the number of visits. With `first_visit`, only the first visit of a state and action
    in an episode counts; else all visits do, from the last to the first. The other arguments, the result and the errors
    are those of `q_learning`.
    """
    table = _Table(env, episodes, discount, step_size, generator, max_steps)
    visits = np.zeros_like(table.q)
    for number in range(episodes):
        chance, state = _epsilon(epsilon, number), table.reset()
        path: list[tuple[int, int, float]] = []
        while table.goes_on:
            action = table.choose(state, chance)
            following, reward, terminated = table.step(action)
            path.append((state, action, reward))
            state = following
        first = {pair: t for t, pair in reversed([(t, step[:2]) for t, step in enumerate(path)])}
        cut = (1 - chance) * table.q[state].max() + chance * table.q[state].mean()  # Σ_a π(a | s_T) Q(s_T, a)
        value = 0.0 if terminated else cut
        for t, (s, a, r) in reversed(list(enumerate(path))):
            value = r + discount * value
            if not first_visit or first[s, a] == t:
                visits[s, a] += 1
                rate = 1 / visits[s, a] if step_size is None else step_size
                table.q[s, a] += rate * (value - table.q[s, a])  # eq. 1
    return table.learned()


class _Table:
    """The table Q of an environment, its current episode, and the returns and lengths of all episodes."""

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        episodes: int,
        discount: float,
        step_size: float | None,
        generator: np.random.Generator,
        max_steps: int,
    ) -> None:
        observations, actions = env.observation_space, env.action_space
        if not isinstance(observations, spaces.Discrete) or not isinstance(actions, spaces.Discrete):
            raise ValueError(
                f"expected Discrete observations and actions for a table, got {observations} and {actions}"
            )
        if episodes < 1 or max_steps < 1:
            raise ValueError(f"expected episodes >= 1 and max_steps >= 1, got {episodes} and {max_steps}")
        if not 0 <= discount <= 1:
            raise ValueError(f"discount: expected γ in [0, 1], got {discount}")
        if step_size is not None and not 0 < step_size <= 1:
            raise ValueError(f"step_size: expected α in (0, 1], got {step_size}")
        self.env, self.discount = env, discount
        self.generator, self.max_steps = generator, max_steps
        self.first_state, self.first_action = int(observations.start), int(actions.start)
        self.q = np.zeros((int(observations.n), int(actions.n)))
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.goes_on = False

    def reset(self) -> int:
        """Begin an episode and return its first state, counted from 0."""
        self.returns.append(0.0)
        self.lengths.append(0)
        self.goes_on = True
        observation, _ = self.env.reset(seed=int(self.generator.integers(2**31)))
        return int(observation) - self.first_state

    def step(self, action: int) -> tuple[int, float, bool]:
        """Return the next state, the reward and `terminated`. `goes_on` becomes False after the last step."""
        observation, reward, terminated, truncated, _ = self.env.step(action + self.first_action)
        self.returns[-1] += float(reward)
        self.lengths[-1] += 1
        self.goes_on = not (terminated or truncated or self.lengths[-1] == self.max_steps)
        return int(observation) - self.first_state, float(reward), bool(terminated)

    def choose(self, state: int, epsilon: float) -> int:
        """An ε-greedy action."""
        if self.generator.random() < epsilon:
            return int(self.generator.integers(self.q.shape[1]))
        best = np.flatnonzero(self.q[state] == self.q[state].max())
        return int(best[0] if len(best) == 1 else self.generator.choice(best))

    def update(self, window: list[tuple[int, int, float]], value: float, step_size: float) -> None:
        """Update Q of the oldest step of the window by eq. 2. value: the bootstrap value after the window."""
        for _, _, reward in reversed(window):
            value = reward + self.discount * value
        state, action, _ = window[0]
        self.q[state, action] += step_size * (value - self.q[state, action])

    def learned(self) -> Learned:
        return Learned(self.q, np.array(self.returns), np.array(self.lengths))


def _epsilon(schedule: Schedule, episode: int) -> float:
    value = schedule(episode) if callable(schedule) else schedule
    if not 0 <= value <= 1:
        raise ValueError(f"epsilon: expected a value in [0, 1], got {value} for episode {episode}")
    return value
