"""Options that steady algorithms which learn from a replay, against numbers that can be checked on paper."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from devices import DEVICES
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core import checkpoint, parameter_noise
from herdbook.core.config import Config
from herdbook.core.exploration import decayed
from herdbook.core.member import Member
from herdbook.core.moments import RewardScale, RunningMoments
from herdbook.core.parameter_noise import action_distance, adapted, greedy_divergence, value_divergence
from herdbook.core.policy import Scaling
from herdbook.core.runner import EndlessEpisodes, VectorRunner, VectorStep
from herdbook.core.step_collector import StepRound
from herdbook.core.types import Spec, Step, Steps, Transitions
from herdbook.core.units import RunningUnits
from herdbook.datasets.replay import ReplayBuffer
from herdbook.experiments.catalogue import algorithm_class, config_class
from herdbook.online.ddpg import DDPG, DDPGConfig
from herdbook.online.dqn import DQN, DQNConfig
from herdbook.online.td3 import TD3, TD3Config

T = torch.tensor
OFF_POLICY = ["dqn", "ddpg", "td3", "sac", "discrete_sac"]
VECTOR = spaces.Box(-np.inf, np.inf, (2,))
DISCRETE, BOX = Spec(VECTOR, spaces.Discrete(3)), Spec(VECTOR, spaces.Box(-2.0, 2.0, (1,)))


def spec_of(name: str) -> Spec:
    return DISCRETE if algorithm_class(name).needs.actions == "discrete" else BOX


def make(name: str, *, seeds: tuple[int, ...] = (0,), **changes: Any) -> Any:
    cls = algorithm_class(name)
    return cls(config_class(cls)(**{"hidden_sizes": (8, 8), "batch_size": 16, **changes}), spec_of(name), seeds=seeds)


def batch_for(name: str, count: int = 16) -> Transitions:
    numbers = np.random.default_rng(3)

    def rows() -> Tensor:
        return T(numbers.normal(size=(count, 2)), dtype=torch.float32)

    discrete = spec_of(name) is DISCRETE
    actions = numbers.integers(0, 3, count) if discrete else numbers.uniform(-2, 2, (count, 1)).astype(np.float32)
    rewards = T(numbers.normal(size=count), dtype=torch.float32)
    return Transitions(rows(), torch.as_tensor(actions), rewards, torch.full((count,), 0.99), rows())


def stepped(now: Any, rewards: Any, *, ends: Any = None, cut: Any = None) -> VectorStep:
    """One step of every lane; the observations that follow are far away."""
    lanes = len(rewards)
    no = np.zeros(lanes, np.bool_)
    played = Steps(
        observations=np.asarray(now, np.float32),
        actions=np.zeros(lanes, np.int64),
        rewards=np.asarray(rewards, np.float64),
        terminated=no if ends is None else np.asarray(ends),
        truncated=no,
        next_observations=np.asarray(now, np.float32) + 1e3,
    )
    given_up = no if cut is None else np.asarray(cut)
    return VectorStep(played, first=no, cut=given_up, active=~no, episodes=np.zeros(lanes, np.int64))


# --- observations ---------------------------------------------------------------------------------------------------


def test_moments_take_each_step_in_once_as_it_enters_the_replay() -> None:
    """Three rounds of two lanes: 1, 3 | 5, 7 | 9, 11 (mean 6, variance 70/6), and twice that in the second column."""
    algorithm = make("dqn", normalise_observations=True, warmup_steps=0, updates_per_step=2.0)
    replay = ReplayBuffer.online(DISCRETE, 100, 2)
    member = Member(algorithm, replay, torch.Generator().manual_seed(0))
    for number in range(3):
        now = np.array([[1.0, 2.0], [3.0, 6.0]]) + 4 * number * np.array([1, 2])
        member.add(StepRound([stepped(now, [0.0, 0.0], ends=[True, True])]))
        member.learn()  # it draws steps many times over, and that changes nothing
    moments = algorithm.units.moments
    assert moments.count == 6 and moments.mean.tolist() == [6.0, 12.0]
    assert moments.std.tolist() == pytest.approx([math.sqrt(70 / 6), 2 * math.sqrt(70 / 6)])
    batch = replay.gather(torch.arange(6), discount=0.99)
    assert batch.observations[:, 0].tolist() == [1, 3, 5, 7, 9, 11]  # the replay is raw
    expected = (batch.observations - T([6.0, 12.0])) / (T([1.0, 2.0]) * math.sqrt(70 / 6) + 1e-3)
    torch.testing.assert_close(algorithm.units(batch).observations, expected)
    torch.testing.assert_close(algorithm.scaling.observations(batch.observations), expected)  # policies act on the same


def test_a_policy_sees_what_the_update_sees() -> None:
    """An actor that answers with what it sees, tanh(o₁): both change their units with the next step."""
    seen = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        seen.weight.copy_(T([[1.0, 0.0]]))
    config = DDPGConfig(normalise_observations=True)
    algorithm = DDPG(config, BOX, networks={"actor": lambda: nn.Sequential(seen, nn.Tanh())})
    policy, step = algorithm.policy(), step_of(T([[3.0, 0.0]]))
    assert policy(step, None)[0].item() == pytest.approx(2 * math.tanh(3))  # nothing was seen so far: as it is
    StepRound([stepped([[1.0, 0.0], [5.0, 0.0]], [0.0, 0.0])]).add_to(algorithm.follows)  # mean 3, deviation 2
    assert policy(step, None)[0].item() == 0.0
    other = policy(step_of(T([[5.0, 0.0]])), None)[0].item()
    assert other == pytest.approx(2 * math.tanh(2 / 2.001))


def test_only_vectors_are_normalised() -> None:
    images = Spec(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(3))
    with pytest.raises(ValueError, match="normalise_observations: expected a vector, got observations in"):
        DQN(DQNConfig(normalise_observations=True), images)


def test_a_block_is_its_steps() -> None:
    """In units that follow both, with episodes that end inside the block and between blocks."""
    rng, lanes = np.random.default_rng(0), 2
    settings: Any = {"normalise_observations": True, "scale_rewards": True, "discount": 0.9}
    blocks, steps = (make("dqn", **settings).units for _ in range(2))
    for count in (5, 1, 4):
        now, rewards = rng.normal(size=(count, lanes, 2)), rng.normal(size=(count, lanes))
        terminated, truncated = rng.random((2, count, lanes)) < 0.3
        columns = (now, np.zeros((count, lanes), np.int64), rewards, terminated, truncated, now)
        blocks.extend(Steps(*columns))
        for number in range(count):
            steps.add(Steps(*(column[number] for column in columns)))
    assert blocks.state_dict()["reward_scale"]["moments"]["count"] == 20
    torch.testing.assert_close(blocks.state_dict(), steps.state_dict(), rtol=1e-12, atol=1e-12)


# --- rewards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["terminated", "cut"])
def test_the_scale_of_a_batch_by_hand(how: str) -> None:
    """γ = ½: 2, 4 | 6 has the sums 2, 5, 6, whose variance is 65/3 − (13/3)² = 26/9."""
    algorithm, replay = make("dqn", scale_rewards=True, discount=0.5), ReplayBuffer.online(DISCRETE, 10)
    member = Member(algorithm, replay, torch.Generator())
    rows, ended = np.zeros((1, 2)), how == "terminated"
    for step in (
        stepped(rows, [2.0]),
        stepped(rows, [4.0], ends=[ended]),
        stepped(rows, [6.0], cut=[not ended]),
    ):
        member.add(StepRound([step]))
    std = math.sqrt(26) / 3
    assert algorithm.units.reward_scale.moments.std.item() == pytest.approx(std)
    batch = replay.gather(torch.arange(3), discount=0.5)
    assert batch.rewards.tolist() == [2, 4, 6]  # the replay is raw
    torch.testing.assert_close(algorithm.units(batch).rewards, T([2.0, 4.0, 6.0]) / std)
    returns = algorithm.units(replay.gather(torch.arange(3), discount=0.5, n_step=2)).rewards
    torch.testing.assert_close(returns, T([2 + 4 / 2, 4, 6]) / std)


def test_the_sum_of_an_unfinished_episode_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    """γ = ½: 2, 4 in lane 0 (sum 5), 1 and an end in lane 1; then 6 in both: 8½ and 6."""
    algorithm, other = (make("sac", scale_rewards=True, discount=0.5) for _ in range(2))
    for step in (
        stepped(np.zeros((2, 2)), [2.0, 0.0]),
        stepped(np.zeros((2, 2)), [4.0, 1.0], ends=[False, True]),
    ):
        StepRound([step]).add_to(algorithm.follows)
    checkpoint.save(tmp_path / "state", algorithm.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    for one in (algorithm, other):
        StepRound([stepped(np.zeros((2, 2)), [6.0, 6.0])]).add_to(one.follows)
        assert one.units.reward_scale.sums.tolist() == [8.5, 6.0]
        assert one.units.reward_scale.moments.mean.item() == pytest.approx((2 + 0 + 5 + 1 + 8.5 + 6) / 6)


def test_a_state_with_other_options_is_refused_and_changes_nothing() -> None:
    scaled, noisy = {"scale_rewards": True}, {"parameter_noise": 0.2}
    for here, there, message in (
        ({}, scaled, "its units are with reward_scale"),
        (scaled, {}, "its units are without reward_scale"),
        ({}, noisy, "it is with noise on parameters"),
        (noisy, {}, "it is without noise on parameters"),
    ):
        own, other = make("td3", **here), make("td3", **there)
        before = {key: value.clone() for key, value in own.learner.parameters_of("actor").items()}
        other.update(batch_for("td3"))
        with pytest.raises(ValueError, match=message):
            own.load_state_dict(other.state_dict())
        assert all(torch.equal(value, before[key]) for key, value in own.learner.parameters_of("actor").items())
        assert own.learner.updates == 0


def test_a_state_from_before_there_were_options_is_one_without_them() -> None:
    algorithm, other = make("td3"), make("td3")
    algorithm.update(batch_for("td3"))
    state = {key: value for key, value in algorithm.state_dict().items() if key not in ("units", "noise")}
    other.load_state_dict(state)
    assert other.learner.updates == 1


@pytest.mark.parametrize("device", DEVICES)
def test_moments_and_scale_are_the_same_on_every_device(device: str, tmp_path: Path) -> None:
    numbers = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    rewards, first = numbers.to(device), torch.zeros(3, 5, dtype=torch.bool, device=device)
    here, there = RewardScale(0.9), RewardScale(0.9)
    there(rewards, first)
    checkpoint.save(tmp_path / "scale", there.state_dict())
    there.load_state_dict(checkpoint.load(tmp_path / "scale"))
    here(numbers, first.cpu())
    scaled = there(rewards, first)
    assert scaled.device.type == device and scaled.dtype == torch.float32
    torch.testing.assert_close(scaled.cpu(), here(numbers, first.cpu()))
    there.end(torch.ones(3, dtype=torch.bool, device=device))
    assert there.sums is not None and there.sums.tolist() == [0.0] * 3

    moments = RunningMoments(5)
    moments.update(rewards)
    moments.load_state_dict({**moments.state_dict(), "mean": moments.mean.to(device)})
    assert moments.mean.device.type == "cpu" and moments.mean.dtype == torch.float64
    moments.update(rewards)
    torch.testing.assert_close(moments.mean, numbers.double().mean(0))

    units = RunningUnits(BOX, DDPGConfig(normalise_observations=True, scale_rewards=True), device)
    StepRound([stepped([[1.0, 2.0], [3.0, 6.0]], [1.0, 2.0])]).add_to(units)
    batch = torch.utils._pytree.tree_map(lambda leaf: leaf.to(device), batch_for("ddpg"))
    for leaf in (units(batch).observations, units(batch).rewards, units(batch).next_observations):
        assert leaf.device.type == device and leaf.dtype == torch.float32


# --- gradients and rates --------------------------------------------------------------------------------------------


def first_average(algorithm: Any, network: str) -> Tensor:
    averages = algorithm.state_dict()["optimisers"][network]["averages"]
    return torch.cat([value.flatten() for value in averages.values()])


@pytest.mark.parametrize("name", OFF_POLICY)
def test_the_gradient_of_each_network_is_clipped_to_its_norm(name: str) -> None:
    """After one step Adam's average is a tenth of the gradient: of norm 10⁻⁴ where it was clipped to 10⁻³."""
    changes = {"policy_delay": 1} if name == "td3" else {}
    clipped, free = make(name, max_grad_norm=1e-3, **changes), make(name, max_grad_norm=None, **changes)
    for algorithm in (clipped, free):
        algorithm.update(batch_for(name))
    for network in ("critic",) if name == "dqn" else ("critic", "actor"):
        assert float(first_average(clipped, network).norm()) == pytest.approx(1e-4, rel=1e-2)
        assert float(first_average(free, network).norm()) > 3e-4
    torch.testing.assert_close(
        torch.nn.functional.normalize(first_average(clipped, "critic"), dim=0),
        torch.nn.functional.normalize(first_average(free, "critic"), dim=0),
    )
    if "temperature" in clipped.learner.networks:
        assert float(first_average(clipped, "temperature").abs()) > 2e-4  # one number: it is left alone


