"""Agents that pause: absent without a flag, and back later. The transition spans the pause, discounted step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.core.checkpoint import load, save
from herdbook.core.joint.networks import transition_views
from herdbook.core.joint.types import JointEpisode, JointSpec
from herdbook.datasets.joint.episodes import JointEpisodes, longest_pause
from herdbook.datasets.joint.minari import read_joint, save_joint
from herdbook.datasets.joint.replay import JointReplay
from herdbook.marl.independent_q import IndependentQ, IndependentQConfig, td_target
from herdbook.marl.maddpg import MADDPG, MADDPGConfig
from herdbook.marl.matd3 import MATD3, MATD3Config
from herdbook.marl.matd3_bc import MATD3BC, MATD3BCConfig
from herdbook.marl.qmix_cql import QMIXCQL, QMIXCQLConfig

AGENTS = ("a", "b", "c")
BOX = spaces.Box(-np.inf, np.inf, (5,), np.float32)
SPEC = JointSpec(
    agents=AGENTS,
    observation_spaces=dict.fromkeys(AGENTS, BOX),
    action_spaces=dict.fromkeys(AGENTS, spaces.Discrete(2)),
)
# b pauses at steps 1 and 2; c joins at step 1 and dies there.
ACTS = [(1, 1, 0), (1, 0, 1), (1, 0, 0), (1, 1, 0)]
PAID = [(0, 1, 0), (0, 2, 0), (0, 4, 0), (0, 8, 0)]
H = 0.5  # γ
VALUE = 1 + H * 2 + H**2 * 4 + H**3 * 8
"""Of b at step 0: it is paid in its pause, too."""


def episode(acts: Any = ACTS, paid: Any = PAID, dies: Any = ((3, 0), (3, 1), (1, 2)), spec: JointSpec = SPEC) -> Any:
    """One-hot observations of the step; actions are the first; `dies`: (step, agent) of each termination."""
    alive = np.array([*acts, (0,) * len(spec.agents)], bool)
    present = alive.copy()
    present[1:] |= alive[:-1]
    terminated = np.zeros_like(alive[:-1])
    terminated[tuple(np.transpose(dies))] = True
    actions = np.zeros((len(acts), 3), np.int64) if spec.discrete else np.zeros((len(acts), 3, 1), np.float32)
    return JointEpisode(
        observations={"a": np.eye(5, dtype=np.float32)[: len(alive), None] * present[..., None]},
        actions={"a": actions},
        rewards=np.array(paid, np.float64),
        terminated=terminated,
        truncated=np.zeros_like(terminated),
        alive=alive,
    )


def test_the_longest_pause_by_hand() -> None:
    def pause(*patterns: Any) -> int:
        several = []
        for pattern in patterns:
            last = [
                (int(np.flatnonzero(column)[-1]), i) for i, column in enumerate(np.transpose(pattern)) if any(column)
            ]
            several.append(episode(pattern, np.zeros((len(pattern), 3)), last))
        return longest_pause(JointEpisodes.from_episodes(several, SPEC))

    always, dying, joining = (1, 1, 1), (1, 1, 0), (1, 0, 1)
    assert pause([always, always]) == 0
    assert pause([always, dying]) == 0
    assert pause([dying, dying, dying, always]) == 0  # c joins late, and nobody pauses
    assert pause([dying], [joining]) == 0  # an episode ends between the two
    assert pause([always, joining, always]) == 1
    assert pause([always, dying, dying, joining]) == 2
    assert pause([dying, dying, joining, always]) == 3 - 1  # b pauses for 1 step, c is waited for during 2


@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_who_waits_by_hand(online: bool, tmp_path: Path) -> None:
    """A whole other episode comes first, so that windows must not reach into their neighbours."""
    steady = episode([(1, 1, 1)] * 3, np.zeros((3, 3)), [(2, 0), (2, 1), (2, 2)])
    replay = JointReplay(JointEpisodes.from_episodes([steady, episode(), steady], SPEC))
    if online:
        replay = JointReplay.online(SPEC, 10)
        for each in (steady, episode(), steady):
            replay.add(each)
        save(tmp_path / "state", replay.state_dict())
        replay = JointReplay.online(SPEC, 10)
        replay.load_state_dict(load(tmp_path / "state"))
    batch = replay.gather(torch.arange(3, 7), discount=H)
    assert batch.waiting is not None
    waits = [[False, False, True], [False, True, False], [False, True, False], [False, False, False]]
    assert batch.waiting.tolist() == waits
    assert batch.alive.tolist() == np.array(ACTS, bool).tolist()
    assert batch.in_game.tolist() == (np.array(ACTS, bool) | np.array(waits)).tolist()
    assert batch.next_alive.tolist() == [[True, False, True], [True, False, False], [True, True, False], [False] * 3]
    assert batch.discounts[:, 1].tolist() == [H, H, H, 0]
    segments = replay.gather_segments(torch.tensor([0, 3, 4, 7]), 4, discount=H)
    assert segments.waiting is not None
    assert segments.waiting.shape == segments.alive.shape
    assert segments.waiting[1].tolist() == waits
    assert segments.waiting[2].tolist() == [*waits[1:], [False] * 3]
    assert not segments.waiting[[0, 3]].any()


def test_without_a_pause_nothing_is_looked_for() -> None:
    """A late joiner is no pause."""
    joining = episode([(1, 1, 0), (1, 1, 1)], np.zeros((2, 3)), [(1, 0), (1, 1), (1, 2)])
    replay = JointReplay(JointEpisodes.from_episodes([joining], SPEC))
    batch = replay.gather(torch.arange(2), discount=H)
    assert batch.waiting is None
    assert batch.in_game is batch.alive
    assert replay.gather_segments(torch.tensor([0]), 2, discount=H).waiting is None
    assert "pause" not in JointReplay.online(SPEC, 10).state_dict()


def test_targets_span_a_pause() -> None:
    """Against a loop that looks for each agent's next own step."""
    random = np.random.default_rng(0)
    steps, agents, gamma = 9, 6, 0.7
    alive = random.random((steps, agents)) < 0.5
    rewards, next_q = random.normal(size=(2, steps, agents))
    later = np.flip(np.cumsum(np.flip(alive, 0), 0), 0) > 0
    ended = np.zeros_like(alive)
    for agent in range(0, agents, 2):  # the others are cut off at their last step
        ended[np.flatnonzero(alive[:, agent])[-1:], agent] = True
    arrays = (rewards, gamma * ~ended, next_q, later & ~alive)
    waiting = torch.from_numpy(arrays[3])
    got = td_target(*(torch.from_numpy(np.asarray(array)) for array in arrays[:3]), waiting).numpy()
    for t, agent in np.argwhere(alive):
        own = [s for s in range(t + 1, steps) if alive[s, agent]]
        last = own[0] - 1 if own else t
        value = sum(gamma ** (s - t) * rewards[s, agent] for s in range(t, last + 1))
        value += gamma ** (last + 1 - t) * (~ended[last, agent]) * next_q[last, agent]
        assert got[t, agent] == pytest.approx(value)
    plain = td_target(*(torch.from_numpy(np.asarray(array)) for array in arrays[:3]), None).numpy()
    assert np.array_equal(plain, rewards + arrays[1] * next_q)


