"""Turn-based games as rounds: from an episode of single turns to one in which every agent acts at each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from herdbook.core.joint.types import JointEpisode, JointSpec, Kind
from herdbook.core.trees import indexed, mapped
from herdbook.core.types import Array, Tree


def in_rounds(spec: JointSpec, turns: JointEpisode) -> JointEpisode:
    """Convert an episode of single turns to rounds: step k is the k-th turn of every agent.

    An agent's rewards from its k-th turn up to its next one are summed into step k. Step 0 also gets the rewards before
    its first turn, and all rewards of an agent without a turn. The row after an agent's last turn holds its final
    observation. Row k holds the state at the earliest k-th turn of any agent.
    """
    count, agents = len(turns), len(spec.agents)
    acts = [np.flatnonzero(turns.alive[:, agent]) for agent in range(agents)]
    length = max(1, *map(len, acts))
    rewards = np.zeros((length, agents))
    terminated, truncated = np.zeros((2, length, agents), dtype=np.bool_)
    looks = np.full((length + 1, agents), -1)  # the row of `turns` with an agent's k-th observation
    plays = np.full((length, agents), -1)
    for agent, turn in enumerate(acts):
        step = np.maximum(np.searchsorted(turn, np.arange(count), side="right") - 1, 0)
        np.add.at(rewards[:, agent], step, turns.rewards[:, agent])
        left = turns.terminated[:, agent] | turns.truncated[:, agent]
        terminated[step[left], agent] = turns.terminated[left, agent]
        truncated[step[left], agent] = turns.truncated[left, agent]
        seen = np.concatenate([turn, np.flatnonzero(left) + 1])
        looks[: len(seen), agent], plays[: len(turn), agent] = seen, turn
    alive = np.concatenate([plays >= 0, np.zeros((1, agents), dtype=np.bool_)])
    states = np.where(alive, looks, count).min(1)

    def rounds(tree: Tree, rows: Array, kind: Kind, blank: Any) -> Tree:
        rows = rows[:, [spec.index[agent] for agent in kind.agents]]

        def taken(leaf: Array) -> Array:
            table: Array = leaf[rows, np.arange(len(kind.agents))]
            table[rows < 0] = blank
            return table

        return mapped(taken, tree)

    masks, actions = turns.action_mask, turns.actions
    return replace(
        turns,
        observations={k.name: rounds(turns.observations[k.name], looks, k, 0) for k in spec.kinds},
        actions={k.name: rounds(actions[k.name], plays, k, getattr(k.action_space, "start", 0)) for k in spec.kinds},
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        alive=alive,
        action_mask=masks and {k.name: rounds(masks[k.name], looks, k, True) for k in spec.kinds if k.name in masks},
        state=indexed(turns.state, states),
    )