@pytest.mark.parametrize("name", OFF_POLICY)
def test_the_rate_is_half_at_half_of_the_run(name: str) -> None:
    """200 steps of warm-up and an update every second step: update 150 comes after step 500 of 1,000."""
    schedule: dict[str, Any] = {"warmup_steps": 200, "updates_per_step": 0.5, "decay_lr": True}
    rates = {"lr": 1e-2} if name == "dqn" else {"critic_lr": 1e-2, "actor_lr": 1e-2}
    config = config_class(algorithm_class(name))(**schedule).for_run(1_000)
    assert config.decay_steps == 1_000 and config.for_run(5_000) == config
    left = [decayed(config, updates) for updates in (0, 150, 399, 400, 500)]
    assert left == pytest.approx([0.8, 0.5, 0.002, 0.0, 0.0])
    algorithm = make(name, **schedule, **rates, decay_steps=1_000)
    algorithm.learner.updates = 150
    before = {key: value.clone() for key, value in algorithm.learner.parameters_of("critic").items()}
    algorithm.update(batch_for(name))
    moves = [
        (value - before[key]).abs().max() for key, value in algorithm.learner.parameters_of("critic").items()
    ]  # Adam's first step moves a parameter by the rate, whatever its gradient
    assert float(torch.stack(moves).max()) == pytest.approx(5e-3, rel=1e-3)
    with pytest.raises(ValueError, match="expected decay_steps beside decay_lr"):
        make(name, decay_lr=True)


