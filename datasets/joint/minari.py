"""Reading and writing datasets of many agents as Minari datasets.

Minari has no convention for many agents. This one opens in plain Minari:

- the observation and the action space are a Dict of the agents' own spaces;
- `rewards` is the sum over the agents; an episode terminates if it terminated for every agent still in it;
- `infos` has T+1 rows of `state`, and of dicts by agent: `alive` (the agent acts at this row), `action_mask`, and the
  outcome of the step before, `rewards`, `terminations` and `truncations` (zero in the first row);
- absent agents have zeros, or the first category where a part of the observation is discrete;
- metadata.json holds, under `herdbook_many_agents`, the environment, the versions of its packages, and the agents in
  the environment's order, which a Dict space does not keep (agent_10 comes before agent_2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.environments import EnvironmentSpec
from herdbook.core.joint.types import ByKind, JointSpec, Kind
from herdbook.core.spaces import flatten_batch, unflatten_batch
from herdbook.core.trees import indexed
from herdbook.core.types import Array, Tree, tree_map
from herdbook.datasets import storage, validation
from herdbook.datasets.joint.episodes import JointEpisodes, masked_kinds, present_rows
from herdbook.datasets.layout import place, row_offsets
from herdbook.datasets.learned import learned_metadata, read_learned
from herdbook.datasets.storage import JOINT, Column, Field, Stored
from herdbook.datasets.validation import DataError, located

FORMAT = 1
"""Version of the record in metadata.json."""
_RECORD: Mapping[str, tuple[type, ...]] = {
    "format": (int,),
    "agents": (list,),
    "turn_based": (bool,),
    "masked": (bool,),
    "state_space": (str, NoneType),
    "state": (bool,),  # it was recorded
    "environment": (dict, NoneType),
    "packages": (dict,),
}
_ENVIRONMENT: Mapping[str, tuple[type, ...]] = {
    "id": (str,),
    "kwargs": (dict,),
    "max_episode_steps": (int, NoneType),
    "gymnasium_json": (str, NoneType),
}
_OUTCOMES = {"rewards": np.float64, "terminations": np.bool_, "truncations": np.bool_}


# --- writing ---------------------------------------------------------------------------------------------------------


def save_joint(
    episodes: JointEpisodes, dataset_id: str, *, data_dir: str | Path | None = None, **metadata: Any
) -> Path:
    """Write `episodes` as a Minari dataset under `minari_root(data_dir)` and return its folder.

    It reads back to equal `JointEpisodes`. `metadata` is added to metadata.json (`description`, `author`, …).

    Raises DataError if the id is malformed or taken, an agent's name has a slash, or the environment's arguments are
    not JSON values.
    """
    check_storable(episodes.source, episodes.spec, episodes.environment)
    observation_space, action_space = _agents_spaces(episodes.spec)
    terminated, truncated = np.zeros((2, episodes.num_steps), dtype=np.bool_)
    last = episodes.offsets[1:] - 1
    terminated[last] = episodes.terminated_for_all()
    truncated[last] = ~terminated[last]
    return storage.write_dataset(
        dataset_id,
        data_dir=data_dir,
        observation_space=observation_space,
        action_space=action_space,
        offsets=episodes.offsets,
        columns=[
            *storage.space_columns(observation_space, "observations", _observations(episodes), extra=1),
            *storage.space_columns(action_space, "actions", _actions(episodes)),
            Column("rewards", episodes.rewards.sum(1)),
            Column("terminations", terminated),
            Column("truncations", truncated),
            *_infos(episodes),
        ],
        episode_metadata=episodes.episode_metadata,
        references=episodes.reference_scores,
        metadata={**learned_metadata(episodes.learned_by), **metadata, JOINT: _record(episodes)},
    )


def check_storable(source: str, spec: JointSpec, environment: EnvironmentSpec | None) -> None:
    """Raise DataError for an agent whose name has a slash, and for arguments of the environment that are not JSON."""
    if unfit := [agent for agent in spec.agents if "/" in agent]:
        raise DataError(f"{source}: expected agent names without a slash, got {unfit}; rename them")
    try:
        json.dumps(_environment_record(environment))
    except TypeError as error:
        raise DataError(f"{source}: expected JSON values as the environment's arguments: {error}") from error


def _environment_record(environment: EnvironmentSpec | None) -> dict[str, Any] | None:
    return None if environment is None else {name: getattr(environment, name) for name in _ENVIRONMENT}


def _agents_spaces(spec: JointSpec) -> tuple[spaces.Dict, spaces.Dict]:
    observations, actions = spec.observation_spaces, spec.action_spaces
    return spaces.Dict([(a, observations[a]) for a in spec.agents]), spaces.Dict([(a, actions[a]) for a in spec.agents])


def _observations(episodes: JointEpisodes) -> dict[str, Tree]:
    """Each agent's observations, in the structure of its own space."""
    by_agent = {}
    for kind in episodes.spec.kinds:
        for row, agent in enumerate(kind.agents):
            own = indexed(episodes.observations[kind.name], (slice(None), row))
            by_agent[agent] = unflatten_batch(episodes.spec.observation_spaces[agent], own)
    return by_agent


