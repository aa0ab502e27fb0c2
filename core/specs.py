"""Specs as checkpoint state, so that a policy can be restored without its dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces

from herdbook.core.joint.types import JointSpec
from herdbook.core.spaces import select_keys
from herdbook.core.types import Array, Spec


def spec_state(spec: Spec) -> dict[str, Any]:
    """A Spec as dicts, lists and tensors. Raises TypeError for spaces that `space_state` does not support."""
    keys = spec.observation_keys
    raw = None if spec.raw_observation_space is None else select_keys(spec.raw_observation_space, keys)
    return {
        "observation_space": space_state(spec.observation_space),
        "action_space": space_state(spec.action_space),
        "raw_observation_space": None if raw is None else space_state(raw),
        "observation_keys": None if keys is None else list(keys),
        "observation_mean": _tensor(spec.observation_mean),
        "observation_std": _tensor(spec.observation_std),
        **({} if spec.raw_action_space is None else {"raw_action_space": space_state(spec.raw_action_space)}),
    }


def spec_from_state(state: Mapping[str, Any]) -> Spec:
    """The inverse of `spec_state`."""
    raw, keys, actions = state["raw_observation_space"], state["observation_keys"], state.get("raw_action_space")
    return Spec(
        observation_space=space_from_state(state["observation_space"]),
        action_space=space_from_state(state["action_space"]),
        raw_observation_space=None if raw is None else space_from_state(raw),
        observation_keys=None if keys is None else tuple(keys),
        observation_mean=_array(state["observation_mean"]),
        observation_std=_array(state["observation_std"]),
        raw_action_space=None if actions is None else space_from_state(actions),
    )


def joint_spec_state(spec: JointSpec) -> dict[str, Any]:
    """A JointSpec as dicts, lists and tensors. Raises TypeError for spaces that `space_state` does not support."""
    return {
        "agents": [
            [agent, space_state(spec.observation_spaces[agent]), space_state(spec.action_spaces[agent])]
            for agent in spec.agents
        ],
        "state_space": None if spec.state_space is None else space_state(spec.state_space),
        "masked": spec.masked,
        "turn_based": spec.turn_based,
    }


def joint_spec_from_state(state: Mapping[str, Any]) -> JointSpec:
    """The inverse of `joint_spec_state`."""
    return JointSpec(
        agents=tuple(agent for agent, _, _ in state["agents"]),
        observation_spaces={agent: space_from_state(space) for agent, space, _ in state["agents"]},
        action_spaces={agent: space_from_state(space) for agent, _, space in state["agents"]},
        state_space=None if state["state_space"] is None else space_from_state(state["state_space"]),
        masked=state["masked"],
        turn_based=state["turn_based"],
    )


def space_state(space: Space[Any]) -> dict[str, Any]:
    """A space as dicts, lists and tensors. Raises TypeError unless it is one of Gymnasium's array spaces."""
    if isinstance(space, spaces.Box):
        return {"type": "Box", "low": _tensor(space.low), "high": _tensor(space.high), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": _tensor(space.nvec), "start": _tensor(space.start)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[key, space_state(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_state(part) for part in space.spaces]}
    raise TypeError(f"expected one of Gymnasium's array spaces, got {space}")


def space_from_state(state: Mapping[str, Any]) -> Space[Any]:
    """The inverse of `space_state`."""
    kind = state["type"]
    if kind == "Box":
        return spaces.Box(state["low"].numpy(), state["high"].numpy(), dtype=np.dtype(state["dtype"]).type)
    if kind == "Discrete":
        return spaces.Discrete(state["n"], start=state["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(state["nvec"].numpy(), start=state["start"].numpy())
    if kind == "MultiBinary":
        return spaces.MultiBinary(state["shape"])
    if kind == "Dict":
        return spaces.Dict([(key, space_from_state(part)) for key, part in state["spaces"]])
    if kind == "Tuple":
        return spaces.Tuple([space_from_state(part) for part in state["spaces"]])
    raise ValueError(f"unknown space {kind!r}")


def _tensor(values: Array | None) -> torch.Tensor | None:
    return None if values is None else torch.from_numpy(np.ascontiguousarray(values))


def _array(values: torch.Tensor | None) -> Array | None:
    return None if values is None else values.numpy()
