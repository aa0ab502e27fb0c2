"""`VectorRunner`: the one loop in which evaluation, collection and learning online step environments.

Environments live in this process, one per lane, and step in lockstep. Each episode is reset with a seed of its own, by
this loop and never by a vector environment: so the final observation of an episode is its own, and there is no false
transition between two episodes.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces

from herdbook.core.environments import (
    Env,
    EnvironmentSource,
    EnvironmentUnavailable,
    check_reset,
    make_environment,
)
from herdbook.core.random import derive
from herdbook.core.spaces import alike, flat_action_space, flat_space, flatten, leaf_spaces
from herdbook.core.trees import write
from herdbook.core.types import Array, Carry, Policy, Spec, Step, Steps, Tree, Turn, to_numpy, tree_map

UNDECLARED_LIMIT = 10_000
"""Steps after which an episode is cut where neither the environment nor the caller declares a time limit."""

Schedule = Callable[[int], Turn | None]
"""Lane to the episode that begins there now, or None: the lane rests from here on."""


class EnvironmentFailed(RuntimeError):
    """An environment raised, or gave NaN or an observation of another shape, in the middle of an episode."""


class PolicyFailed(RuntimeError):
    """A policy gave an action that is not finite."""


@dataclass(frozen=True, slots=True)
class VectorStep:
    """One step of every lane; arrays on the host, `[lanes, …]`. Where `active` is False the lane rests: padding."""

    played: Steps
    """Observations are flat as `Spec.observation_space` says."""
    first: Array
    """This was the first step of its episode."""
    cut: Array
    """And the episode before it was given up, where an environment failed: the step before was its last."""
    active: Array
    episodes: Array
    """int64: the number of the episode that each lane is in."""


def fixed_episodes(count: int, seed: int) -> Schedule:
    """Episodes 0 … count−1, each on the lane that is free next, episode i reset with `seed + i`."""
    numbers = iter(range(count))

    def schedule(lane: int) -> Turn | None:
        number = next(numbers, None)
        return None if number is None else Turn(number, seed + number)

    return schedule


class EndlessEpisodes:
    """A schedule without end: the k-th episode of a lane is reset with a seed derived from (*entropy, lane, k)."""

    def __init__(self, *entropy: int) -> None:
        self.entropy = entropy
        self.begun: dict[int, int] = {}
        """Episodes so far of each lane."""

    def __call__(self, lane: int) -> Turn:
        number, k = sum(self.begun.values()), self.begun.get(lane, 0)
        self.begun[lane] = k + 1
        return Turn(number, derive(*self.entropy, lane, k) % 2**31)  # some environments take a C int


class VectorRunner:
    """Steps environments side by side with a policy.

    Args:
        source: What `make_environment` takes.
        num_envs: Lanes.
        schedule: Which episode begins where, its seed and task, and whether the policy's carry is forgotten before it.
            Where it is not, the first step also sees the action and reward of the step before, the last of another
            episode. A lane's first episode always begins with a fresh carry.
        spec: Where the policy comes from data: its spaces are checked against the environment's, and observations are
            flattened as it says. None takes the environment's own.
        max_steps: Cut (truncate) episodes after so many steps, on top of the environment's own limit.
        device: Where the policy's tensors live.
        on_failure: Told of an environment that fails in an episode, which is given up then: the environment is made
            anew, and the lane's next episode begins. It ends that by raising. None: the failure is raised.

    An environment whose `reset(seed)` does not determine its state is made anew for each episode, with a warning.

    Raises:
        EnvironmentUnavailable: The environment cannot be made, or its spaces are not those of `spec`.
        EnvironmentFailed: It raised in its first steps.
    """

    def __init__(
        self,
        source: EnvironmentSource,
        num_envs: int,
        schedule: Schedule,
        *,
        spec: Spec | None = None,
        max_steps: int | None = None,
        device: str | torch.device = "cpu",
        on_failure: Callable[[EnvironmentFailed], None] | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"expected num_envs >= 1, got {num_envs}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"expected max_steps >= 1, got {max_steps}")
        self.source, self.schedule, self.device = source, schedule, torch.device(device)
        self._on_host, self.on_failure = self.device.type == "cpu", on_failure
        self.envs: list[Env] = [make_environment(source) for _ in range(num_envs)]
        if len(set(map(id, self.envs))) < num_envs:
            raise ValueError(f"expected a new environment from each call of {source}, got the same one again")
        env = self.envs[0]
        self.raw_observation_space: Space[Any] = env.observation_space
        self.raw_action_space: Space[Any] = env.action_space
        self.observation_keys = None if spec is None else spec.observation_keys
        if spec is not None:
            _check_spaces(spec, env)
        self.observation_space = flat_space(env.observation_space, self.observation_keys)
        self._shapes = [part.shape for part in leaf_spaces(self.observation_space)]
        self.action_space = flat_action_space(env.action_space)
        self.limit_declared = max_steps is not None or _declares_limit(env)
        self.max_steps = max_steps or (None if self.limit_declared else UNDECLARED_LIMIT)
        try:
            self.rebuild = not check_reset(env)
        except Exception as error:
            raise EnvironmentFailed(
                f"{_name(env)} raised {type(error).__name__} in its first steps: {error}"
            ) from error
        if self.rebuild:
            warnings.warn(
                f"{_name(env)}: reset(seed) does not determine the state, so it is made anew for each episode",
                stacklevel=2,
            )
        self._actor: Policy | None = None
        self._carry: Carry = None
        self._first, self._resets = np.ones((2, num_envs), dtype=np.bool_)
        self._cut = self._none = np.zeros(num_envs, dtype=np.bool_)
        self._none.flags.writeable = False  # given out again and again
        self._news = True  # an episode begins in some lane, or was given up
        self._taken: list[list[Array]] = [[] for _ in range(num_envs)]  # the actions of each lane's episode
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._episodes = np.full(num_envs, -1, dtype=np.int64)
        self._seeds = np.zeros(num_envs, dtype=np.int64)
        self._tasks: Array | None = None
        self._active = np.zeros(num_envs, dtype=np.bool_)
        self._previous_actions = self._no_actions()
        self._previous_rewards = np.zeros(num_envs, dtype=np.float32)
        begun = [self._begin(lane) for lane in range(num_envs)]
        padding = next((row for row in begun if row is not None), None)
        self._observations: Tree = (
            None if padding is None else stack_rows([padding if row is None else row for row in begun])
        )

    @property
    def active(self) -> bool:
        """Whether any lane is in an episode."""
        return bool(self._active.any())

    def step(self, policy: Policy, generator: torch.Generator | None = None, *, keep_carry: bool = False) -> VectorStep:
        """Step every active lane once, and begin the next episode where one ended.

        A policy other than the last call's starts with a fresh carry; with `keep_carry` it goes on with the last one's,
        as the same player with other parameters.

        Raises:
            EnvironmentFailed: An environment raised or gave NaN; episode, seed and step are named.
            PolicyFailed: The policy gave an action that is not finite.
            ValueError: The policy's actions have the wrong shape or type.
        """
        if policy is not self._actor:
            fresh = self._carry is None or not keep_carry
            self._actor, self._carry = policy, policy.initial(len(self.envs)) if fresh else self._carry
        before = self._carry
        actions, self._carry = self._choose(policy, before, generator)
        results = _Results(len(self.envs))
        lanes = self._active.nonzero()[0].tolist()
        while failed := self._step_lanes(lanes, actions, results):
            for lane, failure in failed.items():
                self._give_up(lane, failure)
                results.forget(lane)
            lanes = [lane for lane in failed if self._active[lane]]
            again, carry = self._choose(policy, before, generator)
            self._carry = tree_map(functools.partial(_merged, lanes), self._carry, carry)
            actions[lanes] = again[lanes]
        return self._advance(actions, results)

    def _choose(self, policy: Policy, carry: Carry, generator: torch.Generator | None) -> tuple[Array, Carry]:
        """The policy's action for every lane, and its next carry."""
        seen = Step(
            observations=tree_map(self._tensor, self._observations),
            previous_actions=self._tensor(self._previous_actions),
            previous_rewards=self._tensor(self._previous_rewards),
            first=self._tensor(self._first),
            reset=self._tensor(self._resets),
        )
        with torch.no_grad():
            chosen, carry = policy(seen, carry, generator)
        return self._checked(chosen), carry

    def _step_lanes(self, lanes: list[int], actions: Array, results: _Results) -> dict[int, EnvironmentFailed]:
        """Step some lanes; what came is in `results`, and the lanes that failed are returned."""
        failed: dict[int, EnvironmentFailed] = {}
        raw = self._raw_actions(actions)
        for lane in lanes:
            try:
                observation, reward, terminated, truncated, _ = self.envs[lane].step(raw[lane])
                results.rewards[lane], results.terminated[lane], results.truncated[lane] = reward, terminated, truncated
                results.rows[lane] = self._row(observation)
            except Exception as error:
                failed[lane] = self._failed(lane, f"raised {type(error).__name__}: {error}")
                failed[lane].__cause__ = error
        if failed:
            return failed
        padding = next((row for row in results.rows if row is not None), None)
        results.observations = (
            self._observations  # every lane rests
            if padding is None
            else stack_rows([padding if row is None else row for row in results.rows])
        )
        return self._not_finite(results)

    def _give_up(self, lane: int, failure: EnvironmentFailed) -> None:
        """The lane's episode ends with the step before, and its next one begins. Raises where nobody is to be told."""
        self._lose(lane, failure)
        self._keep_what_was_given()
        self._cut[lane] |= self._lengths[lane] > 0
        row = self._begin(lane)
        if row is not None:
            write(self._observations, lane, row)

    def _keep_what_was_given(self) -> None:
        """Policies and callers keep the arrays that they were given: what a lane's next episode changes is copied."""
        self._observations = tree_map(np.copy, self._observations)
        self._first, self._resets = self._first.copy(), self._resets.copy()
        self._cut, self._active = self._cut.copy(), self._active.copy()
        self._previous_actions, self._previous_rewards = self._previous_actions.copy(), self._previous_rewards.copy()
        self._episodes, self._news = self._episodes.copy(), True
        if self._tasks is not None:
            self._tasks = self._tasks.copy()

    def _lose(self, lane: int, failure: EnvironmentFailed) -> None:
        if self.on_failure is None:
            raise failure
        self.on_failure(failure)
        self._renew(lane)

    def _renew(self, lane: int) -> None:
        with suppress(Exception):  # what is broken may not close
            self.envs[lane].close()
        self.envs[lane] = make_environment(self.source)

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on from here: seed and actions of each lane's episode, which `load_state_dict` replays.

        And the policy's carry, for a step with `keep_carry`.
        """
        return {
            "episodes": torch.from_numpy(self._episodes.copy()),
            "seeds": torch.from_numpy(self._seeds.copy()),
            "active": torch.from_numpy(self._active.copy()),
            "cut": torch.from_numpy(self._cut.copy()),
            "reset": torch.from_numpy(self._resets.copy()),
            "tasks": None if self._tasks is None else torch.from_numpy(self._tasks.copy()),
            "previous_actions": torch.from_numpy(self._previous_actions.copy()),
            "previous_rewards": torch.from_numpy(self._previous_rewards.copy()),
            "actions": [torch.from_numpy(np.stack(taken)) if taken else None for taken in self._taken],
            "observations": tree_map(torch.from_numpy, self._observations),
            "carry": self._carry,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: reset every lane with its episode's seed, and take its actions again.

        An episode that does not lead to the same observation is given up, as where an environment fails.
        """
        if len(state["actions"]) != len(self.envs):
            raise ValueError(f"expected the state of {len(self.envs)} environments, got {len(state['actions'])}")
        others = {name: value for name, value in state.items() if name not in ("actions", "carry", "tasks")}
        saved, tasks = tree_map(np.copy, to_numpy(others)), state.get("tasks")
        self._episodes, self._seeds, self._active = saved["episodes"], saved["seeds"], saved["active"]
        self._cut, self._previous_rewards, self._observations = (
            saved[name] for name in ("cut", "previous_rewards", "observations")
        )
        self._first = np.array([actions is None for actions in state["actions"]]) | ~self._active
        self._resets = saved.get("reset", self._first.copy())  # so it was in versions that did not store it
        self._previous_actions = saved.get("previous_actions", self._no_actions())
        self._tasks, self._news = None if tasks is None else to_numpy(tasks).copy(), True
        self._actor, self._carry = None, tree_map(self._placed, state.get("carry"))
        for lane in np.flatnonzero(self._active).tolist():
            actions = state["actions"][lane]
            taken = [] if actions is None else list(actions.numpy())
            self._taken[lane], self._lengths[lane] = taken, len(taken)
            if taken:
                self._previous_actions[lane] = taken[-1]
            if self.rebuild:
                self._renew(lane)
            try:
                row = self._replay(lane, taken)
            except Exception as error:
                self._give_up(lane, self._failed(lane, f"raised {type(error).__name__} when replayed: {error}"))
                continue
            seen = [leaf[lane] for leaf in _leaves(self._observations)]
            if not all(map(np.array_equal, _leaves(row), seen)):
                self._give_up(lane, self._failed(lane, "came to another observation when its actions were replayed"))

    def _replay(self, lane: int, taken: list[Array]) -> Tree:
        observation, _ = self.envs[lane].reset(seed=int(self._seeds[lane]))
        for action in self._raw_actions(np.stack(taken)) if taken else ():
            observation = self.envs[lane].step(action)[0]
        return self._row(observation)

    def _row(self, observation: Any) -> Tree:
        """An observation as `Spec.observation_space` has it. Raises ValueError for another shape."""
        row = flatten(self.raw_observation_space, observation, self.observation_keys)
        shapes = [leaf.shape for leaf in _leaves(row)]
        if shapes != self._shapes:
            raise ValueError(f"expected an observation of shape {self._shapes}, got {shapes}")
        return row

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _advance(self, actions: Array, results: _Results) -> VectorStep:
        active, first, reset, cut = self._active, self._first, self._resets, self._cut
        terminated, truncated, next_observations = results.terminated, results.truncated, results.observations
        self._lengths += active
        if self.max_steps is not None:
            over = active & (self._lengths >= self.max_steps) & ~(terminated | truncated)
            if over.any() and not self.limit_declared:
                warnings.warn(
                    f"{_name(self.envs[0])} declares no time limit; its episodes are cut after {UNDECLARED_LIMIT} "
                    "steps: pass max_steps",
                    stacklevel=3,
                )
            truncated |= over
        ended = terminated | truncated
        played = Steps(
            observations=self._observations,
            actions=actions,
            rewards=results.rewards,
            terminated=terminated,
            truncated=truncated,
            next_observations=next_observations,
            reset=reset & active if self._news else self._none,
            task=self._tasks,
        )
        stepped = VectorStep(
            played=played,
            first=first & active if self._news else self._none,
            cut=cut & active if self._news else self._none,
            active=active,
            episodes=self._episodes,
        )
        for taken, action in zip(self._taken, actions, strict=True):
            taken.append(action)
        self._observations = next_observations
        if self._news:
            self._first = self._resets = ~active  # a resting lane's carry is as at a reset
            self._cut, self._news = self._none, False
        self._previous_actions, self._previous_rewards = actions, results.rewards.astype(np.float32)
        if anywhere(ended):
            self._keep_what_was_given()
            for lane in np.flatnonzero(ended).tolist():
                row = self._begin(lane)
                if row is not None:
                    write(self._observations, lane, row)
        return stepped

    def _begin(self, lane: int) -> Tree:
        """Reset a lane for its next episode; its first observation, or None where the lane rests."""
        reset = bool(self._resets[lane])  # still to be done, of an episode that failed before its first step
        while (turn := self.schedule(lane)) is not None:
            reset |= turn.reset
            self._set_task(lane, turn)
            self._episodes[lane], self._seeds[lane] = turn.number, turn.seed
            self._start(lane, active=True, reset=reset)
            try:
                return self._reset(lane)
            except EnvironmentFailed as failure:
                self._lose(lane, failure)
        self._start(lane, active=False, reset=True)
        return None

    def _start(self, lane: int, active: bool, reset: bool) -> None:
        self._first[lane], self._resets[lane], self._lengths[lane], self._active[lane] = True, reset, 0, active
        self._taken[lane] = []
        if reset:
            self._previous_actions[lane], self._previous_rewards[lane] = 0, 0

    def _set_task(self, lane: int, turn: Turn) -> None:
        if self._tasks is None and turn.task is not None and (self._episodes < 0).all():
            self._tasks = np.zeros(len(self.envs), dtype=np.int64)
        if (self._tasks is None) != (turn.task is None):
            raise ValueError(f"expected a task in every turn of a schedule or in none, got {turn} after others")
        if self._tasks is not None:
            self._tasks[lane] = turn.task

    def _reset(self, lane: int) -> Tree:
        if self.rebuild:
            self._renew(lane)
        try:
            observation, _ = self.envs[lane].reset(seed=int(self._seeds[lane]))
            row = self._row(observation)
        except Exception as error:
            raise self._failed(lane, f"raised {type(error).__name__} at reset: {error}") from error
        if not all(map(_finite, _leaves(row))):
            raise self._failed(lane, "gave an observation that is not finite at reset")
        return row

    def _no_actions(self) -> Array:
        if isinstance(self.action_space, spaces.Discrete):
            return np.zeros(len(self.envs), dtype=np.int64)
        return np.zeros((len(self.envs), *self.action_space.shape), dtype=np.float32)  # type: ignore[misc]  # a Box

    def _placed(self, leaf: torch.Tensor | None) -> torch.Tensor | None:
        # In memory of its own: products round otherwise where a file's bytes are not aligned as an allocation is.
        return None if leaf is None else leaf.to(self.device, copy=True)

    def _tensor(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._on_host else tensor.to(self.device)

    def _checked(self, chosen: Any) -> Array:
        """The policy's actions as arrays in the flat action space. Raises ValueError or PolicyFailed."""
        actions: Array = chosen.numpy(force=True) if isinstance(chosen, torch.Tensor) else np.asarray(chosen)
        space = self.action_space
        expected = self._previous_actions
        if actions.shape != expected.shape:
            raise ValueError(f"expected actions of shape {expected.shape} for {space}, the policy gave {actions.shape}")
        if isinstance(space, spaces.Discrete):
            numbers = actions.tolist()  # of so few Python is quicker than NumPy
            if actions.dtype.kind not in "iu" or min(numbers) < space.start or max(numbers) >= space.start + space.n:
                raise ValueError(f"expected actions in {space}, the policy gave {numbers}")
            return actions.astype(np.int64)
        if not np.isfinite(actions).all():
            raise PolicyFailed(f"the policy gave an action that is not finite: {actions.tolist()}")
        assert isinstance(space, spaces.Box)
        return np.minimum(np.maximum(actions.astype(np.float32), space.low), space.high)  # half of np.clip's time

    def _raw_actions(self, actions: Array) -> list[Any]:
        """One action per lane in the environment's own shape and type."""
        space = self.raw_action_space
        if isinstance(space, spaces.Discrete):
            return list(actions.tolist())
        assert isinstance(space, spaces.Box)
        return list(actions.reshape(-1, *space.shape).astype(space.dtype))

    def _not_finite(self, results: _Results) -> dict[int, EnvironmentFailed]:
        """Which lanes gave what is not finite, also those that were stepped before another one failed."""
        leaves = _leaves(results.observations)
        if all(map(math.isfinite, results.rewards.tolist())) and all(map(_finite, leaves)):
            return {}
        failed = {}
        for lane in (lane for lane, row in enumerate(results.rows) if row is not None):
            if not np.isfinite(results.rewards[lane]):
                failed[lane] = self._failed(lane, f"gave the reward {results.rewards[lane]}")
            elif not all(_finite(leaf[lane]) for leaf in leaves):
                failed[lane] = self._failed(lane, "gave an observation that is not finite")
        return failed

    def _failed(self, lane: int, what: str) -> EnvironmentFailed:
        return EnvironmentFailed(
            f"{_name(self.envs[lane])} {what} (episode {self._episodes[lane]}, reset seed {self._seeds[lane]}, "
            f"step {self._lengths[lane]})"
        )


class _Results:
    """What one step of the environments gave, by lane."""

    def __init__(self, lanes: int) -> None:
        self.rewards = np.zeros(lanes)
        self.terminated, self.truncated = np.zeros((2, lanes), dtype=np.bool_)
        self.rows: list[Tree] = [None] * lanes
        self.observations: Tree = None  # the rows together, `[lanes, …]`, once no lane has failed

    def forget(self, lane: int) -> None:
        """What a lane gave that failed."""
        self.rewards[lane], self.terminated[lane], self.truncated[lane] = 0, False, False
        self.rows[lane] = None


def _merged(lanes: list[int], old: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
    """A carry's leaf `[lanes, …]`, None without one: the new one in some lanes."""
    if old is None or new is None:
        return None
    merged = old.clone()
    merged[lanes] = new[lanes]
    return merged


def _leaves(observations: Tree) -> list[Array]:
    return list(observations.values()) if isinstance(observations, dict) else [observations]


def _finite(leaf: Array) -> bool:
    return leaf.dtype.kind != "f" or bool(np.isfinite(leaf).all())


def anywhere(lanes: Array) -> bool:
    """Whether a mask `[lanes]` has any True: of so few Python's list is ten times as quick as NumPy's `any`."""
    return True in lanes.tolist()


def stack_rows(rows: list[Any]) -> Tree:
    """Trees of arrays as one, with a leading axis: one observation per lane to leaves `[lanes, …]`."""
    if isinstance(rows[0], dict):
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return np.array(rows)  # a third of np.stack's time


def _name(env: Env) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _declares_limit(env: Env) -> bool:
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return True
    if env.spec is not None and env.spec.kwargs.get("max_num_frames_per_episode"):  # Atari games count frames
        return True
    return env.has_wrapper_attr("_max_episode_steps")


def _check_spaces(spec: Spec, env: Env) -> None:
    """Raise EnvironmentUnavailable unless the environment has the spaces that the data had."""
    wanted = spec.observation_space
    found = flat_space(env.observation_space, spec.observation_keys)
    if not alike(wanted, found):
        raise EnvironmentUnavailable(
            f"{_name(env)}: expected observations in {wanted}, as in the data, got {found}; "
            "check the environment's id, version and keyword arguments"
        )
    actions = flat_action_space(env.action_space)
    same_bounds = (
        not isinstance(actions, spaces.Box)
        or not isinstance(spec.action_space, spaces.Box)
        or (np.allclose(actions.low, spec.action_space.low) and np.allclose(actions.high, spec.action_space.high))
    )
    if not alike(spec.action_space, actions) or not same_bounds:
        raise EnvironmentUnavailable(
            f"{_name(env)}: expected actions in {spec.action_space}, as in the data, got {actions}; "
            "check the environment's id, version and keyword arguments"
        )
