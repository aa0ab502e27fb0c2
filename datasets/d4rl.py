"""D4RL datasets and reference scores, without the `d4rl` package.

The HDF5 layouts (Fu et al. 2020, arXiv:2004.07219) hold `observations`, `actions`, `rewards`, `terminals` and
`timeouts`, one row per step, with the episodes concatenated. The gym-mujoco files add `next_observations`. The antmaze,
maze2d and adroit files do not, so the last step of an episode has no successor. That step is dropped if the episode
timed out. It is kept if the episode terminated, because nothing is bootstrapped after a termination. Files of others
may lack `timeouts`.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from gymnasium import Space, spaces

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.core.spaces import cast
from herdbook.core.types import Array
from herdbook.datasets.arrays import Complete, episode_offsets, infer_action_space, with_final_rows, with_successors
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.validation import bounded_actions, located

logger = logging.getLogger("herdbook")


class Task(NamedTuple):
    """A family of D4RL's tasks as D4RL registers it."""

    minimum: float
    """Return of a random policy, scored 0."""
    maximum: float
    """Return of an expert, scored 100."""
    horizon: int
    """`max_episode_steps`, over which both returns were measured."""


TASKS = {
    "halfcheetah": Task(-280.178953, 12135.0, 1000),
    "hopper": Task(-20.272305, 3234.3, 1000),
    "walker2d": Task(1.629008, 4592.3, 1000),
    "ant": Task(-325.6, 3879.7, 1000),
    "antmaze-umaze": Task(0.0, 1.0, 700),
    "antmaze-eval-umaze": Task(0.0, 1.0, 700),
    "antmaze": Task(0.0, 1.0, 1000),
    "maze2d-open-v0": Task(0.01, 20.66, 150),
    "maze2d-umaze-v0": Task(0.94, 62.6, 150),
    "maze2d-medium-v0": Task(5.77, 85.14, 250),
    "maze2d-large-v0": Task(4.83, 191.99, 600),
    "maze2d-umaze-v1": Task(23.85, 161.86, 300),
    "maze2d-medium-v1": Task(13.13, 277.39, 600),
    "maze2d-large-v1": Task(6.7, 273.99, 800),
    "maze2d-eval-umaze-v1": Task(36.63, 141.4, 300),
    "maze2d-eval-medium-v1": Task(13.07, 204.93, 600),
    "maze2d-eval-large-v1": Task(16.4, 302.22, 800),
    "maze2d-open-dense-v0": Task(11.17817, 27.166538620695782, 150),
    "maze2d-umaze-dense-v0": Task(23.249793, 81.78995240126592, 150),
    "maze2d-medium-dense-v0": Task(19.47762, 96.03474232952358, 250),
    "maze2d-large-dense-v0": Task(27.38831, 215.09965671563742, 600),
    "maze2d-umaze-dense-v1": Task(68.537689, 193.66285642381482, 300),
    "maze2d-medium-dense-v1": Task(44.264742, 297.4552547777125, 600),
    "maze2d-large-dense-v1": Task(30.569041, 303.4857382709002, 800),
    "maze2d-eval-umaze-dense-v1": Task(56.95455, 178.21373133248397, 300),
    "maze2d-eval-medium-dense-v1": Task(42.28578, 235.5658957482388, 600),
    "maze2d-eval-large-dense-v1": Task(56.95455, 326.09647655082637, 800),
    "pen-human-longhorizon": Task(96.262799, 3076.8331017826877, 200),
    "hammer-human-longhorizon": Task(-274.856578, 12794.134825156867, 600),
    "relocate-human-longhorizon": Task(-6.425911, 4233.877797728884, 500),
    "door-human-longhorizon": Task(-56.512833, 2880.5693087298737, 300),
    "pen": Task(96.262799, 3076.8331017826877, 100),
    "hammer": Task(-274.856578, 12794.134825156867, 200),
    "relocate": Task(-6.425911, 4233.877797728884, 200),
    "door": Task(-56.512833, 2880.5693087298737, 200),
    "kitchen": Task(0.0, 4.0, 280),
    "flow-ring": Task(-165.22, 24.42, 500),
    "flow-merge": Task(118.67993, 330.03179, 750),
    "carla-lane": Task(-0.8503839912088142, 1023.5784385429523, 250),
    "carla-town": Task(-114.81579500772153, 2440.1772022247314, 1000),
    "minigrid-fourrooms": Task(0.01442, 2.89685, 50),
    "bullet-halfcheetah": Task(-1275.766996, 2381.6725, 1000),
    "bullet-hopper": Task(20.058972, 1441.8059623430963, 1000),
    "bullet-ant": Task(373.705955, 2650.495, 1000),
    "bullet-walker2d": Task(16.523877, 1623.6476303317536, 1000),
    "bullet-maze2d-open-v0": Task(8.75, 64.15, 150),
    "bullet-maze2d-umaze-v0": Task(32.46, 153.99, 300),
    "bullet-maze2d-medium-v0": Task(14.87, 238.05, 600),
    "bullet-maze2d-large-v0": Task(1.82, 285.92, 800),
}
"""D4RL's tasks by the first words of their names (Fu et al. 2020, arXiv:2004.07219; `d4rl/infos.py` and registrations).

The mazes of a point differ by version, and their names are whole. Of two words that fit, the earlier entry counts.
"""