def _actions(episodes: JointEpisodes) -> dict[str, Array]:
    by_agent = {}
    for kind in episodes.spec.kinds:
        for row, agent in enumerate(kind.agents):
            shape = episodes.spec.action_spaces[agent].shape or ()
            by_agent[agent] = episodes.actions[kind.name][:, row].reshape(-1, *shape)
    return by_agent


def _infos(episodes: JointEpisodes) -> list[Column]:
    spec = episodes.spec
    columns = [Column(f"infos/alive/{agent}", episodes.alive[:, i], 1) for i, agent in enumerate(spec.agents)]
    for name, values in zip(_OUTCOMES, (episodes.rewards, episodes.terminated, episodes.truncated), strict=True):
        rows = np.zeros_like(episodes.alive, dtype=values.dtype)
        rows[episodes.step_rows + 1] = values
        columns += [Column(f"infos/{name}/{agent}", rows[:, i], 1) for i, agent in enumerate(spec.agents)]
    for kind, _ in masked_kinds(spec):
        assert episodes.action_mask is not None
        legal = episodes.action_mask[kind.name]
        columns += [Column(f"infos/action_mask/{agent}", legal[:, i], 1) for i, agent in enumerate(kind.agents)]
    if episodes.state is not None:
        assert spec.state_space is not None
        columns += storage.space_columns(spec.state_space, "infos/state", episodes.state, extra=1)
    return columns


def _record(episodes: JointEpisodes) -> dict[str, Any]:
    from minari.serialization import serialize_space

    spec = episodes.spec
    return {
        "format": FORMAT,
        "agents": list(spec.agents),
        "turn_based": spec.turn_based,
        "masked": spec.masked,
        "state_space": None if spec.state_space is None else serialize_space(spec.state_space),
        "state": episodes.state is not None,
        "environment": _environment_record(episodes.environment),
        "packages": dict(episodes.packages),
    }


# --- reading ---------------------------------------------------------------------------------------------------------