def test_without_options_an_update_is_the_plain_one() -> None:
    """Scale the batch, step critic and actor, move the targets; nothing is drawn, and nothing follows the steps."""
    algorithm, plain, batch = make("ddpg"), make("ddpg"), batch_for("ddpg")
    for _ in range(3):
        algorithm.update(batch)
        scaled = Scaling(BOX)(batch)
        plain.learner.step("critic", plain.critic_objective, scaled)
        plain.learner.step("actor", plain.actor_objective, scaled)
        plain.learner.move_targets(plain.config.tau)
    assert algorithm.follows is None and algorithm.noise is None and algorithm.learner.rate_scale == 1.0
    for part in ("online", "target"):
        for name, parameters in algorithm.state_dict()[part].items():
            assert all(torch.equal(v, plain.state_dict()[part][name][key]) for key, v in parameters.items())
    (ours,), (untouched,) = algorithm.state_dict()["generators"], make("ddpg").state_dict()["generators"]
    assert torch.equal(ours, untouched)


# --- noise on parameters --------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    assert action_distance(T([[0.0, 0.0]]), T([[0.3, 0.4]])).item() == pytest.approx(math.sqrt(0.25 / 2))
    assert action_distance(T([[0.0], [1.0]]), T([[0.0], [0.0]])).item() == pytest.approx(math.sqrt(1 / 2))
    q, other = T([[0.0, 0.0], [5.0, 5.0]]), T([[0.0, math.log(3)], [1.0, 1.0]])
    assert value_divergence(q, other).item() == pytest.approx(math.log(4 / 3) / 4)  # ½, ½ against ¼, ¾; and equal
    assert greedy_divergence(0.2, 4) == pytest.approx(-math.log(0.85))
    assert greedy_divergence(0.0, 4) == 0.0 and greedy_divergence(1.0, 4) == pytest.approx(math.log(4))


