"""`VectorRunner` steps environments with a policy, for evaluation, data collection and online learning.

Environments run in this process, one per lane, in lockstep. The runner itself resets each episode, with a seed of its
own. Unlike with a vector environment that resets itself, the final observation of an episode is kept, and there is no
false transition between two episodes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from herdbook.core.environments import Env, EnvironmentSource, EnvironmentUnavailable, check_reset, make_environment
from herdbook.core.notices import notice
from herdbook.core.random import derive
from herdbook.core.returned import failed_as, observed, reset_values, step_values
from herdbook.core.spaces import alike, executed, flat_action_space, flat_space, raw_actions, with_bounds
from herdbook.core.trees import write
from herdbook.core.types import Array, Carry, Policy, Spec, Step, Steps, Tree, Turn, in_spaces, to_numpy, tree_map

UNDECLARED_LIMIT = 10_000  # time limit of episodes if neither the environment nor the caller gives one
Schedule = Callable[[int], Turn | None]  # lane → its next episode, or None: the lane rests from now on


class EnvironmentFailed(RuntimeError):
    """An environment raised an exception, or returned NaN or an observation of the wrong shape."""


class PolicyFailed(RuntimeError):
    """A policy returned an action that is not finite."""


@dataclass(frozen=True, slots=True)
class VectorStep:
    """One step of every lane as arrays on the host, `[lanes, …]`. Lanes that are not `active` hold padding."""

    played: Steps  # observations in `Spec.observation_space`
    first: Array  # the first step of an episode
    cut: Array  # a first step whose preceding episode was abandoned after its last step, because its environment failed
    active: Array
    episodes: Array  # int64, the number of each lane's episode


def fixed_episodes(count: int, seed: int) -> Schedule:
    """Episodes 0 … count−1, assigned to lanes as they become free; episode i is reset with `seed + i`."""
    numbers = iter(range(count))

    def schedule(lane: int) -> Turn | None:
        number = next(numbers, None)
        return None if number is None else Turn(number, seed + number)

    return schedule


class EndlessEpisodes:
    """An infinite schedule: the k-th episode of a lane is reset with a seed derived from (*entropy, lane, k)."""

    def __init__(self, *entropy: int) -> None:
        self.entropy = entropy
        self.begun: dict[int, int] = {}  # lane → number of episodes so far

    def __call__(self, lane: int) -> Turn:
        number, k = sum(self.begun.values()), self.begun.get(lane, 0)
        self.begun[lane] = k + 1
        return Turn(number, derive(*self.entropy, lane, k) % 2**31)  # some environments take a C int


class VectorRunner:
    """Steps several environments with a policy.

    Args:
        source: The environment, as `make_environment` takes it.
        num_envs: The number of lanes.
        schedule: Assigns each lane's next episode: its seed, its task, and whether the policy's carry is reset. If it
            is not, the first step also sees the action and reward of the previous episode's last step. A lane's first
            episode always starts with a fresh carry.
        spec: The spec of the policy. Its spaces are checked against the environment's, and its `observation_keys` are
            used. None uses the environment's own spaces.
        max_steps: Truncate episodes after so many steps, in addition to the environment's own limit.
        device: The device of the policy's tensors.
        on_failure: Called when an environment fails in an episode. The episode is then abandoned, the environment made
            again, and the lane's next episode begins, unless the call raises. None raises the failure.

    An environment whose `reset(seed)` does not determine its state is made again for every episode, with a notice.

    Raises:
        EnvironmentUnavailable: The environment cannot be made, or its spaces differ from those of `spec`.
        EnvironmentFailed: It raised an exception in its first steps.
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
        self.action_space = _bounded(flat_action_space(env.action_space), spec)
        self.limit_declared = max_steps is not None or _declares_limit(env)
        self.max_steps = max_steps or (None if self.limit_declared else UNDECLARED_LIMIT)
        try:
            self.rebuild = not check_reset(env)
        except Exception as error:
            raise EnvironmentFailed(f"{_name(env)} {failed_as(error, ' in its first steps')}") from error
        if self.rebuild:
            notice(_rebuilding(env))
        self._actor: Policy | None = None  # as it was given
        self._numbered: Policy
        self._carry: Carry = None
        self._first, self._resets = np.ones((2, num_envs), dtype=np.bool_)
        self._cut = self._none = np.zeros(num_envs, dtype=np.bool_)
        self._none.flags.writeable = False  # shared by many results
        self._news = True  # some lane starts or has abandoned an episode
        self._taken: list[list[Array]] = [[] for _ in range(num_envs)]  # actions of each lane's current episode
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._episodes = np.full(num_envs, -1, dtype=np.int64)
        self._seeds = np.zeros(num_envs, dtype=np.int64)
        self._tasks: Array | None = None
        self._active = np.zeros(num_envs, dtype=np.bool_)
        self._previous_actions = self._no_actions()
        self._previous_rewards = np.zeros(num_envs, dtype=np.float32)
        begun = [self._begin(lane) for lane in range(num_envs)]
        padding = next((row for row in begun if row is not None), None)
        self._observations: Tree = None if padding is None else _padded(begun, padding)

    @property
    def active(self) -> bool:
        """True if any lane is in an episode."""
        return bool(self._active.any())

    def step(self, policy: Policy, generator: torch.Generator | None = None, *, keep_carry: bool = False) -> VectorStep:
        """Step every active lane once, and start the next episode in lanes whose episode ended.

        A policy other than that of the last call starts with a fresh carry, or continues with the last carry if
        `keep_carry`, as the same agent with new parameters does.

        Raises:
            EnvironmentFailed: An environment raised or returned NaN; the message names episode, seed and step.
            PolicyFailed: The policy returned an action that is not finite.
            ValueError: The policy's actions have the wrong shape or type.
        """
        if policy is not self._actor:
            fresh = self._carry is None or not keep_carry
            self._actor, self._carry = policy, policy.initial(len(self.envs)) if fresh else self._carry
            self._numbered = in_spaces(policy, self.observation_space, self.action_space)
        policy, before = self._numbered, self._carry
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
        """The policy's actions for all lanes, and its next carry."""
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
        """Step some lanes and write to `results`; returns the lanes that failed."""
        failed: dict[int, EnvironmentFailed] = {}
        raw = self._raw_actions(actions)
        for lane in lanes:
            try:
                observation, reward, terminated, truncated = step_values(self.envs[lane].step(raw[lane]))
                results.rewards[lane], results.terminated[lane], results.truncated[lane] = reward, terminated, truncated
                results.rows[lane] = self._row("step", observation)
            except Exception as error:
                failed[lane] = self._failed(lane, failed_as(error))
                failed[lane].__cause__ = error
        if failed:
            return failed
        padding = next((row for row in results.rows if row is not None), None)  # None: every lane rests
        results.observations = self._observations if padding is None else _padded(results.rows, padding)
        return self._not_finite(results)

    def _give_up(self, lane: int, failure: EnvironmentFailed) -> None:
        """Abandon the lane's episode after its last step and begin the next one. Raises without `on_failure`."""
        self._lose(lane, failure)
        self._copy_shared_arrays()
        self._cut[lane] |= self._lengths[lane] > 0
        row = self._begin(lane)
        if row is not None:
            write(self._observations, lane, row)

    def _copy_shared_arrays(self) -> None:
        """Copy arrays that policies and callers hold, before a lane's next episode changes them."""
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
        with suppress(Exception):  # a broken environment may fail to close
            self.envs[lane].close()
        self.envs[lane] = make_environment(self.source)

    def state_dict(self) -> dict[str, Any]:
        """Seeds and actions of all unfinished episodes, which `load_state_dict` replays, and the policy's carry."""
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
        """Restore a `state_dict`: reset every lane with its episode's seed and replay its actions.

        An episode whose replay ends in another observation is abandoned, as after a failure of the environment. Raises
        ValueError if the number of environments differs.
        """
        if len(state["actions"]) != len(self.envs):
            raise ValueError(f"expected the state of {len(self.envs)} environments, got {len(state['actions'])}")
        others = {name: value for name, value in state.items() if name not in ("actions", "carry", "tasks")}
        saved, tasks = tree_map(np.copy, to_numpy(others)), state.get("tasks")
        self._episodes, self._seeds, self._active = saved["episodes"], saved["seeds"], saved["active"]
        self._cut, self._observations = saved["cut"], saved["observations"]
        self._previous_rewards = saved["previous_rewards"]
        self._first = np.array([actions is None for actions in state["actions"]]) | ~self._active
        self._resets = saved.get("reset", self._first.copy())  # older versions do not store it
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
                self._give_up(lane, self._failed(lane, failed_as(error, " when replayed")))
                continue
            seen = [leaf[lane] for leaf in _leaves(self._observations)]
            if not all(map(np.array_equal, _leaves(row), seen)):
                self._give_up(lane, self._failed(lane, "came to another observation when its actions were replayed"))

    def _replay(self, lane: int, taken: list[Array]) -> Tree:
        observation = reset_values(self.envs[lane].reset(seed=int(self._seeds[lane])))
        for action in self._raw_actions(np.stack(taken)) if taken else ():
            observation = step_values(self.envs[lane].step(action))[0]
        return self._row("step", observation)

    def _row(self, at: str, observation: Any) -> Tree:
        """A copy of an observation, which environments may write over, flattened to `Spec.observation_space`."""
        return observed(at, self.raw_observation_space, self.observation_space, observation, self.observation_keys)

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _advance(self, actions: Array, results: _Results) -> VectorStep:
        active = self._active
        terminated, truncated, next_observations = results.terminated, results.truncated, results.observations
        self._lengths += active
        if self.max_steps is not None:
            over = active & (self._lengths >= self.max_steps) & ~(terminated | truncated)
            if over.any() and not self.limit_declared:
                notice(no_limit(_name(self.envs[0]), UNDECLARED_LIMIT))
            truncated |= over
        ended = terminated | truncated
        first = reset = cut = self._none
        if self._news:
            first, reset, cut = self._first & active, self._resets & active, self._cut & active
        played = Steps(
            self._observations, actions, results.rewards, terminated, truncated, next_observations, reset, self._tasks
        )
        stepped = VectorStep(played, first, cut, active, self._episodes)
        for taken, action in zip(self._taken, actions, strict=True):
            taken.append(action)
        self._observations = next_observations
        if self._news:
            self._first = self._resets = ~active  # resting lanes count as reset
            self._cut, self._news = self._none, False
        self._previous_actions, self._previous_rewards = actions, results.rewards.astype(np.float32)
        if anywhere(ended):
            self._copy_shared_arrays()
            for lane in np.flatnonzero(ended).tolist():
                row = self._begin(lane)
                if row is not None:
                    write(self._observations, lane, row)
        return stepped

    def _begin(self, lane: int) -> Tree:
        """Reset a lane for its next episode and return the first observation, or None if the lane rests."""
        reset = bool(self._resets[lane])  # still due if the previous episode failed before its first step
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
            row = self._row("reset", reset_values(self.envs[lane].reset(seed=int(self._seeds[lane]))))
        except Exception as error:
            raise self._failed(lane, failed_as(error, " at reset")) from error
        if not all(map(_finite, _leaves(row))):
            raise self._failed(lane, "gave an observation that is not finite at reset")
        return row

    def _no_actions(self) -> Array:
        if isinstance(self.action_space, spaces.Discrete):
            return np.zeros(len(self.envs), dtype=np.int64)
        return np.zeros((len(self.envs), *self.action_space.shape), dtype=np.float32)  # type: ignore[misc]  # a Box

    def _placed(self, leaf: torch.Tensor | None) -> torch.Tensor | None:
        # A copy has the usual alignment, which a file's bytes lack and on which rounding in matrix products depends.
        return None if leaf is None else leaf.to(self.device, copy=True)

    def _tensor(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._on_host else tensor.to(self.device)

    def _checked(self, chosen: Any) -> Array:
        """Convert the policy's actions to an array in the flat action space. Raises ValueError or PolicyFailed."""
        actions: Array = chosen.numpy(force=True) if isinstance(chosen, torch.Tensor) else np.asarray(chosen)
        space = self.action_space
        expected = self._previous_actions
        if actions.shape != expected.shape:
            raise ValueError(f"expected actions of shape {expected.shape} for {space}, the policy gave {actions.shape}")
        if isinstance(space, spaces.Discrete):
            numbers = actions.tolist()  # faster than NumPy for few lanes
            if actions.dtype.kind not in "iu" or min(numbers) < space.start or max(numbers) >= space.start + space.n:
                raise ValueError(f"expected actions in {space}, the policy gave {numbers}")
            return actions.astype(np.int64)
        if not np.isfinite(actions).all():
            raise PolicyFailed(f"the policy gave an action that is not finite: {actions.tolist()}")
        assert isinstance(space, spaces.Box)
        clipped = np.minimum(np.maximum(actions.astype(np.float32), space.low), space.high)  # twice as fast as np.clip
        raw = self.raw_action_space
        assert isinstance(raw, spaces.Box)
        return executed(raw, clipped)

    def _raw_actions(self, actions: Array) -> list[Any]:
        """One action per lane in the environment's shape and type."""
        space = self.raw_action_space
        if isinstance(space, spaces.Discrete):
            return list(actions.tolist())
        assert isinstance(space, spaces.Box)
        return list(raw_actions(space, actions))

    def _not_finite(self, results: _Results) -> dict[int, EnvironmentFailed]:
        """Lanes with a non-finite reward or observation, including lanes that stepped before another lane failed."""
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
        episode, seed, step = self._episodes[lane], self._seeds[lane], self._lengths[lane]
        return EnvironmentFailed(f"{_name(self.envs[lane])} {what} (episode {episode}, reset seed {seed}, step {step})")


class _Results:
    """Results of one step of the environments, by lane."""

    def __init__(self, lanes: int) -> None:
        self.rewards = np.zeros(lanes)
        self.terminated, self.truncated = np.zeros((2, lanes), dtype=np.bool_)
        self.rows: list[Tree] = [None] * lanes
        self.observations: Tree = None  # the stacked rows, `[lanes, …]`, once no lane fails

    def forget(self, lane: int) -> None:
        """Clear the results of a failed lane."""
        self.rewards[lane], self.terminated[lane], self.truncated[lane] = 0, False, False
        self.rows[lane] = None


def _merged(lanes: list[int], old: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
    """A leaf `[lanes, …]` of a carry, with new values in some lanes."""
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
    """True if a mask `[lanes]` is True anywhere. For few lanes, a list is ten times as fast as NumPy's `any`."""
    return True in lanes.tolist()


def stack_rows(rows: list[Any]) -> Tree:
    """Stack one tree of arrays per lane to leaves `[lanes, …]`."""
    if isinstance(rows[0], dict):
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return np.array(rows)  # three times as fast as np.stack


def _padded(rows: list[Tree], padding: Tree) -> Tree:
    return stack_rows([padding if row is None else row for row in rows])


def no_limit(name: str, limit: int) -> str:
    """The notice for an environment whose episode was cut although it declares no limit."""
    return (
        f"{name} declares no time limit; its episodes are cut after {limit} steps: choose another limit with "
        "--max-steps (max_steps in Python)"
    )


def _rebuilding(env: Env) -> str:
    """The notice for an environment that a reset does not bring back to the same state."""
    text, wrapper = f"{_name(env)}: reset(seed) does not determine the state, so it is rebuilt for each episode", env
    options = {NormalizeObservation: "--normalise-observations", NormalizeReward: "--scale-rewards"}
    while isinstance(wrapper, gymnasium.Wrapper):
        if type(wrapper) in options:
            return (
                f"{text}; the running statistics of its {type(wrapper).__name__} begin anew in each episode and are "
                f"kept nowhere: leave the wrapper out and use {options[type(wrapper)]}, if the algorithm has it"
            )
        wrapper = wrapper.env
    return text


def _name(env: Env) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _declares_limit(env: Env) -> bool:
    spec = env.spec
    if spec is not None and (spec.max_episode_steps is not None or spec.kwargs.get("max_num_frames_per_episode")):
        return True  # Atari games count frames
    return env.has_wrapper_attr("_max_episode_steps")


def _bounded(space: Space[Any], spec: Spec | None) -> Space[Any]:
    """An environment's flat action space, with the spec's bounds where it has none."""
    wanted = None if spec is None else spec.action_space
    if isinstance(space, spaces.Box) and isinstance(wanted, spaces.Box) and space.shape == wanted.shape:
        return with_bounds(space, wanted.low, wanted.high)
    return space


def _check_spaces(spec: Spec, env: Env) -> None:
    """Raise EnvironmentUnavailable if the environment's spaces differ from those of the data."""
    advice = "check the environment's id, version and keyword arguments"
    wanted, found = spec.observation_space, flat_space(env.observation_space, spec.observation_keys)
    if not alike(wanted, found):
        expected = f"expected observations in {wanted}, as in the data"
        raise EnvironmentUnavailable(f"{_name(env)}: {expected}, got {found}; {advice}")
    wanted, found = spec.action_space, _bounded(flat_action_space(env.action_space), spec)
    same = alike(wanted, found)
    if same and isinstance(wanted, spaces.Box) and isinstance(found, spaces.Box):
        same = np.allclose(found.low, wanted.low) and np.allclose(found.high, wanted.high)
    if not same:
        raise EnvironmentUnavailable(
            f"{_name(env)}: expected actions in {wanted}, as in the data, got {found}; {advice}"
        )