class Today(NamedTuple):
    """A current environment of a D4RL family."""

    id: str
    horizon: int
    """Its registered `max_episode_steps`."""
    differences: str
    """Differences to D4RL's environment beside the time limit and the version of MuJoCo."""


_FALL = "the reward of 1 for standing is not given at a step that falls"
_PALM = "0.1 a step for each metre between palm and {}, which D4RL takes off"
TODAY = {
    "halfcheetah": Today("HalfCheetah-v5", 1000, ""),
    "hopper": Today("Hopper-v5", 1000, _FALL),
    "walker2d": Today("Walker2d-v5", 1000, f"{_FALL}; friction of the right foot 1.9, in D4RL 0.9"),
    "ant": Today("Ant-v5", 1000, f"observations of 105 numbers, in D4RL 111; contacts cost reward; {_FALL}"),
    "pen": Today("AdroitHandPen-v1", 200, "an episode goes on after the pen is dropped, where D4RL ends it"),
    "door": Today("AdroitHandDoor-v1", 200, f"the reward adds {_PALM.format('handle')}"),
    "hammer": Today("AdroitHandHammer-v1", 200, f"the reward adds {_PALM.format('hammer')}"),
    "relocate": Today("AdroitHandRelocate-v1", 200, f"the reward adds {_PALM.format('ball')}"),
}
"""Current environments of D4RL's families (Gymnasium 1.4, gymnasium-robotics 1.4); Ant-v5 has other observations."""

_SOURCE = "D4RL (Fu et al. 2020)"
_GYMNASIUM = re.compile(r"(HalfCheetah|Hopper|Walker2d|Ant)-v\d+")


def task_of(name: str) -> Task | None:
    """The task of a D4RL dataset (`pen-human-v1`) or of a Gymnasium MuJoCo environment (`Hopper-v5`), else None."""
    if _GYMNASIUM.fullmatch(name):
        return TASKS[name.partition("-")[0].lower()]
    if "maze2d-" in name:
        versioned = name if re.search(r"-v\d+$", name) else f"{name}-v0"
        return TASKS.get(versioned.replace("-sparse", ""))
    return next((task for family, task in TASKS.items() if f"{name}-".startswith(f"{family}-")), None)


def d4rl_references(name: str) -> ReferenceScores | None:
    """D4RL's reference scores for a D4RL dataset (`hopper-medium-v2`) or a Gymnasium MuJoCo environment (`Hopper-v5`).

    D4RL measured them in its own environments; their use for a Gymnasium environment is a convention, and the source
    says so. None for other names.
    """
    task = task_of(name)
    if task is None:
        return None
    scores = ReferenceScores(task.minimum, task.maximum, source=_SOURCE)
    return _by_convention(scores, name) if _GYMNASIUM.fullmatch(name) else scores


def environment_references(environment: EnvironmentSpec) -> ReferenceScores | None:
    """`d4rl_references` of an environment; None if its time limit is not D4RL's, over which they were measured."""
    task, limit = task_of(environment.id), environment.max_episode_steps
    return None if task is None or limit not in (None, task.horizon) else d4rl_references(environment.id)


def over_d4rl_horizon(
    source: str, environment: EnvironmentSpec | None, references: ReferenceScores | None
) -> EnvironmentSpec | None:
    """The environment, with D4RL's time limit if the references are D4RL's. A change is logged."""
    family = _family_of(environment, references)
    if environment is None or family is None:
        return environment
    horizon, own = TASKS[family].horizon, environment.max_episode_steps or TODAY[family].horizon
    if own == horizon:
        return environment
    logger.warning(
        "%s: its reference scores are D4RL's, of episodes of %d steps; %s is used with this limit, not with %d",
        *(source, horizon, environment.id, own),
    )
    return replace(environment, max_episode_steps=horizon)


def d4rl_differences(environment: EnvironmentSpec | None, references: ReferenceScores | None) -> str | None:
    """How a dataset's environment differs from D4RL's; None if its reference scores are not D4RL's."""
    if environment is None:
        known = references is not None and references.source == _SOURCE
        return "no current environment has these observations" if known else None
    family = _family_of(environment, references)
    if family is None:
        return None
    today, used = TODAY[family], environment.max_episode_steps or TODAY[family].horizon
    limit = "" if used == today.horizon else f"{used} steps an episode as in D4RL, {today.id} alone has {today.horizon}"
    return "; ".join(filter(None, [limit, today.differences, "another version of MuJoCo"]))