def test_sigma_grows_up_to_the_threshold_and_shrinks_beyond() -> None:
    sigma = adapted(T([0.1, 0.1, 0.1]), T([0.1, 0.2, 0.3]), 0.2)
    torch.testing.assert_close(sigma, T([0.101, 0.101, 0.1 / 1.01]))


@pytest.mark.parametrize(("threshold", "factor"), [(1e6, 1.01), (1e-9, 1 / 1.01)])
def test_sigma_is_adapted_on_every_fiftieth_update(threshold: float, factor: float) -> None:
    algorithm, seen = make("td3", parameter_noise=threshold), {}
    for update in range(1, 103):
        metrics = algorithm.update(batch_for("td3"))
        if "noise/sigma" in metrics:
            seen[update] = metrics["noise/sigma"].item() / parameter_noise.ACTOR_SIGMA
    assert seen == pytest.approx({1: factor, 51: factor**2, 101: factor**3})
    assert algorithm.state_dict()["noise"]["sigma"].tolist() == pytest.approx([0.03 * factor**3])


def test_the_distance_is_that_of_fresh_noise_on_the_batch() -> None:
    algorithm, twin = (make("ddpg", parameter_noise=0.2, actor_lr=1e-30) for _ in range(2))
    batch = batch_for("ddpg")
    distance = algorithm.update(batch)["noise/distance"].item()
    theta = twin.learner.parameters_of("actor")
    noise = twin.learner.normal(sum(value.numel() for value in theta.values()))
    shifted, place = {}, 0
    for key, value in theta.items():
        part = noise[place : place + value.numel()].view_as(value)
        shifted[key], place = value + 0.03 * part, place + value.numel()
    actions, others = (twin.actor(parameters, batch.observations) for parameters in (theta, shifted))
    assert distance == pytest.approx((actions - others).square().mean().sqrt().item(), rel=1e-5)


