"""DAC: absorbing states by hand, values at the fixed point, rows and weights, its reward, and what it refuses."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES
from gymnasium import spaces
from torch import Tensor

from herdbook.core import checkpoint
from herdbook.core.types import Spec, Step, Steps, Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.absorbing import Rows, absorbing_rows, absorbing_share, extended, extended_space, with_indicator
from herdbook.irl.dac import DAC, DACConfig, Draws
from herdbook.irl.rewards import load_reward
from herdbook.online.sac import SACConfig
from herdbook.online.td3 import TD3Config

STATES, ACTIONS = spaces.Box(-9, 9, (2,)), spaces.Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32))
SMALL: dict[str, Any] = {"hidden_sizes": (12, 12), "batch_size": 16, "warmup_steps": 0}
AGENTS: dict[str, Any] = {"td3": TD3Config(**SMALL), "sac": SACConfig(**SMALL)}
NEVER = 1e-30  # a learning rate that moves no parameter


def recorded(lengths: tuple[int, ...], terminated: tuple[bool, ...], seed: int = 0) -> Episodes:
    rng = np.random.default_rng(seed)
    return Episodes.from_episodes(
        [
            {
                "observations": rng.normal(size=(length + 1, 2)).astype(np.float32),
                "actions": rng.uniform(ACTIONS.low, ACTIONS.high, (length, 2)).astype(np.float32),
                "rewards": np.zeros(length),
                "terminated": over,
                "truncated": not over,
            }
            for length, over in zip(lengths, terminated, strict=True)
        ],
        observation_space=STATES,
        action_space=ACTIONS,
    )


EXPERT, PLAYED = recorded((6, 4, 5), (True, True, False)), recorded((3, 7, 5), (True, False, True), seed=1)


def small(agent: str = "td3", changes: dict[str, Any] | None = None, **fields: Any) -> DACConfig:
    inner = replace(AGENTS[agent], **(changes or {}))
    return DACConfig(**{"agent": agent, agent: inner, "hidden_sizes": (12,), **fields})


def make(config: DACConfig | None = None, expert: Episodes = EXPERT, **setup: Any) -> DAC:
    return DAC(config or small(), expert.spec(), demonstrations=ReplayBuffer(expert), **setup)


def generator(seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


def steps(*rows: tuple[float, float, float]) -> Transitions:
    """Steps of one-dimensional states and actions, in the units of the networks: s, a and the discount; s′ = s + 1."""
    observations, actions, discounts = torch.tensor(rows).T
    return Transitions(
        observations[:, None], actions[:, None], torch.ones(len(rows)), discounts, observations[:, None] + 1
    )


# --- absorbing states by hand -----------------------------------------------------------------------------------------


def test_terminated_steps_lead_to_the_absorbing_state_and_absorbing_rows_stay_there() -> None:
    batch = extended(steps((3, 0.5, 0.9), (4, -0.5, 0.0), (5, 1.0, 0.9)), torch.tensor([False, False, True]), 0.9)
    assert batch.observations.tolist() == [[3, 0], [4, 0], [0, 1]]
    assert batch.actions.tolist() == [[0.5], [-0.5], [0]]
    assert batch.next_observations.tolist() == [[4, 0], [0, 1], [0, 1]]
    assert batch.discounts.tolist() == pytest.approx([0.9] * 3)  # no (1 − terminated) in the target


def test_a_truncated_step_leads_to_its_next_state() -> None:
    replay = ReplayBuffer(recorded((2,), (False,)))
    batch = replay.gather(torch.tensor([1]), discount=0.9)
    extension = extended(batch, torch.tensor([False]), 0.9)
    assert torch.equal(extension.next_observations, F.pad(batch.next_observations, (0, 1)))


@pytest.mark.parametrize(("terminated", "absorbing"), [(0.0, 0.0), (0.1, 1 / 11), (1.0, 0.5)])
def test_the_share_of_absorbing_rows_by_hand(terminated: float, absorbing: float) -> None:
    """One absorbing transition for each termination: 1 of 11 if an episode has 10 steps."""
    assert absorbing_share(terminated) == pytest.approx(absorbing)


def test_the_indicator_is_added_to_the_space_of_vectors_alone() -> None:
    space = extended_space(STATES, "dac")
    assert space.contains(np.array([9, -9, 1], np.float32)) and not space.contains(np.array([0, 0, 2], np.float32))
    with pytest.raises(ValueError, match=r"dac: expected vector observations, .*, got Discrete\(3\)"):
        extended_space(spaces.Discrete(3), "dac")
    with pytest.raises(ValueError, match="expected vector observations"):
        extended_space(spaces.Box(0, 1, (4, 4, 3)), "dac")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_the_share_of_terminated_steps(time_limit: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dataset over its full episodes, and of an online ring over the steps that it still holds.

    The flags are counted where they are: at each update of DAC they would else all be copied from the GPU.
    """
    monkeypatch.setattr(torch.Tensor, "cpu", None, raising=False)
    there: dict[str, Any] = {"time_limit": time_limit, "device": device}
    whole, part = (ReplayBuffer(e, **there) for e in (EXPERT, EXPERT.subsample(4)))
    ends = 2 if time_limit == "bootstrap" else 3
    assert whole.terminated_share == part.terminated_share == ends / 15
    assert len(part) < 15
    ring, rng = ReplayBuffer.online(EXPERT.spec(), 24, lanes=2, **there), np.random.default_rng(3)
    assert ring.terminated_share == 0
    kept: list[np.ndarray[Any, Any]] = []
    for _ in range(40):
        terminated, truncated = rng.random((2, 2)) < 0.2
        seen, zeros = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
        ring.add(Steps(seen, np.full((2, 2), 1.0, np.float32), zeros, terminated, truncated & ~terminated, seen))
        kept = [*kept, terminated if time_limit == "bootstrap" else terminated | truncated][-(len(ring) // 2) :]
        assert ring.terminated_share == np.mean(kept)


# --- weights of the rows ----------------------------------------------------------------------------------------------


def test_subsampled_expert_absorbing_transitions_are_re_weighted() -> None:
    """As the authors do: absorbing transitions are added, subsampled steps are mixed with all of them, weighted 1/k."""
    k, episodes = 20, recorded((400,) * 4, (True, True, True, False))
    dac = make(expert=episodes.subsample(k))
    per_step, per_absorbing = 0.25, 8.0  # losses of a row
    rows = [(per_step, 1.0)] * (1600 // k) + [(per_absorbing, 1 / k)] * 3
    theirs = sum(loss * weight for loss, weight in rows) / sum(weight for _, weight in rows)
    share = absorbing_share(dac.expert_share)
    assert (1 - share) * per_step + share * per_absorbing == pytest.approx(theirs)
    assert share == pytest.approx(3 / 1603)
    unweighted = 3 / (1600 / k + 3)
    assert share < unweighted / 15

    count = 200_000
    drawn = absorbing_rows(count, share, generator()[0], torch.device("cpu"))
    assert abs(float(drawn.float().mean()) - share) < 4 * math.sqrt(share / count)
    draws = [dac.sample(ReplayBuffer(PLAYED), generator(seed)) for seed in range(200)]
    absorbing = sum(float(draw.expert.absorbing.sum()) for draw in draws) / (200 * 16)
    assert absorbing < unweighted / 3
    assert {float(row) for draw in draws[:20] for row in draw.expert.transitions.observations[:, 0]} <= {
        float(episodes.observations[row, 0]) for row in episodes.step_rows[::1][episodes.subsample(k).mask]
    }


def test_each_batch_has_its_own_share_of_absorbing_rows() -> None:
    """2 of 17 of the expert's, and 2 of 17 of the policy's; none without absorbing states."""
    replay = ReplayBuffer(recorded((1, 1), (True, True)))
    dac = make(small(changes={"batch_size": 4_000}))
    expert, policy, agent = (float(rows.absorbing.float().mean()) for rows in dac.sample(replay, generator()))
    assert expert == pytest.approx(2 / 17, abs=0.02) and policy == pytest.approx(0.5, abs=0.04)
    assert agent == pytest.approx(0.5, abs=0.04) and agent != policy  # drawn by itself
    plain = make(small(absorbing=False, allow_variable_horizon=True))
    assert not any(rows.absorbing.any() for rows in plain.sample(replay, generator()))


# --- values -----------------------------------------------------------------------------------------------------------


def chain(agent: str, **fields: Any) -> DAC:
    """DAC whose discriminator is fixed and linear: z = 0.5 + s − 2 · indicator + a, with γ = 0.5."""
    values = {"discount": 0.5, "critic_lr": 1e-2, "tau": 1.0, "actor_lr": NEVER, "hidden_sizes": (32,)}
    own = {"policy_delay": 1} if agent == "td3" else {"initial_temperature": 0.5, "tune_temperature": False}
    spec = Spec(spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1, (1,)))
    config = small(agent, {**values, **own}, hidden_sizes=(), lr=NEVER, **fields)
    dac = DAC(config, spec)
    parameters = dac.learner.parameters_of("discriminator")
    weights = [1.0, -2.0, 1.0] if config.absorbing else [1.0, 1.0]
    parameters["head.layers.0.weight"].copy_(torch.tensor([weights]))
    parameters["head.layers.0.bias"].fill_(0.5)
    return dac


def values(dac: DAC, batch: Transitions) -> Tensor:
    with torch.no_grad():
        q: Tensor = dac.agent.critic(dac.agent.learner.params.frozen["critic"], batch.observations, batch.actions)
    return q.mean(0)


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_termination_leaks_no_reward_its_value_is_that_of_the_absorbing_state(agent: str) -> None:
    """Q(s_abs, 0) = r_abs / (1 − γ) = −1.5 / 0.5, without an entropy, and Q(s, a) = r + γ Q(s_abs, 0)."""
    dac = chain(agent)
    rows = steps((2.0, 0.5, 0.0), (2.0, 0.5, 0.0), (1.0, -0.5, 0.0), (1.0, -0.5, 0.0))
    absorbing = torch.tensor([False, True, False, True])
    for _ in range(300):
        dac.update(Draws(*[Rows(rows, absorbing)] * 3))
    assert dac.rewards(dac.extended(rows, absorbing)).tolist() == pytest.approx([3.0, -1.5, 1.0, -1.5])
    expected = [3.0 - 1.5, -3.0, 1.0 - 1.5, -3.0]
    assert values(dac, dac.extended(rows, absorbing)).tolist() == pytest.approx(expected, abs=0.02)


def test_without_absorbing_states_the_value_after_termination_is_0() -> None:
    dac = chain("td3", absorbing=False)
    rows, nothing = steps((2.0, 0.5, 0.0), (1.0, -0.5, 0.0)), torch.zeros(2, dtype=torch.bool)
    for _ in range(300):
        dac.update(Draws(*[Rows(rows, nothing)] * 3))
    assert values(dac, dac.extended(rows, nothing)).tolist() == pytest.approx([3.0, 1.0], abs=0.02)


def test_the_critics_loss_by_hand() -> None:
    """y = r + γ min Q̄(s′, π̄(s′) + ε), where the absorbing state's only action is 0: twin perceptrons in plain torch."""
    dac = chain("td3")
    rows, absorbing = steps((2.0, 0.5, 0.5), (1.0, -0.5, 0.0), (0.0, 0.0, 0.5)), torch.tensor([False, False, True])
    noise = dac.agent.learner.generators[0].get_state()
    online = {name: value.clone() for name, value in dac.agent.learner.parameters_of("critic").items()}
    actor = {name: value.clone() for name, value in dac.agent.learner.parameters_of("actor").items()}
    loss = dac.update(Draws(*[Rows(rows, absorbing)] * 3))["loss/critic"]

    def q(observation: list[float], action: float, copy: int) -> float:
        x = torch.tensor([*observation, action * (1 - observation[-1])])
        first, last = (
            (online[f"critic.mlp.layers.{i}.weight"][copy], online[f"critic.mlp.layers.{i}.bias"][copy]) for i in (0, 1)
        )
        return float((x @ first[0] + first[1]).relu() @ last[0] + last[1])

    def chosen(observation: list[float]) -> float:
        x = torch.tensor(observation) @ actor["mlp.layers.0.weight"].T + actor["mlp.layers.0.bias"]
        return float((x.relu() @ actor["mlp.layers.1.weight"].T + actor["mlp.layers.1.bias"]).tanh())

    drawn = torch.Generator()
    drawn.set_state(noise)
    epsilon = (0.2 * torch.empty(3, 1).normal_(generator=drawn)).clamp(-0.5, 0.5)[:, 0].tolist()
    cases = [
        ([2.0, 0.0], 0.5, 3.0, [3.0, 0.0]),
        ([1.0, 0.0], -0.5, 1.0, [0.0, 1.0]),
        ([0.0, 1.0], 0.0, -1.5, [0.0, 1.0]),
    ]
    expected = 0.0
    for (state, action, reward, following), moved in zip(cases, epsilon, strict=True):
        following_action = min(max(chosen(following) + moved, -1), 1)
        target = reward + 0.5 * min(q(following, following_action, i) for i in (0, 1))
        expected += sum((q(state, action, i) - target) ** 2 for i in (0, 1)) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_the_actor_does_not_depend_on_absorbing_rows(agent: str) -> None:
    """Its gradient is that of the steps of the environment, even if every row is absorbing."""
    own = {"policy_delay": 1} if agent == "td3" else {}
    results = []
    for absorbing in (False, True):
        dac = make(small(agent, {**own, "critic_lr": NEVER}, lr=NEVER))
        draws = dac.sample(ReplayBuffer(PLAYED), generator())
        dac.update(draws._replace(agent=Rows(draws.agent.transitions, torch.full((16,), absorbing))))
        results.append({key: value.clone() for key, value in dac.agent.learner.parameters_of("actor").items()})
    fresh = make(small(agent, own)).agent.learner.parameters_of("actor")
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]) and not torch.equal(value, fresh[key])


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_the_absorbing_state_has_one_action_and_no_entropy(agent: str) -> None:
    dac = make(small(agent))
    state = with_indicator(torch.randn(2, 2), torch.tensor([False, True]))
    critic = dac.agent.learner.parameters_of("critic")
    one, other = (dac.agent.critic(critic, state, torch.full((2, 2), value)) for value in (0.3, -0.8))
    assert torch.equal(one[:, 1], other[:, 1]) and bool((one[:, 0] != other[:, 0]).all())
    if agent == "sac":
        noise = torch.randn(2, 2)
        log_prob = dac.agent.actor(dac.agent.learner.parameters_of("actor"), state).rsample_with_log_prob(noise)[1]
        assert log_prob[0] != 0 and log_prob[1] == 0