def read_joint(dataset: str | Path, *, data_dir: str | Path | None = None) -> JointEpisodes:
    """Read a dataset of many agents, by its folder or its id under `minari_root(data_dir)`. No environment is made.

    Raises DataError for a folder without such a dataset, unknown or damaged metadata, a truncated or corrupt file, and
    data that do not satisfy `JointEpisodes`.
    """
    folder, metadata = storage.read_metadata(dataset, data_dir=data_dir)
    source = str(metadata.get("dataset_id", folder))
    record = _checked_record(source, metadata.get(JOINT))
    spec = _read_spec(source, metadata, record)
    observation_space, action_space = _agents_spaces(spec)
    infos: dict[str, Any] = {"alive": np.bool_, **_OUTCOMES}
    wanted = [
        *storage.space_fields(observation_space, "observations", extra=1),
        *storage.space_fields(action_space, "actions"),
        storage.STEPS[0],
        *(Field(f"infos/{name}/{agent}", dtype, 1) for name, dtype in infos.items() for agent in spec.agents),
        *(Field(f"infos/action_mask/{agent}", np.bool_, 1) for kind, _ in masked_kinds(spec) for agent in kind.agents),
    ]
    state_space = spec.state_space if record["state"] else None
    if state_space is not None:
        wanted += storage.space_fields(state_space, "infos/state", extra=1)
    stored = storage.read_fields(source, folder, metadata, observation_space, wanted)
    alive = _per_agent(stored, "alive", spec)
    rewards, terminated, truncated = (_outcomes(source, stored, name, spec) for name in _OUTCOMES)
    episodes = JointEpisodes(
        observations=_read_observations(source, stored, spec, alive),
        actions=_read_actions(source, stored, spec),
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        alive=alive,
        offsets=stored.offsets,
        spec=spec,
        action_mask=_read_masks(source, stored, spec),
        state=None if state_space is None else stored.tree(state_space, "infos/state"),
        environment=joint_environment(source, metadata),
        packages=record["packages"],
        reference_scores=storage.reference_scores(source, metadata, None),
        episode_metadata=stored.episode_metadata,
        source=source,
        learned_by=read_learned(source, metadata),
    )
    team, total = stored.arrays["rewards"], episodes.rewards.sum(1)
    if not np.allclose(team, total):
        step = int(np.argmin(np.isclose(team, total)))
        raise DataError(
            f"{source}: expected rewards that are the sum of infos/rewards over the agents, {total[step]:g}, got "
            f"{team[step]:g} at {place(step, episodes.offsets)}; write the dataset again with save_joint"
        )
    return episodes


def joint_environment(source: str, metadata: Mapping[str, Any]) -> EnvironmentSpec | None:
    """The environment recorded in the metadata of many agents' data. Raises DataError for damaged metadata."""
    recorded = _checked_record(source, metadata.get(JOINT))["environment"]
    return None if recorded is None else EnvironmentSpec(**recorded)


