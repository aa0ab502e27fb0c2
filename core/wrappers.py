"""Wrappers of Gymnasium environments: rewards made sparse or shaped, observations and actions perturbed.

    r′ = r + γ Φ(s′) − Φ(s),   Φ = 0 where the episode terminates        (1)  Ng, Harada & Russell 1999
    o′ = o + clip(ν(o) − o, −ε, ε)                                       (2)  Zhang et al. 2020, arXiv:2003.08938
    a′ = ν(a) with probability α, else a                                 (3)  Tessler et al. 2019, arXiv:1901.09184

What they draw is a function of the reset seed, and apart from what the environment draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

Env = gymnasium.Env[Any, Any]
Perturbation = Callable[[Any, np.random.Generator], Any]
"""ν of eq. 2 and 3: what is put in the place of an observation or an action."""

_STREAM = 0x9E3779B9  # keeps the wrappers' randomness apart from the environment's, which has the same seed


class DelayedReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Rewards are kept back and paid together: every `every` steps, and at the end of the episode (None: only there).

    The return stays what it is, if no wrapper outside this one cuts the episode: what is owed then is lost. Raises
    ValueError for `every` < 1.
    """

    def __init__(self, env: Env, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every: expected at least 1 step, got {every}")
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, every=every)
        super().__init__(env)
        self.every, self._owed, self._steps = every, 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._owed, self._steps = 0.0, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._owed += float(reward)
        self._steps += 1
        paid = 0.0
        if terminated or truncated or (self.every is not None and self._steps % self.every == 0):
            paid, self._owed = self._owed, 0.0
        return observation, paid, terminated, truncated, info


class SparseReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """The reward is 1 where `success(observation, reward, info)` of the step is true, else 0."""

    def __init__(self, env: Env, success: Callable[[Any, float, dict[str, Any]], bool]) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, success=success)
        super().__init__(env)
        self.success = success

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(self.success(observation, float(reward), info)), terminated, truncated, info


class ShapedReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Potential-based shaping, eq. 1, which leaves the optimal policies what they are.

    Args:
        env: The environment.
        potential: Φ of an observation, which must hold the whole state.
        discount: γ of the algorithm that learns.

    An episode that is cut off keeps Φ of its final observation.
    """

    def __init__(self, env: Env, potential: Callable[[Any], float], discount: float) -> None:
        if not 0 <= discount <= 1:
            raise ValueError(f"discount: expected γ in [0, 1], got {discount}")
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, potential=potential, discount=discount)
        super().__init__(env)
        self.potential, self.discount, self._before = potential, discount, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._before = float(self.potential(observation))
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        after = 0.0 if terminated else float(self.potential(observation))
        shaped = float(reward) + self.discount * after - self._before  # eq. 1
        self._before = after
        return observation, shaped, terminated, truncated, info


class _Drawing(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper with a generator that each seeded reset makes anew."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.generator = np.random.default_rng()
        self._stream = (_STREAM, _drawing_beneath(env))  # two of them must not draw the same

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.generator = np.random.default_rng((*self._stream, seed))
        return self.env.reset(seed=seed, options=options)


def _drawing_beneath(env: Env) -> int:
    """How many wrappers of an environment draw."""
    count = 0
    while isinstance(env, gymnasium.Wrapper):
        count += isinstance(env, _Drawing)
        env = env.env
    return count


class PerturbedObservations(_Drawing, RecordConstructorArgs):
    """Observations that a noise or an adversary changes, eq. 2, kept within their space; the state stays as it is.

    Args:
        env: With Box observations.
        perturb: ν, of an observation and a generator.
        radius: ε, of each component; None: no bound.

    Raises ValueError for other observations, and for a radius that is not positive, of whole numbers below 1.
    """

    def __init__(self, env: Env, perturb: Perturbation, radius: float | None = None) -> None:
        if not isinstance(env.observation_space, spaces.Box):
            raise ValueError(f"expected Box observations to perturb, got {env.observation_space}")
        whole = np.issubdtype(env.observation_space.dtype, np.integer)
        if radius is not None and not (radius >= 1 if whole else radius > 0):
            raise ValueError(f"radius: expected ε {'>= 1 for whole numbers' if whole else '> 0'}, got {radius}")
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, perturb=perturb, radius=radius)
        super().__init__(env)
        self.perturb, self._space = perturb, env.observation_space
        self.radius = radius if radius is None or not whole else float(np.floor(radius))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return self._perturbed(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._perturbed(observation), float(reward), terminated, truncated, info

    def _perturbed(self, observation: NDArray[Any]) -> NDArray[Any]:
        true = np.asarray(observation, np.float64)
        seen = np.asarray(self.perturb(observation.copy(), self.generator), np.float64)
        if self.radius is not None:
            seen = true + np.clip(seen - true, -self.radius, self.radius)  # eq. 2
        return _within(self._space, seen)


class PerturbedActions(_Drawing, RecordConstructorArgs):
    """Actions that a noise or an adversary changes, eq. 3: dynamics that are not as planned.

    Args:
        env: With Box or Discrete actions.
        perturb: ν, of an action and a generator.
        probability: α of each step.

    Box actions are clipped to their space. Raises ValueError for other actions and an α outside [0, 1], and, when it
    steps, for a Discrete action outside its space.
    """

    def __init__(self, env: Env, perturb: Perturbation, probability: float = 1.0) -> None:
        if not isinstance(env.action_space, (spaces.Box, spaces.Discrete)):
            raise ValueError(f"expected Box or Discrete actions to perturb, got {env.action_space}")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: expected α in [0, 1], got {probability}")
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, perturb=perturb, probability=probability)
        super().__init__(env)
        self.perturb, self.probability, self._space = perturb, probability, env.action_space

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.generator.random() < self.probability:  # eq. 3
            if isinstance(self._space, spaces.Box):
                perturbed = self.perturb(np.array(action), self.generator)
                action = _within(self._space, np.asarray(perturbed, np.float64))
            else:
                action = np.int64(self.perturb(np.int64(action), self.generator))
                if not self._space.contains(action):
                    raise ValueError(f"expected a perturbed action in {self._space}, got {action}")
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward), terminated, truncated, info


class GaussianNoise:  # no dataclass: an EnvSpec would write it down as a dict, and not make it again
    """ν(x) = x + scale · N(0, 1), of each component. Raises ValueError for a negative scale."""

    def __init__(self, scale: float) -> None:
        if not scale >= 0:
            raise ValueError(f"scale: expected a standard deviation >= 0, got {scale}")
        self.scale = scale

    def __call__(self, values: Any, generator: np.random.Generator) -> Any:
        return values + self.scale * generator.standard_normal(np.shape(values))


class UniformAction:
    """ν(a): uniform over a Discrete space or a bounded Box. Raises ValueError for any other."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        if not isinstance(space, spaces.Discrete) and not (isinstance(space, spaces.Box) and space.is_bounded()):
            raise ValueError(f"expected Discrete or bounded Box actions, got {space}")
        self.space = space

    def __call__(self, action: Any, generator: np.random.Generator) -> Any:
        space: Any = self.space
        if isinstance(space, spaces.Discrete):
            return np.int64(space.start + generator.integers(space.n))
        return generator.uniform(space.low, space.high)


def _within(space: spaces.Box, values: NDArray[np.float64]) -> NDArray[Any]:
    """Values clipped to a Box, in its type; whole numbers are rounded."""
    if np.issubdtype(space.dtype, np.integer):
        values = values.round()
    return np.clip(values, space.low, space.high).astype(space.dtype)