FAST: dict[str, Any] = {"discount": H, "hidden_sizes": (32,), "batch_size": 8}
FORCED = replace(SPEC, masked=True)


def forced_replay() -> JointReplay:
    """The episode, where only the recorded actions are legal: the actions of the targets are those of the data."""
    mask = {"a": np.broadcast_to([True, False], (5, 3, 2))}
    return JointReplay(JointEpisodes.from_episodes([replace(episode(), action_mask=mask)], FORCED))


COPIED: dict[str, Any] = {
    **FAST,
    "lr": 1e-2,
    "target_period": 10,
    "tau": 1.0,
    "reward_scaling": False,
    "batch_size": 4,
}


@pytest.mark.parametrize(
    "algorithm",
    [
        lambda spec: IndependentQ(IndependentQConfig(**COPIED), spec, seeds=(0,), device="cpu"),
        lambda spec: QMIXCQL(QMIXCQLConfig(**COPIED, centralised=False, alpha=0.0), spec, seeds=(0,), device="cpu"),
    ],
    ids=["independent_q", "qmix_cql"],
)
def test_values_before_a_pause_of_individual_learners(algorithm: Any) -> None:
    learner, replay = algorithm(FORCED), forced_replay()
    random = [torch.Generator().manual_seed(0)]
    for _ in range(300):
        batch = learner.sample(replay, random)
        learner.update(batch)
    values = learner.q.over(learner.learner.parameters_of("agents", 0), batch)[0, :, 1, 0]
    assert values[0].item() == pytest.approx(VALUE, abs=0.1)
    assert values[3].item() == pytest.approx(8, abs=0.1)


ACTOR: dict[str, Any] = {**FAST, "actor_lr": 1e-9, "critic_lr": 1e-2, "tau": 0.1}


@pytest.mark.parametrize("kind", [(MADDPG, MADDPGConfig), (MATD3, MATD3Config)], ids=["maddpg", "matd3"])
def test_values_before_a_pause_of_centralised_critics(kind: Any) -> None:
    learner = kind[0](kind[1](**ACTOR, reward_scaling=False), FORCED, seeds=(0,), device="cpu")
    replay = forced_replay()
    random = [torch.Generator().manual_seed(0)]
    for _ in range(300):
        learner.update(learner.sample(replay, random))
    whole = replay.gather(torch.arange(4), discount=H)
    view, _ = transition_views(FORCED, whole, None)
    actions = learner.actions.vectors(whole.actions, whole.alive).unsqueeze(-3)
    values = learner.critic(learner.learner.parameters_of("critic", 0), view, actions)[:, 1].tolist()
    assert values == pytest.approx([VALUE, 2 + H * 4 + H**2 * 8, 4 + H * 8, 8], abs=0.3)


@pytest.mark.parametrize("centralised", [True, False])
def test_the_critics_of_matd3_bc_learn_in_a_pause(centralised: bool) -> None:
    boxes = dict.fromkeys(AGENTS, spaces.Box(-1, 1, (1,), np.float32))
    spec = replace(SPEC, action_spaces=boxes)
    learner = MATD3BC(MATD3BCConfig(**ACTOR, centralised=centralised), spec, seeds=(0,), device="cpu")
    replay = JointReplay(JointEpisodes.from_episodes([episode(spec=spec)], spec))
    batch = replay.gather(torch.tensor([1, 2]), discount=H)
    parameters, noise = learner.learner.params, torch.zeros(2, 3, 1)
    loss, told = learner.critic_objective(parameters, batch, noise)
    without, same = learner.critic_objective(parameters, replace(batch, waiting=None), noise)
    assert told["q"] == same["q"]
    assert loss.item() != pytest.approx(without.item())


def test_pauses_survive_minari(tmp_path: Path) -> None:
    data = JointEpisodes.from_episodes([episode()], SPEC)
    save_joint(data, "pauses/hand-v0", data_dir=tmp_path)
    again = read_joint("pauses/hand-v0", data_dir=tmp_path)
    assert again.fingerprint() == data.fingerprint()
