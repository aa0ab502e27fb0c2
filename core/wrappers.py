"""Gymnasium wrappers for sparse, delayed and shaped rewards and for perturbed observations and actions.

    r′ = r + γ Φ(s′) − Φ(s),   Φ(s′) = 0 at termination                  (1)  Ng, Harada & Russell 1999
    o′ = o + clip(ν(o) − o, −ε, ε)                                       (2)  Zhang et al. 2020, arXiv:2003.08938
    a′ = ν(a) with probability α, else a                                 (3)  Tessler et al. 2019, arXiv:1901.09184

Their randomness is a function of the reset seed and independent of the environment's.
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
Perturbation = Callable[[Any, np.random.Generator], Any]  # ν of eq. 2 and 3, of an observation or action
_STREAM = 0x9E3779B9  # separates the wrappers' randomness from the environment's, which has the same seed


class DelayedReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Pays the accumulated rewards every `every` steps and at the end of the episode (None: only at the end).

    The return is unchanged, unless an outer wrapper truncates the episode: then unpaid rewards are lost. Raises
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
    """Reward 1 if `success(observation, reward, info)` is true for the step, else 0."""

    def __init__(self, env: Env, success: Callable[[Any, float, dict[str, Any]], bool]) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, success=success)
        super().__init__(env)
        self.success = success

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(self.success(observation, float(reward), info)), terminated, truncated, info


class ShapedReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Potential-based reward shaping, eq. 1, which preserves the optimal policies. Truncation keeps Φ(s′).

    Args:
        env: The environment.
        potential: Φ as a function of the observation, which must determine the state.
        discount: γ of the learning algorithm, in [0, 1]; else raises ValueError.
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
    """A wrapper with a generator that every seeded reset seeds again."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.generator = np.random.default_rng()
        self._stream = (_STREAM, _drawing_beneath(env))  # differs between nested wrappers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.generator = np.random.default_rng((*self._stream, seed))
        return self.env.reset(seed=seed, options=options)


def _drawing_beneath(env: Env) -> int:
    """Number of `_Drawing` wrappers of an environment."""
    count = 0
    while isinstance(env, gymnasium.Wrapper):
        count += isinstance(env, _Drawing)
        env = env.env
    return count


class PerturbedObservations(_Drawing, RecordConstructorArgs):
    """Perturbs observations by noise or an adversary, eq. 2, within their space. The state is unchanged.

    Args:
        env: An environment with Box observations.
        perturb: ν, a function of an observation and a generator.
        radius: ε for each component; None: unbounded.

    Raises ValueError for other observation spaces, and unless ε > 0 (ε >= 1 for integer observations).
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
    """Perturbs actions by noise or an adversary, eq. 3. Box actions are clipped to their space.

    Args:
        env: An environment with Box or Discrete actions.
        perturb: ν, a function of an action and a generator.
        probability: α, for each step.

    Raises ValueError for other action spaces and for α outside [0, 1]; `step` raises it if ν returns a Discrete action
    outside the space.
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


class GaussianNoise:  # no dataclass: an EnvSpec would store it as a dict and could not make it again
    """ν(x) = x + scale · N(0, 1) for each component. Raises ValueError for a negative scale."""

    def __init__(self, scale: float) -> None:
        if not scale >= 0:
            raise ValueError(f"scale: expected a standard deviation >= 0, got {scale}")
        self.scale = scale

    def __call__(self, values: Any, generator: np.random.Generator) -> Any:
        return values + self.scale * generator.standard_normal(np.shape(values))


class UniformAction:
    """ν(a): uniform over a Discrete space or a bounded Box. Raises ValueError for other spaces."""

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
    """Clip values to a Box and convert them to its type; integers are rounded first."""
    if np.issubdtype(space.dtype, np.integer):
        values = values.round()
    return np.clip(values, space.low, space.high).astype(space.dtype)
