"""Good actions, learned by acting in an environment with few states, without a model (Sutton & Barto 2018).

    Q(s_t, a_t) ← Q(s_t, a_t) + α (G_t − Q(s_t, a_t))                                       (1)  Monte Carlo, §5.4
    G_t = r_t + … + γ^{n−1} r_{t+n−1} + γⁿ Q(s_{t+n}, a_{t+n})                              (2)  n-step SARSA, §7.2
    Q(s_t, a_t) ← Q(s_t, a_t) + α (r_t + γ max_a Q(s_{t+1}, a) − Q(s_t, a_t))               (3)  Q-learning, §6.5

Actions are ε-greedy; of several best ones each is as likely. The value of what follows is 0 if the episode terminated;
one that was cut off goes on from Q of its final observation, for Monte Carlo too: from that of the ε-greedy policy.
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
"""A number, or a function of the episode's number from 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What was learned, and how it went."""

    q: Floats
    """Q, `[S, A]`."""
    returns: Floats
    """Of the ε-greedy policy, undiscounted, `[episodes]`."""
    lengths: NDArray[np.int64]
    """Steps, `[episodes]`."""


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
    """Q-learning (Watkins 1989), eq. 3: learns the greedy policy while it explores.

    Args:
        env: With Discrete observations and actions. Each episode is reset with a seed of its own.
        episodes: How many.
        discount: γ.
        step_size: α.
        epsilon: Probability of a uniformly random action.
        generator: Of the actions and of the reset seeds.
        max_steps: An episode is cut off there.

    Returns:
        Q and what the episodes gave.

    Raises:
        ValueError: The spaces are not Discrete, or a setting is out of range.
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
    """SARSA (Rummery & Niranjan 1994), of n steps, eq. 2: learns the value of the policy that explores.

    At an episode's end the windows are shorter, with the power of γ of their real length. Further arguments, result and
    errors are those of `q_learning`, and ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 step, got {n}")
    table = _Table(env, episodes, discount, step_size, generator, max_steps)
    for number in range(episodes):
        chance, state = _epsilon(epsilon, number), table.reset()
        action = table.choose(state, chance)
        window: list[tuple[int, int, float]] = []  # the last n steps, whose returns are not complete
        while table.goes_on:
            following, reward, terminated = table.step(action)
            window.append((state, action, reward))
            state, action = following, table.choose(following, chance)
            if len(window) == n:
                table.update(window, 0.0 if terminated else table.q[state, action], step_size)
                del window[0]
        while window:  # only an episode's end leaves some
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
    """On-policy Monte Carlo control, eq. 1, changed at the end of each episode.

    `step_size` None is 1 / the number of visits; `first_visit`: only the first visit of a state and action in an
    episode counts, else all do, one after the other from the last. Further arguments, result and errors are those of
    `q_learning`.
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
    """Q of an environment, the episode that is being played, and the record of those before."""

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
        """Begin an episode. Its state, numbered from 0."""
        self.returns.append(0.0)
        self.lengths.append(0)
        self.goes_on = True
        observation, _ = self.env.reset(seed=int(self.generator.integers(2**31)))
        return int(observation) - self.first_state

    def step(self, action: int) -> tuple[int, float, bool]:
        """The next state, the reward, and whether the episode terminated; `goes_on` is False after its last step."""
        observation, reward, terminated, truncated, _ = self.env.step(action + self.first_action)
        self.returns[-1] += float(reward)
        self.lengths[-1] += 1
        self.goes_on = not (terminated or truncated or self.lengths[-1] == self.max_steps)
        return int(observation) - self.first_state, float(reward), bool(terminated)

    def choose(self, state: int, epsilon: float) -> int:
        """ε-greedy, ties broken at random."""
        if self.generator.random() < epsilon:
            return int(self.generator.integers(self.q.shape[1]))
        best = np.flatnonzero(self.q[state] == self.q[state].max())
        return int(best[0] if len(best) == 1 else self.generator.choice(best))

    def update(self, window: list[tuple[int, int, float]], value: float, step_size: float) -> None:
        """Move the oldest step's Q towards eq. 2. `value`: of what follows the window."""
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