# --- discriminator ----------------------------------------------------------------------------------------------------


def test_the_discriminators_loss_by_hand() -> None:
    """z = 0.5 + s − 2 · indicator + a everywhere, so that ‖∇z‖ = √6 at every interpolate."""
    dac = chain("td3")
    expert, policy = steps((2.0, 0.5, 0.5), (1.0, 0.0, 0.5)), steps((0.0, 0.0, 0.5), (0.0, 0.0, 0.5))
    nothing, second = torch.zeros(2, dtype=torch.bool), torch.tensor([False, True])
    metrics = dac.update(Draws(Rows(expert, nothing), Rows(policy, second), Rows(policy, second)))
    positive = (math.log1p(math.exp(-3.0)) + math.log1p(math.exp(-1.5))) / 2
    negative = (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-1.5))) / 2
    penalty = (math.sqrt(6) - 1) ** 2
    assert float(metrics["gradient_penalty"]) == pytest.approx(penalty)
    assert float(metrics["loss/discriminator"]) == pytest.approx(positive + negative + 10 * penalty)
    assert (float(metrics["accuracy/expert"]), float(metrics["accuracy/policy"])) == (1.0, 0.5)


def test_it_learns_to_tell_the_expert_from_the_policy() -> None:
    shifted = replace(PLAYED, observations=PLAYED.observations + 3)
    dac, replay, source = make(small(lr=1e-2)), ReplayBuffer(shifted), generator()
    for _ in range(150):
        metrics = dac.update(dac.sample(replay, source))
    assert float(metrics["accuracy/expert"]) > 0.9 and float(metrics["accuracy/policy"]) > 0.8


