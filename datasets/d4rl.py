"""D4RL datasets and reference scores, without the `d4rl` package.

The HDF5 layouts (Fu et al. 2020, arXiv:2004.07219) hold `observations`, `actions`, `rewards`, `terminals` and
`timeouts`, one row per step, with the episodes concatenated. The gym-mujoco files add `next_observations`. The antmaze,
maze2d and adroit files do not, so the last step of an episode has no successor. That step is dropped if the episode
timed out. It is kept if the episode terminated, because nothing is bootstrapped after a termination.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import Space, spaces

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.core.spaces import cast
from herdbook.core.types import Array
from herdbook.datasets.arrays import episode_offsets, infer_action_space, with_final_rows
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.layout import offsets_of
from herdbook.datasets.validation import bounded_actions, located

logger = logging.getLogger("herdbook")

D4RL_REFERENCES = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "antmaze": (0.0, 1.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
    "kitchen": (0.0, 4.0),
}
"""(random, expert) return of each environment family, from Fu et al. 2020, arXiv:2004.07219 (d4rl/infos.py)."""

_SOURCE = "D4RL (Fu et al. 2020)"
_MUJOCO = ("halfcheetah", "hopper", "walker2d", "ant")


def d4rl_references(name: str) -> ReferenceScores | None:
    """D4RL's reference scores for a D4RL dataset (`hopper-medium-v2`) or a Gymnasium MuJoCo environment (`Hopper-v5`).

    D4RL measured them in its own environments; their use for a Gymnasium environment is a convention, and the source
    says so. None for other names.
    """
    found = re.fullmatch(r"([A-Za-z0-9]+)-v(\d+)", name)
    if found and found[1].lower() in _MUJOCO:
        return _by_convention(ReferenceScores(*D4RL_REFERENCES[found[1].lower()], source=_SOURCE), name)
    if "-dense" in name:  # maze2d's dense rewards have other references
        return None
    for family, scores in D4RL_REFERENCES.items():
        if re.match(rf"{family}\b", name.lower()):
            return ReferenceScores(*scores, source=_SOURCE)
    return None


def _by_convention(scores: ReferenceScores, environment: str) -> ReferenceScores:
    return replace(scores, source=f"{_SOURCE}, applied to {environment} by convention")


_ENVIRONMENTS = {
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "pen": "AdroitHandPen-v1",
    "door": "AdroitHandDoor-v1",
    "hammer": "AdroitHandHammer-v1",
    "relocate": "AdroitHandRelocate-v1",
}
"""Current environments whose observations equal D4RL's; those of ant, antmaze, maze2d and kitchen have changed."""


def read_d4rl(
    path: str | Path,
    *,
    name: str | None = None,
    action_space: Space[Any] | None = None,
    action_bounds: tuple[float, float] | None = None,
) -> Episodes:
    """Read a D4RL HDF5 file; `infos/…` and `metadata/…` are ignored.

    `name` (default: the file's name, as in `hopper_medium-v2.hdf5`) selects the reference scores and the environment.
    Actions lie in [-1, 1] unless an `action_space` is given, or are clipped to `action_bounds`.

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
    return d4rl_episodes(data, name=name or path.stem, source=str(path), **chosen)


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
) -> Episodes:
    """Episodes from the arrays `[N, …]` of a D4RL dataset. The number of dropped steps is logged and recorded.

    name: the name of the dataset or of its file. A current environment with equal observations is recorded as the
    dataset's, and the reference scores are labelled as applied to it.
    """
    fields = ("observations", "actions", "rewards", "terminals", "timeouts")
    if missing := [field for field in fields if field not in data]:
        came = f"got {', '.join(sorted(data))}: {missing[0]} is missing"
        raise DataError(f"{source}: expected the fields {', '.join(fields)}; {came}")
    observations = _single(source, data, "observations")
    steps = len(observations)
    actions, rewards = np.asarray(data["actions"]), _column(source, data, "rewards", steps)
    terminated, truncated = _flags(source, {name: _column(source, data, name, steps) for name in _FLAGS})
    if len(actions) != steps or not steps:
        raise DataError(f"{source}: expected as many actions as observations and some, got {len(actions)} and {steps}")
    notes = []
    ends = terminated | truncated
    if "next_observations" in data:
        following = _single(source, data, "next_observations")
        jumps = _jumps(observations, following) & ~ends[:-1]
        if jumps.any():
            notes.append(f"{int(jumps.sum())} steps whose successor is not recorded next count as truncated")
            ends[:-1] |= jumps
        offsets = episode_offsets(ends)
        rows = with_final_rows(source, observations, following, offsets)
    else:
        offsets = episode_offsets(ends)
        last = offsets[1:] - 1
        cut = last[~terminated[last]]  # no successor: its observation becomes the final one of its episode
        lone = np.zeros(steps, dtype=np.bool_)
        lone[cut[np.isin(cut, offsets[:-1])]] = True  # an episode of one such step is dropped
        truncated[cut[~lone[cut]] - 1] = True
        repeats = np.ones(steps, dtype=np.int64)
        repeats[terminated] = 2  # the observation after a termination is never read: repeat the last one
        rows = np.repeat(observations, np.where(lone, 0, repeats), axis=0)
        kept = np.ones(steps, dtype=np.bool_)
        kept[cut] = False
        if not kept.any():
            cause = f"its {steps} steps are one-step episodes that timed out, without next_observations"
            raise DataError(f"{source}: the dataset is empty: {cause}")
        notes.append(f"dropped the last step of {len(cut)} episodes that did not terminate (no next_observations)")
        offsets = offsets_of(np.add.reduceat(kept.astype(np.int64), offsets[:-1]))
        offsets = offsets[np.append(True, np.diff(offsets) > 0)]
        actions, rewards, terminated, truncated = actions[kept], rewards[kept], terminated[kept], truncated[kept]
    for note in notes:
        logger.warning("%s: %s", source, note)
    space = infer_action_space(source, actions, action_bounds) if action_space is None else action_space
    space, actions, clipped = bounded_actions(source, space, actions, action_bounds)
    name = d4rl_name(name)
    references, environment = d4rl_references(name), _ENVIRONMENTS.get(name.split("-")[0].lower())
    if references is not None and environment is not None:
        references = _by_convention(references, environment)
    return Episodes(
        observations=rows,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        offsets=offsets,
        observation_space=spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32),
        action_space=space,
        environment=None if environment is None else EnvironmentSpec(id=environment),
        reference_scores=references,
        source=source,
        transforms=(*notes, *clipped),
    )


def d4rl_name(name: str) -> str:
    """D4RL's dataset name for a file name: hopper_medium-v2 → hopper-medium-v2, Ant_maze_… → antmaze-…."""
    return re.sub(r"^(ant-maze|mini-kitchen)", lambda m: _SPELLINGS[m[0].lower()], name.replace("_", "-"), flags=re.I)


_FLAGS = ("terminals", "timeouts")
_SPELLINGS = {"ant-maze": "antmaze", "mini-kitchen": "kitchen"}


def _single(source: str, data: Mapping[str, Any], field: str) -> Array:
    with located(source, field):
        return cast(data[field], np.float32)


def _flags(source: str, columns: Mapping[str, Array]) -> Iterator[Array]:
    starts = episode_offsets(np.any([column == 1 for column in columns.values()], axis=0))
    for name, column in columns.items():
        with located(source, name, starts):
            yield cast(column, np.bool_)


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
