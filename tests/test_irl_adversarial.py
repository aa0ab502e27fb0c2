"""GAIL and AIRL: their updates against plain code, the optimal discriminator, the traps, and what they refuse."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from sameness import equal
from torch import Tensor

import herdbook
from herdbook.core import checkpoint
from herdbook.core.types import Segments, Spec, Steps, Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rollout_buffer import RolloutBuffer
from herdbook.experiments.train import resume
from herdbook.irl.adversarial import transitions_of
from herdbook.irl.airl import AIRL, AIRLConfig, airl_logit
from herdbook.irl.gail import GAIL, GAILConfig
from herdbook.irl.rewards import load_reward
from herdbook.online.ppo import PPO, PPOConfig

GRID = (spaces.Discrete(2), spaces.Discrete(2))
REAL = (spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-2, 2, (1,), np.float32))
SMALL = PPOConfig(rollout_steps=16, epochs=1, hidden_sizes=(8,), discount=0.9)


def drawn(space: spaces.Space[Any], count: int, rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, count)
    return rng.uniform(-1, 1, (count, *space.shape)).astype(np.float32)


def episodes_of(lengths: list[int], terminated: bool = False, where: Any = REAL, seed: int = 0) -> Episodes:
    rng = np.random.default_rng(seed)
    return Episodes.from_episodes(
        [
            {
                "observations": drawn(where[0], length + 1, rng),
                "actions": drawn(where[1], length, rng),
                "rewards": rng.normal(size=length),
                "terminated": terminated,
                "truncated": not terminated,
            }
            for length in lengths
        ],
        observation_space=where[0],
        action_space=where[1],
    )


def rollout_of(where: Any = REAL, steps: int = 16, seed: int = 1, ends: bool = True) -> Segments:
    """Two lanes; the first one terminates every 5 steps, the second one is cut off every 7."""
    rng, buffer = np.random.default_rng(seed), RolloutBuffer()
    seen = drawn(where[0], 2, rng)
    for number in range(1, steps + 1):
        following = drawn(where[0], 2, rng)
        terminated, truncated = np.array([ends and number % 5 == 0, False]), np.array([False, number % 7 == 0])
        buffer.add(Steps(seen, drawn(where[1], 2, rng), rng.normal(size=2), terminated, truncated, following))
        seen = following
    return buffer.take()


def learner_of(config: Any, where: Any = REAL, lengths: tuple[int, ...] = (9, 9), **setup: Any) -> Any:
    episodes = episodes_of(list(lengths), where=where)
    cls = GAIL if isinstance(config, GAILConfig) else AIRL
    return cls(config, episodes.spec(), demonstrations=ReplayBuffer(episodes), **setup)


class Handed:
    """PPO, of which the rewards that it is given are recorded."""

    def __init__(self, algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rollouts: list[Segments] = []
        original = algorithm.ppo.update

        def update(rollout: Segments) -> Any:
            self.rollouts.append(rollout)
            return original(rollout)

        monkeypatch.setattr(algorithm.ppo, "update", update)


# --- GAIL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["-log(1-D)", "log D", "logit"])
def test_gail_against_plain_torch(convention: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One update of D by Adam on the two cross-entropies, then PPO with the rewards of the new D."""
    config = GAILConfig(
        ppo=SMALL, reward_convention=convention, hidden_sizes=(5,), discriminator_updates=1, batch_size=8
    )
    gail, rollout = learner_of(config), rollout_of()
    spec, handed = gail.pair.spec, Handed(gail, monkeypatch)
    weights = {name: value.clone().requires_grad_() for name, value in gail.learner.parameters_of("reward").items()}
    generator = torch.Generator()
    generator.set_state(gail.learner.generators[0].get_state())
    numbers = torch.randint(32, (4,), generator=generator)
    expert = gail.pair.demonstrations.sample(4, [generator], discount=0.9)
    gail.update(rollout)

    def inputs(observations: Tensor, actions: Tensor) -> Tensor:
        standard = (observations - torch.tensor(spec.observation_mean)) / (torch.tensor(spec.observation_std) + 1e-3)
        return torch.cat([standard, actions / 2], -1)  # actions in [−1, 1]

    def logits(x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ weights["head.layers.0.weight"].T + weights["head.layers.0.bias"])
        return (hidden @ weights["head.layers.1.weight"].T + weights["head.layers.1.bias"]).squeeze(-1)

    observations, actions = rollout.observations.reshape(32, 2), rollout.actions.reshape(32, 1)
    of_expert = logits(inputs(expert.observations, expert.actions)).sigmoid()
    of_policy = logits(inputs(observations[numbers], actions[numbers])).sigmoid()
    loss = -of_expert.log().mean() - (1 - of_policy).log().mean()
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for (name, value), gradient in zip(weights.items(), gradients, strict=True):  # Adam's first step
        weights[name] = (value - 1e-3 * gradient / (gradient.abs() + 1e-8)).detach()
        torch.testing.assert_close(gail.learner.parameters_of("reward")[name], weights[name])
    d = logits(inputs(observations, actions)).sigmoid().detach()
    expected = {"-log(1-D)": -(1 - d).log(), "log D": d.log(), "logit": d.log() - (1 - d).log()}[convention]
    (given,) = handed.rollouts
    torch.testing.assert_close(given.rewards.reshape(32), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(given.terminated, rollout.terminated) and torch.equal(given.actions, rollout.actions)
    torch.testing.assert_close(gail.reward()(transitions_of(rollout, 0.9)), given.rewards.reshape(32))


def test_the_trained_logit_approaches_the_log_ratio_of_the_occupancies() -> None:
    """D* = ρ_E / (ρ_E + ρ_π), so that z* = log ρ_E − log ρ_π: two states, two actions."""
    expert, policy = [[4, 4], [6, 2]], [[1, 7], [4, 4]]  # how often of 16: [state][action]
    config = GAILConfig(ppo=SMALL, hidden_sizes=(32,), lr=1e-2)
    gail = learner_of(config, GRID)
    ours, theirs = (exactly(counts) for counts in (expert, policy))
    for _ in range(600):
        gail.learner.step("discriminator", gail.objective, ours, theirs, torch.zeros(16))
    cells = exactly([[1, 1], [1, 1]])
    found = gail.logit(gail.learner.parameters_of("reward"), cells)
    expected = [math.log(e / p) for row in zip(expert, policy, strict=True) for e, p in zip(*row, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=0.02)


def exactly(counts: list[list[int]]) -> Transitions:
    """Steps with these numbers of each state and action; every next state is 0, and nothing ends."""
    cells = [(state, action) for state in range(2) for action in range(2) for _ in range(counts[state][action])]
    states, actions = torch.tensor(cells).T
    return Transitions(states, actions, torch.zeros(len(cells)), torch.full((len(cells),), 0.9), states * 0)


def test_the_gradient_penalty_changes_the_discriminator() -> None:
    """With a heavy penalty the gradient norm of the logit between expert and policy goes to 1."""
    config = GAILConfig(ppo=SMALL, hidden_sizes=(16,), gradient_penalty=100.0, batch_size=64, lr=1e-2)
    gail = learner_of(config)
    for seed in range(40):
        metrics = gail.update(rollout_of(seed=seed))
    assert metrics["gradient_penalty"] < 0.05
    x = torch.randn(8, 3).requires_grad_()
    (slopes,) = torch.autograd.grad(gail.logit(gail.learner.parameters_of("reward"), 0.3 * x).sum(), x)
    assert slopes.norm(dim=-1).div(0.3).mean().item() == pytest.approx(1, abs=0.3)


def test_interpolates_are_uniform_between_expert_and_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    gail = learner_of(GAILConfig(ppo=SMALL, discriminator_updates=20))
    mixes, original = list[Tensor](), gail.learner.step

    def step(name: str, objective: Any, *inputs: Any) -> Any:
        mixes.append(inputs[2])
        return original(name, objective, *inputs)

    monkeypatch.setattr(gail.learner, "step", step)
    gail.update(rollout_of())
    mix = torch.stack(mixes)
    assert mix.shape == (20, 128) and 0 <= mix.min() < 0.01 and 0.99 < mix.max() <= 1
    assert mix.mean().item() == pytest.approx(0.5, abs=0.02)


# --- AIRL -----------------------------------------------------------------------------------------------------------


def test_airl_at_its_optimum_is_the_experts_log_probability() -> None:
    """With equal visits to states, f* − log π = log π_E − log π for any policy π."""
    config = AIRLConfig(ppo=SMALL, hidden_sizes=(32,), shaped=False, lr=1e-2)
    airl = learner_of(config, GRID)
    expert, policy = exactly([[4, 4], [6, 2]]), exactly([[1, 7], [4, 4]])
    log_pi = torch.tensor([[1 / 8, 7 / 8], [1 / 2, 1 / 2]]).log()
    log_probs = [log_pi[half.observations, half.actions] for half in (expert, policy)]
    for _ in range(600):
        airl.learner.step("discriminator", airl.objective, expert, policy, *log_probs)
    f = airl.f(airl.learner.parameters_of("reward"), exactly([[1, 1], [1, 1]]))
    assert f.exp().tolist() == pytest.approx([1 / 2, 1 / 2, 3 / 4, 1 / 4], abs=0.01)


def test_airl_log_pi_is_recomputed_under_the_current_policy_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the expert's steps, the rollout's and those of earlier rollouts alike."""
    airl = learner_of(AIRLConfig(ppo=SMALL, batch_size=8, discriminator_updates=2, old_rollouts=1))
    seen: list[tuple[Tensor, Tensor]] = []
    original = airl.learner.step

    def step(name: str, objective: Any, *inputs: Any) -> Any:
        policy = airl.ppo.policy(deterministic=False)
        for half, log_prob in zip(inputs[:2], inputs[2:], strict=True):
            mean = airl.pair.scaling.mean, 1 / airl.pair.scaling.inverse_std
            raw = half.observations * mean[1] + mean[0]
            distribution = policy.function(raw)
            seen.append((log_prob, distribution.log_prob(half.actions).detach()))
            assert not log_prob.requires_grad
        return original(name, objective, *inputs)

    monkeypatch.setattr(airl.learner, "step", step)
    for seed in (1, 2, 3):
        airl.update(rollout_of(seed=seed))
    assert len(seen) == 12
    for ours, theirs in seen:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    f, log_prob = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    found = torch.autograd.grad(airl_logit(f, log_prob).sum(), (f, log_prob), allow_unused=True)
    assert found[0].tolist() == [1, 1] and found[1] is None


def airl_rewards(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[AIRL, Segments, Tensor]:
    airl: AIRL = learner_of(AIRLConfig(ppo=SMALL, batch_size=8, discriminator_updates=2, **fields))
    handed, rollout = Handed(airl, monkeypatch), rollout_of()
    before = copy.deepcopy(airl.ppo.learner.state_dict())
    airl.update(rollout)
    airl.ppo.learner.load_state_dict(before)  # the policy that collected the rollout
    return airl, rollout, handed.rollouts[0].rewards


def test_airl_rewards_the_policy_by_its_logit_not_in_the_gail_form(monkeypatch: pytest.MonkeyPatch) -> None:
    airl, rollout, rewards = airl_rewards(monkeypatch)
    steps = transitions_of(rollout, 0.9)
    f = airl.reward()(steps)
    log_pi = airl.ppo.policy(deterministic=False).function(steps.observations).log_prob(steps.actions / 2).detach()
    d = f.exp() / (f.exp() + log_pi.exp())
    expected = d.log() - (1 - d).log()
    torch.testing.assert_close(rewards.reshape(32), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rewards.reshape(32), F.softplus(expected), atol=0.1)


def test_airl_may_leave_the_entropy_to_ppo(monkeypatch: pytest.MonkeyPatch) -> None:
    airl, rollout, rewards = airl_rewards(monkeypatch, policy_reward="f")
    torch.testing.assert_close(rewards.reshape(32), airl.reward()(transitions_of(rollout, 0.9)))


def test_airl_shapes_with_the_gamma_of_ppo_and_a_terminal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """f − g = γ (1 − terminated) h(s′) − h(s), with γ of PPO; a truncated step is not masked."""
    airl, rollout, _ = airl_rewards(monkeypatch, policy_reward="f")
    reward, steps = airl.reward(), transitions_of(rollout, 0.9)
    assert reward.discount == SMALL.discount == 0.9
    expected = torch.where(rollout.terminated, 0.0, 0.9).reshape(32)
    assert torch.equal(steps.discounts, expected) and bool((expected == 0).any())
    assert bool((expected[rollout.truncated.reshape(32)] == 0.9).all())
    network, parameters = airl.f, airl.learner.parameters_of("reward")
    h = {k.removeprefix("potential."): v for k, v in parameters.items() if k.startswith("potential.")}

    def potential(observations: Tensor) -> Tensor:
        module: Any = network.module
        return torch.func.functional_call(module.potential, h, (airl.pair.scaling.observations(observations),))

    shaping = expected * potential(steps.next_observations) - potential(steps.observations)
    torch.testing.assert_close(reward(steps), reward.unshaped()(steps) + shaping, rtol=1e-4, atol=1e-5)
    assert shaping.abs().max() > 0.01


def test_a_state_only_reward_transfers_as_g() -> None:
    airl = learner_of(AIRLConfig(ppo=SMALL, reward_inputs="state", hidden_sizes=()))
    airl.update(rollout_of())
    g, rng = airl.reward().unshaped(), np.random.default_rng(0)
    assert g.design.inputs == "state" and not g.design.shaped
    assert len(set(np.round(g.at(drawn(REAL[0], 5, rng)), 6))) == 5


# --- shared ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [GAILConfig(ppo=SMALL, old_rollouts=2), AIRLConfig(ppo=SMALL, old_rollouts=2)])
def test_a_run_resumes_to_the_bit_and_writes_its_reward(config: Any, tmp_path: Path) -> None:
    data = episodes_of([20, 20], where=(spaces.Box(-8, 8, (3,), np.float32), REAL[1]))
    options: dict[str, Any] = {"dataset": data, "env": "Pendulum-v1", "quiet": True}
    training: dict[str, Any] = {**options, "num_envs": 2, "eval_episodes": 1, "log_every": 32, "checkpoint_every": 32}
    whole = herdbook.train(config, steps=160, run_dir=tmp_path / "whole", **training)
    herdbook.train(config, steps=96, run_dir=tmp_path / "part", **training)
    part, _ = resume(tmp_path / "part", steps=160, **options)
    assert (part.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    rewards = [load_reward(run.path / "rewards" / "seed_0") for run in (whole, part)]
    for name, value in rewards[0].members[0].items():
        assert torch.equal(value, rewards[1].members[0][name])


@pytest.mark.parametrize("config", [GAILConfig(ppo=SMALL, old_rollouts=2), AIRLConfig(ppo=SMALL, old_rollouts=2)])
def test_training_resumes_to_the_bit_with_earlier_rollouts(config: Any, tmp_path: Path) -> None:
    one, other = learner_of(config), learner_of(config)
    for seed in (1, 2, 3):
        one.update(rollout_of(seed=seed))
    checkpoint.save(tmp_path / "state", one.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert len(other.pair.earlier) == 2
    for seed in (4, 5):
        for each in (one, other):
            each.update(rollout_of(seed=seed))
    for mine, theirs in zip(
        *(torch.utils._pytree.tree_leaves(each.state_dict()) for each in (one, other)), strict=True
    ):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs


@pytest.mark.parametrize("broken", [None, [{"rewards": torch.zeros(3)}]])
def test_a_state_with_broken_earlier_rollouts_changes_nothing(broken: Any) -> None:
    one, other = (learner_of(GAILConfig(ppo=SMALL, old_rollouts=2), seeds=(3,)) for _ in range(2))
    one.update(rollout_of())
    before, state = copy.deepcopy(other.state_dict()), one.state_dict()
    state = {**state, "earlier": broken} if broken else {key: state[key] for key in ("ppo", "discriminator")}
    with pytest.raises(ValueError, match="expected a state with earlier rollouts, each of observations, actions"):
        other.load_state_dict(state)
    assert equal(other.state_dict(), before)


def test_samples_of_the_policy_come_from_this_rollout_and_the_last_ones() -> None:
    """Rollout k has observations near 10 k."""
    gail = learner_of(GAILConfig(ppo=SMALL, old_rollouts=2, batch_size=400, discriminator_updates=1))
    found = []
    for number in range(5):
        rollout = rollout_of(seed=number)
        rollout = replace(rollout, observations=rollout.observations + 10 * number)
        ((expert, policy),) = gail.pair.batches(rollout)
        assert len(expert.rewards) == len(policy.rewards) == 200
        found.append(set((policy.observations[:, 0] / 10).round().int().tolist()))
    assert found == [{0}, {0, 1}, {0, 1, 2}, {1, 2, 3}, {2, 3, 4}]


def test_fewer_expert_steps_than_half_a_batch_keep_the_mix(caplog: pytest.LogCaptureFixture) -> None:
    gail = learner_of(GAILConfig(ppo=SMALL, batch_size=64), lengths=(3,))
    assert "3 steps of demonstrations are fewer than half a batch, 32" in caplog.text
    for expert, policy in gail.pair.batches(rollout_of()):
        assert len(expert.rewards) == len(policy.rewards) == 32


@pytest.mark.parametrize(
    ("lengths", "terminated", "message"),
    [
        ([4, 4], True, r"2 of 2 episodes that terminate, and lengths from 4 to 4"),
        ([4, 6], False, r"0 of 2 episodes that terminate, and lengths from 4 to 6"),
    ],
)
@pytest.mark.parametrize("config", [GAILConfig(ppo=SMALL), AIRLConfig(ppo=SMALL)])
def test_termination_leaks_reward(config: Any, lengths: list[int], terminated: bool, message: str) -> None:
    """Demonstrations of a variable horizon are refused with the reason; subsampling does not hide the ends."""
    episodes = episodes_of(lengths, terminated)
    cls: Any = GAIL if isinstance(config, GAILConfig) else AIRL
    for each in (episodes, episodes.subsample(4)):
        with pytest.raises(ValueError, match=f"^{config.algorithm}: .*{message}; .*leaks the reward.*--allow-variable"):
            cls(config, episodes.spec(), demonstrations=ReplayBuffer(each))
    cls(replace(config, allow_variable_horizon=True), episodes.spec(), demonstrations=ReplayBuffer(episodes))


def test_an_environment_that_ends_early_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    gail = learner_of(GAILConfig(ppo=SMALL))
    gail.update(rollout_of(ends=False))
    assert "terminate early" not in caplog.text
    gail.update(rollout_of())
    assert "episodes of the environment terminate early" in caplog.text


@pytest.mark.parametrize("algorithm", [GAIL, AIRL])
def test_demonstrations_of_other_spaces_are_refused(algorithm: Any) -> None:
    episodes, config = episodes_of([9, 9]), GAILConfig(ppo=SMALL) if algorithm is GAIL else AIRLConfig(ppo=SMALL)
    name = config.algorithm
    for own, what in ((replace(episodes.spec(), action_space=GRID[1]), "actions"), (Spec(*GRID), "observations")):
        with pytest.raises(ValueError, match=rf"{name}: expected demonstrations with {what} in .*, got Box"):
            algorithm(config, own, demonstrations=ReplayBuffer(episodes))


def test_without_demonstrations_there_is_a_policy_and_no_training() -> None:
    gail = GAIL(GAILConfig(ppo=SMALL), episodes_of([9, 9]).spec())
    policy = gail.policy()
    assert policy.initial(2) is None
    with pytest.raises(ValueError, match="gail: expected demonstrations to learn from, got None"):
        gail.update(rollout_of())


def test_a_wrong_choice_is_named() -> None:
    with pytest.raises(ValueError, match="expected reward_convention -log"):
        GAILConfig(reward_convention="log(D)")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected policy_reward"):
        AIRLConfig(policy_reward="log D")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="AIRLConfig: expected batch_size to be even, got 7"):
        AIRLConfig(batch_size=7)


def test_the_saved_reward_has_its_convention(tmp_path: Path) -> None:
    gail = learner_of(GAILConfig(ppo=SMALL, reward_convention="log D"))
    reward, steps = load_reward(gail.reward().save(tmp_path)), transitions_of(rollout_of(), 0.9)
    assert reward.about == {"algorithm": "gail", "reward_convention": "log D"}
    assert bool((reward(steps) < 0).all())
    assert torch.equal(reward(steps), gail.reward()(steps))


def test_ppo_is_constructed_as_it_is() -> None:
    gail = learner_of(GAILConfig(ppo=replace(SMALL, normalise_observations=True)))
    assert type(gail.ppo) is PPO and gail.ppo.config.normalise_observations
    assert gail.round_steps(8) == SMALL.rollout_steps