@pytest.mark.parametrize(
    ("convention", "expected"),
    [("logit", 3.0), ("-log(1-D)", math.log1p(math.exp(3.0))), ("log D", -math.log1p(math.exp(-3.0)))],
)
def test_the_agents_reward_has_the_convention_of_the_config(convention: Any, expected: float) -> None:
    dac, row = chain("td3", reward_convention=convention), steps((2.0, 0.5, 0.5))
    assert dac.rewards(dac.extended(row, torch.tensor([False]))).item() == pytest.approx(expected)
    assert dac.reward()(row).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "fields", [{}, {"reward_inputs": "state"}, {"absorbing": False, "allow_variable_horizon": True}]
)
def test_its_reward_is_the_discriminators_where_the_indicator_is_0(fields: dict[str, Any], tmp_path: Path) -> None:
    dac, replay, source = make(small(**fields)), ReplayBuffer(PLAYED), generator()
    for _ in range(3):
        dac.update(dac.sample(replay, source))
    raw = replay.gather(torch.arange(15), discount=0.99)
    reward = load_reward(dac.reward().save(tmp_path / "reward"))
    expected = dac.rewards(dac.extended(raw, torch.zeros(15, dtype=torch.bool)))
    after = 0.0 if reward.absorbing_reward is None else 0.99 * reward.absorbing_reward / 0.01
    torch.testing.assert_close(reward(raw), expected + after * (raw.discounts == 0))
    assert bool((raw.discounts == 0).any())
    reward.check_spaces(EXPERT.spec(), "here")
    assert reward.about["reward_convention"] == "logit" and reward.discount == 0.99
    if dac.config.absorbing:
        one = dac.extended(raw, torch.ones(15, dtype=torch.bool))
        assert reward.absorbing_reward == pytest.approx(float(dac.rewards(one)[0]))