def test_the_noise_on_values_follows_epsilon() -> None:
    """100 steps of warm-up, an update every second step: after 200 updates ε is halfway from 1 to 0.2."""
    schedule: dict[str, Any] = {"warmup_steps": 100, "epsilon_start": 1.0, "epsilon_end": 0.2, "epsilon_steps": 1_000}
    algorithm = make("dqn", parameter_noise=True, **schedule)
    assert algorithm.noise.threshold(200) == pytest.approx(-math.log(1 - 0.6 + 0.6 / 3))
    assert algorithm.noise.threshold(10_000) == pytest.approx(-math.log(1 - 0.2 + 0.2 / 3))
    algorithm.update(batch_for("dqn"))  # a new network's values differ little: less than half of all actions would
    assert algorithm.noise.sigma.tolist() == pytest.approx([0.01 * 1.01])


def step_of(observations: Tensor, first: list[bool] | None = None) -> Step:
    lanes = len(observations)
    begins = torch.zeros(lanes, dtype=torch.bool) if first is None else T(first)
    return Step(observations, torch.zeros(lanes, 1), torch.zeros(lanes), begins, begins)


class Normalised(nn.Module):
    """tanh(w · o + b), normalised to ±1 and scaled by a gain that no noise may change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 1), nn.LayerNorm(1, bias=False)
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, observations: Tensor) -> Tensor:
        return (self.linear(observations) * self.fixed).tanh()


def test_perturbed_policies_by_hand() -> None:
    """θ̃ = θ + σ N of each lane's own, from its episode's first step to its last, whatever is learned meanwhile."""
    algorithm = DDPG(DDPGConfig(parameter_noise=0.2, warmup_steps=5), BOX, networks={"actor": Normalised})
    policy, generator, twin = algorithm.policy(deterministic=False, step=5), *generators(2)
    assert algorithm.policy(deterministic=False) is policy  # the same in every round
    assert algorithm.policy(deterministic=False, step=4) is not policy  # the warm-up
    theta = algorithm.learner.parameters_of("actor")
    seen = T([[1.0, 2.0], [-3.0, 0.5]])

    def expected(noise: list[Tensor]) -> Tensor:
        """Three normal numbers a lane: two weights and the bias."""
        weights = torch.stack([start["linear.weight"][0] + 0.03 * n[:2] for n in noise])
        biases = torch.stack([start["linear.bias"][0] + 0.03 * n[2] for n in noise])
        return 2 * ((seen * weights).sum(1) + biases).tanh()[:, None]

    start = {key: value.clone() for key, value in theta.items()}
    one, two, three = (torch.empty(3).normal_(generator=twin) for _ in range(3))
    actions, carry = policy(step_of(seen, [True, True]), policy.initial(2), generator)
    torch.testing.assert_close(actions, expected([one, two]))
    theta["linear.weight"].add_(1.0)
    actions, carry = policy(step_of(seen), carry, generator)
    torch.testing.assert_close(actions, expected([one, two]))
    theta["linear.weight"].sub_(1.0)
    actions, after = policy(step_of(seen, [False, True]), carry, generator)
    torch.testing.assert_close(actions, expected([one, three]))
    again, _ = policy(step_of(seen), carry, generator)  # the carry of before is as it was
    torch.testing.assert_close(again, expected([one, two]))
    assert after[0]["norm.weight"].tolist() == [[1.0], [1.0]]
    assert after[0]["fixed"].tolist() == [[1.0], [1.0]]
    alone, _ = policy(step_of(seen[:1], [True]), policy.initial(1), generators(1)[0])
    torch.testing.assert_close(alone, expected([one, two])[:1])


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(7) for _ in range(count)]


def test_a_perturbed_critic_is_followed_greedily_after_the_warm_up() -> None:
    network = {"critic": lambda: nn.Linear(2, 3)}
    algorithm = DQN(DQNConfig(parameter_noise=True, warmup_steps=5, epsilon_start=1.0), DISCRETE, networks=network)
    algorithm.noise.sigma.fill_(3.0)  # type: ignore[union-attr]  # it has one
    policy, seen = algorithm.policy(deterministic=False, step=5), torch.randn(400, 2)
    actions, carry = policy(step_of(seen, [True] * 400), policy.initial(400), generators(1)[0])
    values = torch.einsum("lij,lj->li", carry[0]["weight"], seen) + carry[0]["bias"]
    assert torch.equal(actions, values.argmax(1)) and len(actions.unique()) == 3
    again, _ = policy(step_of(seen), carry, generators(1)[0])
    assert torch.equal(again, actions)  # the same state, the same action
    assert torch.equal(policy.distribution(step_of(seen), carry)[0].mode(), actions)
    warm = algorithm.policy(deterministic=False, step=0).distribution(step_of(seen), None)[0]
    assert float(warm.probs.min()) == pytest.approx(1 / 3)  # type: ignore[attr-defined]  # discrete


def test_each_seed_has_a_sigma_and_noise_of_its_own() -> None:
    together = TD3(TD3Config(parameter_noise=0.05, hidden_sizes=(8, 8)), BOX, seeds=(3, 4))
    assert together.noise is not None
    together.noise.sigma.copy_(T([1.0, 1e-4]))
    batch = torch.utils._pytree.tree_map(lambda leaf: torch.stack([leaf, leaf]), batch_for("td3"))
    together.update(batch)
    assert together.noise.sigma.tolist() == pytest.approx([1 / 1.01, 1.01e-4])
    seen, acted = torch.randn(5, 2), []
    for index in (0, 1):
        noisy, plain = (together.policy(index, deterministic=how) for how in (False, True))
        actions, _ = noisy(step_of(seen), noisy.initial(5), generators(1)[0])
        acted.append((actions - plain(step_of(seen), None)[0]).abs().max().item())
    assert acted[0] > 0.1 and 0 < acted[1] < 0.01


def test_what_a_policy_remembers_outlives_a_checkpoint(tmp_path: Path) -> None:
    algorithm = DDPG(DDPGConfig(parameter_noise=0.2), Spec(spaces.Box(-np.inf, np.inf, (3,)), BOX.action_space))
    first, second = (EndlessEpisodes(4, 7) for _ in range(2))
    one, other = VectorRunner("Pendulum-v1", 2, first), VectorRunner("Pendulum-v1", 2, second)
    policy, noise = algorithm.policy(deterministic=False), torch.Generator().manual_seed(0)
    for _ in range(230):  # in the middle of the second episodes
        one.step(policy, noise, keep_carry=True)
    second.begun = dict(first.begun)
    checkpoint.save(tmp_path / "rollout", one.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "rollout"))
    copied = torch.Generator()
    copied.set_state(noise.get_state())
    for _ in range(200):
        mine, theirs = one.step(policy, noise, keep_carry=True), other.step(policy, copied, keep_carry=True)
        assert np.array_equal(mine.played.actions, theirs.played.actions)


def test_a_users_config_may_decay_its_rates_without_a_length_in_steps() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(Config):
        decay_lr: bool = True

    assert Mine().for_run(1_000) == Mine()
