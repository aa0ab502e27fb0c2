"""Dumps of d3rlpy: `MDPDataset.dump` of version 1, `ReplayBuffer.dump` of version 2. The package is not needed.

Version 1 (Seno & Imai 2022, arXiv:2111.03788) concatenates the episodes: `observations`, `actions`, `rewards`,
`terminals` and `episode_terminals`, where an episode ends, terminated or not. Version 2 has one array per field and
episode (`observations_0`, …) with `terminated`; its first format, 2.0, one array per field over episodes of one length.
An episode has as many observations as actions, so d3rlpy never uses the last step of one that did not terminate; it is
dropped here too. Images are stored channels first.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces

from herdbook.core.types import Array
from herdbook.datasets.arrays import from_arrays, with_successors
from herdbook.datasets.episodes import DataError, Episodes

logger = logging.getLogger("herdbook")
_FIELDS = ("observations", "actions", "rewards", "terminated")


def is_d3rlpy(path: Path) -> bool:
    """True if an HDF5 file has the fields that only d3rlpy writes."""
    try:
        with h5py.File(path, "r") as file:
            return "discrete_action" in file or {"columns", "version"} <= set(file)
    except OSError:
        return False


def read_d3rlpy(path: str | Path, *, action_bounds: tuple[float, float] | None = None) -> Episodes:
    """Read a dump of d3rlpy, of version 1 or 2. Actions are discrete, lie in [-1, 1] or are clipped to `action_bounds`.

    Raises DataError for a damaged file, an observation of several parts, and data that do not satisfy `Episodes`.
    """
    source = str(path)
    try:
        with h5py.File(path, "r") as file:
            columns = _version_2(source, file) if "columns" in file else _version_1(file)
    except DataError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:  # h5py raises any of these
        raise DataError(f"{source}: expected a dump of d3rlpy, but it is damaged or lacks a field ({error})") from error
    observations, actions, rewards, terminated, truncated = columns
    steps = len(observations)
    if not steps or any(len(column) != steps for column in columns):
        lengths = ", ".join(str(len(column)) for column in columns[:4])
        raise DataError(f"{source}: expected {', '.join(_FIELDS)} of one length above 0, got {lengths}")
    space = None
    if observations.ndim == 4 and observations.dtype == np.uint8:
        observations = np.moveaxis(observations, 1, -1)
        space = spaces.Box(0, 255, observations.shape[1:], np.uint8)
    if actions.dtype.kind in "iu" and actions.size == steps:
        actions = actions.reshape(steps)
    complete = with_successors(source, observations, actions, rewards.reshape(steps), terminated, truncated)
    notes = () if len(complete.actions) == steps else (complete.note,)
    for note in notes:
        logger.warning("%s: %s", source, note)
    return from_arrays(
        complete.observations,
        complete.actions,
        complete.rewards,
        complete.terminated,
        complete.truncated,
        offsets=complete.offsets,
        observation_space=space,
        action_bounds=action_bounds,
        source=source,
        transforms=notes,
    )


def _version_1(file: h5py.File) -> tuple[Array, ...]:
    """Observations, actions, rewards, terminated and truncated over all steps."""
    observations, actions, rewards, terminals = (
        file[f][()] for f in ("observations", "actions", "rewards", "terminals")
    )
    terminated = terminals.reshape(-1) == 1
    ends = file["episode_terminals"][()].reshape(-1) == 1 if "episode_terminals" in file else terminated
    return observations, actions, rewards, terminated, ends & ~terminated


def _version_2(source: str, file: h5py.File) -> tuple[Array, ...]:
    """As `_version_1`."""
    if "observations_0_0" in file or ("total_size" in file and "observations" not in file):
        raise DataError(
            f"{source}: expected observations of one part, got several; load the dump with d3rlpy and give its arrays "
            "to herdbook.datasets.arrays.from_arrays, with a dict of the parts"
        )
    uniform = "total_size" in file  # version 2.0
    count = int(file["total_size" if uniform else "num_episodes"][()])
    episodes: list[list[Any]] = [
        [file[name][e] if uniform else file[f"{name}_{e}"][()] for e in range(count)] for name in _FIELDS
    ]
    lengths = [len(actions) for actions in episodes[1]]
    last = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros((2, sum(lengths)), dtype=np.bool_)
    terminated[last] = [bool(flag) for flag in episodes[3]]
    truncated[last] = ~terminated[last]
    return *(np.concatenate(column) for column in episodes[:3]), terminated, truncated