# --- schedule, policies, state ----------------------------------------------------------------------------------------


def test_the_learning_rate_of_the_actor_alone_is_halved() -> None:
    """The second update, at step 12 after a warm-up of 11, is beyond 3 halvings of 4 steps; Adam's steps are linear."""
    moved = []
    for halving in (None, 4):
        dac = make(small(changes={"policy_delay": 1, "warmup_steps": 11}, halving_steps=halving, lr=NEVER))
        replay, source = ReplayBuffer(PLAYED), generator()
        dac.agent.learner.updates = 1
        before = copy.deepcopy(dac.agent.learner.state_dict()["online"])
        dac.update(dac.sample(replay, source))
        after = dac.agent.learner.state_dict()["online"]
        moved.append({name: {k: after[name][k] - v for k, v in before[name].items()} for name in ("actor", "critic")})
        assert dac.halved() == (1.0 if halving is None else 0.125)
    for key, difference in moved[0]["actor"].items():
        torch.testing.assert_close(moved[1]["actor"][key], difference / 8, rtol=1e-2, atol=1e-7)
    for key, difference in moved[0]["critic"].items():
        assert torch.equal(moved[1]["critic"][key], difference)


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_the_policy_sees_the_indicator_0(agent: str) -> None:
    dac = make(small(agent))
    seen = torch.randn(5, 2)
    step = Step(seen, torch.zeros(5, 2), torch.zeros(5), *[torch.zeros(5, dtype=torch.bool)] * 2)
    inner = replace(step, observations=torch.cat([seen, torch.zeros(5, 1)], 1))
    for deterministic in (True, False):
        ours, theirs = (source.policy(0, deterministic=deterministic) for source in (dac, dac.agent))
        assert ours.initial(5) is None
        first, carry = ours(step, None, generator()[0])
        assert torch.equal(first, theirs(inner, None, generator()[0])[0]) and carry is None
        assert all(ACTIONS.contains(action) for action in first.detach().numpy())
        if not deterministic:
            log_probs = [p.distribution(s, None)[0].log_prob(first) for p, s in ((ours, step), (theirs, inner))]
            assert torch.equal(*log_probs)
    warm = make(small(agent, {"warmup_steps": 10})).policy(deterministic=False, step=9)
    assert bool((warm(step, None, generator()[0])[0] >= torch.tensor(ACTIONS.low)).all())


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_it_is_resumed_to_the_bit(agent: str, tmp_path: Path) -> None:
    replay = ReplayBuffer(PLAYED)
    whole, source = make(small(agent), seeds=(4,)), generator()
    for _ in range(3):
        whole.update(whole.sample(replay, source))
    checkpoint.save(tmp_path / "state", whole.state_dict())
    resumed = make(small(agent), seeds=(4,))
    resumed.load_state_dict(checkpoint.load(tmp_path / "state"))
    for _ in range(3):
        draws = whole.sample(replay, source)
        assert whole.update(draws) == resumed.update(draws)
    ours, theirs = (torch.utils._pytree.tree_leaves(dac.state_dict()) for dac in (whole, resumed))
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(ours, theirs, strict=True))