def _family_of(environment: EnvironmentSpec | None, references: ReferenceScores | None) -> str | None:
    """The family of D4RL's tasks whose current environment and references these are."""
    if environment is None or references is None:
        return None
    families = (family for family, today in TODAY.items() if today.id == environment.id)
    return next((f for f in families if _pair(references) == (TASKS[f].minimum, TASKS[f].maximum)), None)


def _pair(references: ReferenceScores) -> tuple[float, float]:
    return references.minimum, references.maximum


def _by_convention(scores: ReferenceScores, environment: str) -> ReferenceScores:
    return replace(scores, source=f"{_SOURCE}, applied to {environment} by convention")


def read_d4rl(
    path: str | Path,
    *,
    name: str | None = None,
    action_space: Space[Any] | None = None,
    action_bounds: tuple[float, float] | None = None,
    episode_steps: int | None = None,
) -> Episodes:
    """Read a D4RL HDF5 file; `infos/…` and `metadata/…` are ignored.

    `name` (default: the file's name, as in `hopper_medium-v2.hdf5`) selects the reference scores and the environment.
    Actions lie in [-1, 1] unless an `action_space` is given, or are clipped to `action_bounds`. `episode_steps` is that
    of `d4rl_episodes`.

    Raises DataError for a truncated or corrupt file, a missing field, and data that do not satisfy `Episodes`.
    """
    path = Path(path)
    wanted = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    try:
        with h5py.File(path, "r") as file:
            data = {field: file[field][()] for field in wanted if field in file}
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:  # h5py raises any of these
        raise DataError(
            f"{path}: expected a D4RL HDF5 file, but it is missing, truncated or corrupt ({error}); download it again"
        ) from error
    chosen: dict[str, Any] = {"action_space": action_space, "action_bounds": action_bounds}
    return d4rl_episodes(data, name=name or path.stem, source=str(path), episode_steps=episode_steps, **chosen)


def read_d4rl_package(name: str, *, action_bounds: tuple[float, float] | None = None) -> Episodes:
    """The dataset of a D4RL environment, through the `d4rl` package.

    Raises DataError, with the reason, if the package cannot be used: it needs MuJoCo 2.1.
    """
    try:
        gym = importlib.import_module("gym")
        importlib.import_module("d4rl")
        data = gym.make(name).get_dataset()
    except Exception as error:  # mujoco_py raises plain Exceptions, and old packages raise anything
        raise DataError(
            f"d4rl:{name}: the d4rl package cannot be used here ({type(error).__name__}: {error}); "
            "give the path of the dataset's .hdf5 file instead, which needs no package"
        ) from error
    return d4rl_episodes(data, name=name, source=f"d4rl:{name}", action_bounds=action_bounds)


def d4rl_episodes(
    data: Mapping[str, Any],
    *,
    name: str,
    source: str,
    action_space: Space[Any] | None = None,
    action_bounds: tuple[float, float] | None = None,
    episode_steps: int | None = None,
) -> Episodes:
    """Episodes from the arrays `[N, …]` of a D4RL dataset. The number of dropped steps is logged and recorded.

    name: the name of the dataset or of its file. A current environment with equal observations is recorded as the
    dataset's, and the reference scores are labelled as applied to it.
    episode_steps: where there are neither timeouts nor next observations, the length at which episodes were cut. The
    default is the limit of D4RL's task if the name is one's; otherwise an episode ends only at a terminal.
    """
    fields = ("observations", "actions", "rewards", "terminals")
    if missing := [field for field in fields if field not in data]:
        came = f"got {', '.join(sorted(data))}: {missing[0]} is missing"
        raise DataError(f"{source}: expected the fields {', '.join(fields)}; {came}")
    observations = _single(source, data, "observations")
    steps = len(observations)
    actions, rewards = np.asarray(data["actions"]), _column(source, data, "rewards", steps)
    flags = {name: _column(source, data, name, steps) for name in _FLAGS if name in data}
    terminated, *timeouts = _flags(source, flags)
    if len(actions) != steps or not steps:
        raise DataError(f"{source}: expected as many actions as observations and some, got {len(actions)} and {steps}")
    notes: list[str] = []
    task = task_of(d4rl_name(name))
    if episode_steps is not None and (timeouts or "next_observations" in data):
        raise DataError(
            f"{source}: expected no episode_steps, since the file shows where episodes end (timeouts or "
            f"next_observations), got {episode_steps}"
        )
    if timeouts:
        truncated = timeouts[0]
    elif "next_observations" in data:
        truncated = np.zeros_like(terminated)
        notes.append("no timeouts: an episode ends at a terminal, or where the next row is not the successor")
    else:
        limit = task.horizon if task is not None and episode_steps is None else episode_steps
        truncated = _assumed_timeouts(source, terminated, limit, notes)
    if "next_observations" in data:
        ends = terminated | truncated
        following = _single(source, data, "next_observations")
        jumps = _jumps(observations, following) & ~ends[:-1]
        if jumps.any():
            notes.append(f"{int(jumps.sum())} steps whose successor is not recorded next count as truncated")
            ends[:-1] |= jumps
        offsets = episode_offsets(ends)
        rows = with_final_rows(source, observations, following, offsets)
        complete = Complete(rows, actions, rewards, terminated, truncated, offsets, "")
    else:
        complete = with_successors(source, observations, actions, rewards, terminated, truncated)
        notes.append(complete.note)
    for note in notes:
        logger.warning("%s: %s", source, note)
    actions = complete.actions
    space = infer_action_space(source, actions, action_bounds) if action_space is None else action_space
    space, actions, clipped = bounded_actions(source, space, actions, action_bounds)
    name = d4rl_name(name)
    references, environment = d4rl_references(name), None
    today = TODAY.get(name.partition("-")[0])
    if task is not None and references is not None and today is not None and today.id != "Ant-v5":
        limit = None if task.horizon == today.horizon else task.horizon
        environment = EnvironmentSpec(id=today.id, max_episode_steps=limit)
        references = _by_convention(references, environment.id)
    return Episodes(
        observations=complete.observations,
        actions=actions,
        rewards=complete.rewards,
        terminated=complete.terminated,
        truncated=complete.truncated,
        offsets=complete.offsets,
        observation_space=spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32),
        action_space=space,
        environment=environment,
        reference_scores=references,
        source=source,
        transforms=(*notes, *clipped),
    )