def _checked_record(source: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        came = "none" if record is None else type(record).__name__
        raise DataError(f"{source}: expected {JOINT} in metadata.json, as datasets of many agents have, got {came}")
    if record.get("format") != FORMAT:
        came = f"{record.get('format')!r}; a newer herdbook reads newer formats"
        raise DataError(f"{source}: expected format {FORMAT} of {JOINT} in metadata.json, got {came}")
    _check_keys(source, JOINT, record, _RECORD)
    if record["environment"] is not None:
        _check_keys(source, f"{JOINT}['environment']", record["environment"], _ENVIRONMENT)
    for name, values in (("agents", record["agents"]), ("packages", record["packages"].values())):
        if not all(isinstance(value, str) for value in values):
            raise DataError(f"{source}: expected text in {JOINT}[{name!r}] in metadata.json, got {list(values)}")
    if record["state"] and record["state_space"] is None:
        raise DataError(f"{source}: expected {JOINT}['state_space'] in metadata.json, as it has the state, got none")
    return record


def _check_keys(source: str, name: str, record: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> None:
    if set(record) != set(types):
        raise DataError(f"{source}: expected {name} in metadata.json with {sorted(types)}, got {sorted(record)}")
    for key, allowed in types.items():
        if not isinstance(record[key], allowed):
            wanted = " or ".join(kind.__name__ for kind in allowed)
            raise DataError(f"{source}: expected {wanted} as {name}[{key!r}] in metadata.json, got {record[key]!r}")


def _read_spec(source: str, metadata: Mapping[str, Any], record: Mapping[str, Any]) -> JointSpec:
    found = {}
    for name in ("observation_space", "action_space"):
        space = storage.read_space(source, metadata.get(name))
        if not isinstance(space, spaces.Dict) or set(space.spaces) != set(record["agents"]):
            came = sorted(space.spaces) if isinstance(space, spaces.Dict) else space
            raise DataError(f"{source}: expected a Dict of the agents {record['agents']} as {name}, got {came}")
        found[name] = dict(space.spaces)
    try:
        spec = JointSpec(
            agents=tuple(record["agents"]),
            observation_spaces=found["observation_space"],
            action_spaces=found["action_space"],
            state_space=None if record["state_space"] is None else storage.read_space(source, record["state_space"]),
            masked=record["masked"],
            turn_based=record["turn_based"],
        )
        _ = spec.kinds  # raises for spaces without a flat view
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    return spec


def _per_agent(stored: Stored, name: str, spec: JointSpec) -> Array:
    """`[rows, N]`."""
    return np.stack([stored.arrays[f"infos/{name}/{agent}"] for agent in spec.agents], axis=1)


def _outcomes(source: str, stored: Stored, name: str, spec: JointSpec) -> Array:
    """The outcomes of each step, which are stored in the row after it. `[steps, N]`"""
    rows = _per_agent(stored, name, spec)
    firsts = row_offsets(stored.offsets)[:-1]
    if rows[firsts].any():
        number, agent = np.argwhere(rows[firsts])[0]
        path, came = f"infos/{name}/{spec.agents[agent]}", rows[firsts][number, agent]
        raise DataError(f"{source}: expected zero in the first row of {path}, got {came} in episode {number}")
    return np.delete(rows, firsts, axis=0)


def _read_observations(source: str, stored: Stored, spec: JointSpec, alive: Array) -> ByKind:
    row_starts = row_offsets(stored.offsets)
    present = present_rows(alive, np.delete(np.arange(len(alive)), row_starts[1:] - 1))
    by_kind: ByKind = {}
    for kind in spec.kinds:
        parts = []
        for agent in kind.agents:
            space, name = spec.observation_spaces[agent], f"observations of {agent}"
            with located(source, name, row_starts):
                flat = flatten_batch(space, stored.tree(space, f"observations/{agent}"))
            validation.check_shape(source, name, kind.observation_space, flat)
            parts.append(_zeros_where_absent(space, flat, present[:, spec.index[agent]]))
        by_kind[kind.name] = tree_map(lambda *leaves: np.stack(leaves, axis=1), *parts)
    return by_kind


def _zeros_where_absent(space: Space[Any], flat: Tree, present: Array) -> Tree:
    """Restore an absent agent's zeros, which are written as the first category of each discrete part."""
    zeros = tree_map(lambda leaf: np.zeros_like(leaf[:1]), flat)
    written = flatten_batch(space, unflatten_batch(space, zeros))

    def restored(leaf: Array, blank: Array) -> Array:
        if not blank.any():
            return leaf
        absent = ~present & (leaf == blank).all(1)
        return np.where(absent[:, None] & (blank != 0), 0, leaf)

    return tree_map(restored, flat, written)


def _read_actions(source: str, stored: Stored, spec: JointSpec) -> ByKind:
    by_kind: ByKind = {}
    for kind in spec.kinds:
        arrays = [stored.arrays[f"actions/{agent}"] for agent in kind.agents]
        if isinstance(kind.action_space, spaces.Box):
            arrays = [array.reshape(len(array), -1) for array in arrays]
        by_kind[kind.name] = _stacked(source, "actions", kind, kind.action_space, arrays)
    return by_kind


def _read_masks(source: str, stored: Stored, spec: JointSpec) -> ByKind | None:
    by_kind: ByKind = {}
    for kind, actions in masked_kinds(spec):
        arrays = [stored.arrays[f"infos/action_mask/{agent}"] for agent in kind.agents]
        by_kind[kind.name] = _stacked(source, "action_mask", kind, spaces.MultiBinary(actions), arrays)
    return by_kind or None


def _stacked(source: str, name: str, kind: Kind, space: Space[Any], arrays: Sequence[Array]) -> Array:
    """The arrays of a kind's agents, each in `space`, as `[rows, N_kind, …]`."""
    for agent, array in zip(kind.agents, arrays, strict=True):
        validation.check_shape(source, f"{name} of {agent}", space, array)
    return np.stack(arrays, axis=1)