def test_the_state_of_another_algorithm_changes_nothing() -> None:
    dac = make()
    before = copy.deepcopy(dac.state_dict())
    strangers = [
        make(seeds=(3,)),
        make(small("sac")),
        make(small(hidden_sizes=(5,))),
        make(small(absorbing=False, allow_variable_horizon=True)),
    ]
    for state in ({}, dac.agent.state_dict(), *(stranger.state_dict() for stranger in strangers)):
        with pytest.raises(ValueError, match="expected|does not fit|not the state of a learner"):
            dac.load_state_dict(state)
    ours, theirs = (torch.utils._pytree.tree_leaves(state) for state in (before, dac.state_dict()))
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(ours, theirs, strict=True))


def test_the_networks_of_a_user_see_the_extended_states() -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(5, 1)

        def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
            return self.layer(torch.cat([observations, actions], -1)).squeeze(-1)[None]

    dac = make(networks={"critic": Plain})
    assert dac.update(dac.sample(ReplayBuffer(PLAYED), generator()))["loss/critic"].isfinite()
    with pytest.raises(ValueError, match=r"expected networks among \['actor', 'critic'\], got \['discriminator'\]"):
        make(networks={"discriminator": Plain})


def test_variable_horizons_are_refused_without_absorbing_states_alone() -> None:
    """Termination leaks reward, unless the absorbing state has one too."""
    assert make().demonstrations is not None
    for expert in (EXPERT, EXPERT.subsample(3)):
        with pytest.raises(ValueError, match=r"dac: expected demonstrations of one length .* got 2 of 3 episodes that"):
            make(small(absorbing=False), expert)
    make(small(absorbing=False), recorded((4, 4), (False, False)))
    with pytest.raises(ValueError, match="dac: expected demonstrations to learn from"):
        DAC(small(), EXPERT.spec()).sample(ReplayBuffer(PLAYED), generator())
    with pytest.raises(ValueError, match="dac: expected demonstrations with observations in"):
        DAC(small(), Spec(spaces.Box(-9, 9, (3,)), ACTIONS), demonstrations=ReplayBuffer(EXPERT))