def d4rl_name(name: str) -> str:
    """D4RL's dataset name for a file name: hopper_medium-v2 → hopper-medium-v2, Ant_maze_… → antmaze-…."""
    words = name.lower().replace("_", "-")
    for hosted, listed in _SPELLINGS.items():
        if f"{words}-".startswith(f"{hosted}-"):
            return listed + words[len(hosted) :]
    return words


_FLAGS = ("terminals", "timeouts")
_SPELLINGS = {
    "ant-maze-u-maze": "antmaze-umaze",
    "ant-maze": "antmaze",
    "mini-kitchen": "kitchen",
    "minigrid4rooms": "minigrid-fourrooms",
    "walker": "walker2d",
}


def _single(source: str, data: Mapping[str, Any], field: str) -> Array:
    with located(source, field):
        return cast(data[field], np.float32)


def _flags(source: str, columns: Mapping[str, Array]) -> Iterator[Array]:
    starts = episode_offsets(np.any([column == 1 for column in columns.values()], axis=0))
    for name, column in columns.items():
        with located(source, name, starts):
            yield cast(column, np.bool_)


def _assumed_timeouts(source: str, terminated: Array, episode_steps: int | None, notes: list[str]) -> Array:
    """Timeouts `[N]` every `episode_steps` since the last terminal, by default none; adds a note that says so."""
    lengths = np.diff(episode_offsets(terminated))
    if episode_steps is None:
        count = f"{len(lengths)} episodes, the longest of {lengths.max()} steps"
        notes.append(f"no timeouts: an episode ends at a terminal only ({count})")
        advice = "if they were cut at a limit, cut them there: herdbook data convert FILE ID --episode-steps LIMIT"
        logger.warning("%s: has %s; %s", source, count, advice)
        return np.zeros_like(terminated)
    if episode_steps < 1:
        raise DataError(f"{source}: expected episode_steps of 1 or more, got {episode_steps}")
    notes.append(f"no timeouts: episodes are cut after {episode_steps} steps")
    position = np.arange(len(terminated)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    truncated: Array = ((position + 1) % episode_steps == 0) & ~terminated
    return truncated


def _column(source: str, data: Mapping[str, Any], field: str, steps: int) -> Array:
    """The column `field`, `[N]` or `[N, 1]`, as `[N]`."""
    values = np.asarray(data[field])
    if values.size != steps or values.shape[:1] != (steps,):
        raise DataError(f"{source}: expected {field} for {steps} steps (as many as observations), got {values.shape}")
    return values.reshape(steps)


def _jumps(observations: Array, following: Array) -> Array:
    """`[N - 1]` bool: steps whose next observation differs from the next row by more than rounding."""
    if observations.shape != following.shape:
        return np.zeros(len(observations) - 1, dtype=np.bool_)  # `with_final_rows` raises
    difference = np.abs(following[:-1] - observations[1:])
    jumps: Array = (difference > 1e-4 * (1 + np.abs(observations[1:]))).any(axis=1)
    return jumps