def test_settings_and_tasks_that_it_cannot_have_are_refused() -> None:
    with pytest.raises(ValueError, match="dac: it trains one seed at a time"):
        make(seeds=(0, 1))
    with pytest.raises(ValueError, match="expected .* actions"):
        DAC(small(), Spec(STATES, spaces.Discrete(2)))
    with pytest.raises(ValueError, match="expected vector observations"):
        DAC(small(), Spec(spaces.Discrete(4), ACTIONS))
    for changes in ({"n_step": 3}, {"normalise_observations": True}, {"scale_rewards": True}):
        (name,) = changes
        with pytest.raises(ValueError, match=rf"DACConfig: expected td3.{name}="):
            small(changes=changes)
    with pytest.raises(ValueError, match=r"DACConfig: expected td3.discount < 1"):
        small(changes={"discount": 1.0})
    small(changes={"discount": 1.0}, absorbing=False)
    with pytest.raises(ValueError, match="expected agent among td3, sac, got 'ddpg'"):
        DACConfig(agent="ddpg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected reward_inputs among state, state_action"):
        DACConfig(reward_inputs="transition")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected reward_convention"):
        DACConfig(reward_convention="D")  # type: ignore[arg-type]
    sac = SACConfig(n_step=3)
    assert DACConfig(sac=sac).inner == DACConfig().td3  # settings of the other agent do not matter
