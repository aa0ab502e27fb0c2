"""IQ-Learn, LS-IQ and SQIL: losses by hand, plain implementations, closed forms on tables, and known traps."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from sameness import equal, state_of
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

import herdbook
from herdbook.core.policy import Scaling
from herdbook.core.types import Spec, Step, Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer
from herdbook.experiments.train import resume
from herdbook.irl.iq_learn import IQBatch, IQLearn, IQLearnConfig, chi2_term, initial_term, value_term
from herdbook.irl.ls_iq import LSIQ, LSIQConfig, agent_target, capped_entropies, squared_error
from herdbook.irl.mixture import half_and_half
from herdbook.irl.rewards import RewardDesign, implicit_reward, load_reward, soft_value
from herdbook.irl.sqil import SQIL, SQILConfig, imitation_rewards, soft_bellman_error
from herdbook.online.sac import SAC, SACConfig
from herdbook.tabular.mdp import MDP
from herdbook.tabular.planning import soft_value_iteration

T = torch.tensor
STATES, ACTIONS, SIZE = 3, 2, 8
VECTOR = spaces.Box(-np.inf, np.inf, (STATES,), np.float32)
BOX, DISCRETE = Spec(VECTOR, spaces.Box(-1, 1, (ACTIONS,))), Spec(VECTOR, spaces.Discrete(4))
ONLINE: dict[str, Any] = {"online": True, "hidden_sizes": (16, 12), "batch_size": SIZE}
ALGORITHMS: dict[str, tuple[Any, Any]] = {
    "iq_learn": (IQLearn, IQLearnConfig(**ONLINE, value_term="initial", chi2="both")),
    "ls_iq": (LSIQ, LSIQConfig(hidden_sizes=(16, 12), batch_size=SIZE, actor_warmup_steps=0)),
    "sqil": (SQIL, SQILConfig(hidden_sizes=(16, 12), batch_size=SIZE)),
}


def steps(spec: Spec, rows: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    discrete = isinstance(spec.action_space, spaces.Discrete)
    actions = torch.randint(4, (rows,), generator=generator)
    return Transitions(
        torch.randn(rows, STATES, generator=generator),
        actions if discrete else torch.rand(rows, ACTIONS, generator=generator) * 1.8 - 0.9,
        torch.randn(rows, generator=generator),
        0.99 * (torch.rand(rows, generator=generator) < 0.7).float(),
        torch.randn(rows, STATES, generator=generator),
    )


def episodes(lengths: list[int], seed: int = 0, spec: Spec = BOX, offset: float = 0.0) -> Episodes:
    """Observation t of episode e is (offset + 100 e + t, …); every second episode terminates."""
    generator = np.random.default_rng(seed)
    space = spec.action_space
    discrete = isinstance(space, spaces.Discrete)
    return Episodes.from_episodes(
        [
            {
                "observations": np.repeat(offset + 100.0 * e + np.arange(n + 1)[:, None], STATES, 1),
                "actions": generator.integers(0, 4, n) if discrete else generator.uniform(-1, 1, (n, ACTIONS)),
                "rewards": generator.normal(size=n),
                "terminated": e % 2 == 0,
                "truncated": e % 2 == 1,
            }
            for e, n in enumerate(lengths)
        ],
        observation_space=VECTOR,
        action_space=space,
    )


# --- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "temperature", "expected"),
    [
        ([0.0, 0.0], 1.0, math.log(2)),
        ([1.0, 0.0], 0.5, 0.5 * math.log(math.e**2 + 1)),
        ([1000.0, 0.0], 0.001, 1000.0),  # no overflow
        ([3.0], 2.0, 3.0),
    ],
)
def test_the_soft_value_by_hand(q: list[float], temperature: float, expected: float) -> None:
    assert float(soft_value(T(q), temperature)) == pytest.approx(expected)


@pytest.mark.parametrize(("q", "value", "discount", "reward"), [(2, 3, 0.5, 0.5), (2, 3, 0.0, 2.0), (-1, 4, 1.0, -5.0)])
def test_the_implicit_reward_by_hand(q: float, value: float, discount: float, reward: float) -> None:
    assert implicit_reward(T([q]), T([value]), T([discount])).item() == reward


def test_the_terms_of_iq_learn_by_hand() -> None:
    assert initial_term(T([2.0, 4.0]), 0.9).item() == pytest.approx(0.3)
    assert initial_term(T([2.0, 4.0]), 1.0).item() == 0
    assert value_term(T([2.0, 4.0]), T([1.0, 6.0]), T([0.5, 0.0])).item() == pytest.approx((1.5 + 4) / 2)
    assert chi2_term(T([[1.0, -3.0]]), 0.5).item() == pytest.approx(5 / 2)
    assert chi2_term(T([[1.0, -3.0], [0.0, 0.0]]), 2.5).item() == pytest.approx(2.5 / 10)


@pytest.mark.parametrize(
    ("value", "discount", "expected"),
    [
        (10.0, 0.9, -2 + 9),
        (1e9, 0.9, -2 + 18),
        (math.inf, 0.9, -2 + 18),
        (-math.inf, 0.9, -20),
        (-20.0, 0.9, -20),
        (10.0, 0.0, -20),  # −2 for ever
        (math.inf, 0.0, -20),
    ],
)
def test_the_target_of_ls_iq_by_hand(value: float, discount: float, expected: float) -> None:
    assert agent_target(T([value]), T([discount]), -2.0, 0.9).item() == pytest.approx(expected)


def test_the_errors_of_ls_iq_and_sqil_by_hand() -> None:
    assert squared_error(T([[1.0, 3.0]]), 2.0).item() == 1
    assert squared_error(T([[1.0, 3.0]]), T([1.0, 0.0])).item() == 4.5
    assert imitation_rewards(T([5.0, 6.0, 7.0, 8.0])).tolist() == [1, 1, 0, 0]
    assert imitation_rewards(T([[5.0, 6.0], [7.0, 8.0]])).tolist() == [[1, 0], [1, 0]]  # two seeds
    next_q = T([[0.0, 0.0], [5.0, 5.0]])
    error = soft_bellman_error(T([2.0, 1.0]), T([1.0, 0.0]), T([0.5, 0.0]), next_q, 1.0)
    assert error.item() == pytest.approx(((1 - math.log(2) / 2) ** 2 + 1) / 2)


# --- plain implementations ------------------------------------------------------------------------------------------


class Plain:
    """A network and its Adam, from the parameters of one of ours: a loop over copies and layers."""

    def __init__(self, algorithm: Any, name: str, lr: float, activation: Callable[[Tensor], Tensor]) -> None:
        given = algorithm.learner.parameters_of(name)
        self.weights = {key: value.clone().requires_grad_() for key, value in given.items()}
        self.old = {key: value.clone() for key, value in given.items()}
        self.adam, self.activation = torch.optim.Adam(self.weights.values(), lr), activation

    def __call__(self, *inputs: Tensor, target: bool = False) -> Tensor:
        weights, x = self.old if target else self.weights, torch.cat(inputs, -1)
        layers = len(weights) // 2
        first = weights["mlp.layers.0.weight"]

        def run(copy: int | None) -> Tensor:
            y = x
            for layer in range(layers):
                weight, bias = (weights[f"mlp.layers.{layer}.{part}"] for part in ("weight", "bias"))
                y = y @ weight.T + bias if copy is None else y @ weight[copy] + bias[copy, 0]
                y = self.activation(y) if layer < layers - 1 else y
            return y.squeeze(-1)

        return run(None) if first.dim() == 2 else torch.stack([run(copy) for copy in range(len(first))])

    def descend(self, loss: Tensor) -> None:
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def follow(self, tau: float) -> None:
        self.old = {key: (1 - tau) * self.old[key] + tau * self.weights[key].detach() for key in self.old}

    def assert_same(self, algorithm: Any, name: str) -> None:
        for key, value in algorithm.learner.parameters_of(name).items():
            torch.testing.assert_close(value, self.weights[key].detach(), rtol=1e-4, atol=1e-6)
        for key, value in algorithm.learner.params.target.get(name, {}).items():
            torch.testing.assert_close(value, self.old[key], rtol=1e-4, atol=1e-6)


class Noise:
    """The noise that a learner is about to draw."""

    def __init__(self, algorithm: Any) -> None:
        self.generator = torch.Generator()
        self.generator.set_state(algorithm.learner.generators[0].get_state())

    def __call__(self, rows: int) -> Tensor:
        return torch.empty(rows, ACTIONS).normal_(generator=self.generator)


def act(outputs: Tensor, noise: Tensor, smooth: bool) -> tuple[Tensor, Tensor]:
    mean, log_std = outputs.chunk(2, -1)
    log_std = -5 + 7 * (log_std.tanh() + 1) / 2 if smooth else log_std.clamp(-5, 2)
    base = Normal(mean, log_std.exp())
    squashed = TransformedDistribution(base, TanhTransform(cache_size=1))
    actions = (mean + log_std.exp() * noise).tanh()
    return actions, squashed.log_prob(actions.clamp(-1 + 1e-7, 1 - 1e-7)).sum(-1)


def published_loss(
    q: Tensor, v: Tensor, next_v: Tensor, initial_v: Tensor | None, over: Tensor, expert: Tensor, c: IQLearnConfig
) -> Tensor:
    """The loss of one critic by masks, as in the paper's code."""
    y = (1 - over) * c.discount * next_v
    loss = -(q - y)[expert].mean()
    if c.value_term == "expert":
        loss = loss + (v - y)[expert].mean()
    elif c.value_term == "all":
        loss = loss + (v - y).mean()
    else:
        assert initial_v is not None
        loss = loss + (1 - c.discount) * initial_v.mean()
    if c.chi2 == "expert":
        loss = loss + 1 / (4 * c.chi2_scale) * ((q - y) ** 2)[expert].mean()
    if c.chi2 == "both":
        loss = loss + 1 / (4 * c.chi2_scale) * ((q - y) ** 2).mean()
    return loss


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"online": False, "value_term": "expert", "chi2": "expert"},
        {"online": False, "value_term": "initial", "chi2": "none"},
        {"value_term": "all", "chi2": "both", "tau": 0.1},
        {"value_term": "initial", "chi2": "both", "tau": 0.1, "critics": 2, "chi2_scale": 0.8},
        {"value_term": "expert", "chi2": "expert", "critics": 2},
    ],
)
def test_iq_learn_is_the_published_loss(changes: dict[str, Any], discrete: bool) -> None:
    c = IQLearnConfig(**{**ONLINE, "critic_lr": 1e-2, "actor_lr": 1e-2, "temperature": 0.2, **changes})
    ours = IQLearn(c, DISCRETE if discrete else BOX, seeds=(3,))
    critic = Plain(ours, "critic", 1e-2, F.elu if discrete else torch.relu)
    actor, noise = None if discrete else Plain(ours, "actor", 1e-2, torch.relu), Noise(ours)

    def value(states: Tensor, drawn: Tensor | None, target: bool = False) -> Tensor:
        if actor is None:
            q = critic(states, target=target).min(0).values
            return 0.2 * torch.log(torch.exp(q / 0.2).sum(-1))
        assert drawn is not None
        actions, log_prob = act(actor(states), drawn, smooth=True)
        return critic(states, actions, target=target).min(0).values - 0.2 * log_prob

    rows = 2 * SIZE if c.online else SIZE
    expert = torch.arange(rows) < SIZE
    for number in range(4):
        batch = steps(ours.spec, rows, number)
        initial = steps(ours.spec, SIZE, 50 + number).observations if c.value_term == "initial" else None
        ours.update(IQBatch(batch, initial))
        one, two, three = (None, None, None) if discrete else (noise(rows), noise(rows), noise(rows))
        over = (batch.discounts == 0).float()
        if discrete:
            q = critic(batch.observations).gather(-1, batch.actions.expand(c.critics, rows)[..., None])[..., 0]
        else:
            q = critic(batch.observations, batch.actions)
        v, next_v = value(batch.observations, one), value(batch.next_observations, two, c.tau is not None)
        initial_v = None if initial is None else value(initial, None if one is None else one[:SIZE])
        losses = [published_loss(each, v, next_v, initial_v, over, expert, c) for each in q]
        critic.descend(sum(losses[1:], losses[0]) / c.critics)
        if actor is not None and three is not None:
            actions, log_prob = act(actor(batch.observations), three, smooth=True)
            actor.descend((0.2 * log_prob - critic(batch.observations, actions).min(0).values).mean())
        if c.tau is not None:
            critic.follow(c.tau)
    critic.assert_same(ours, "critic")
    if actor is not None:
        actor.assert_same(ours, "actor")


@pytest.mark.parametrize("critics", [1, 2])
@pytest.mark.parametrize("policy_term", ["value", "replay"])
@pytest.mark.parametrize("cap_entropy", [True, False])
def test_ls_iq_is_its_equations(policy_term: Any, cap_entropy: bool, critics: int) -> None:
    c = LSIQConfig(
        hidden_sizes=(16, 12), batch_size=SIZE, critic_lr=1e-2, actor_lr=1e-2, tau=0.1, temperature=5.0,
        policy_term=policy_term, cap_entropy=cap_entropy, actor_warmup_steps=0, discount=0.99, critics=critics,
    )  # fmt: skip
    ours = LSIQ(c, BOX, seeds=(3,))
    critic, actor = Plain(ours, "critic", 1e-2, torch.relu), Plain(ours, "actor", 1e-2, torch.relu)
    noise = Noise(ours)
    for number in range(4):
        batch = steps(BOX, 2 * SIZE, number)
        ours.update(batch)
        drawn = [noise(2 * SIZE) for _ in range(3)]
        states, following = batch.observations, batch.next_observations
        with torch.no_grad():
            next_actions, next_log_prob = act(actor(following), drawn[1], smooth=False)
            entropy = -next_log_prob
            if cap_entropy:
                largest = max(float(h) for h in entropy[SIZE:])
                entropy = T([min(float(h), largest) if row < SIZE else float(h) for row, h in enumerate(entropy)])
            next_v = critic(following, next_actions, target=True).min(0).values + 5.0 * entropy
            y = T(
                [
                    -2 / (1 - 0.99) if discount == 0 else -2 + 0.99 * min(max(float(v), -200.0), 200.0)
                    for v, discount in zip(next_v, batch.discounts.tolist(), strict=True)
                ]
            )
        losses = []
        for one in range(critics):
            q = critic(states, batch.actions)[one]
            loss = ((q[:SIZE] - 200) ** 2).mean()
            if policy_term == "replay":
                loss = loss + ((q[SIZE:] - y[SIZE:]) ** 2).mean()
            else:
                actions, log_prob = act(actor(states), drawn[0], smooth=False)
                loss = loss + ((critic(states, actions)[one] - 5.0 * log_prob - y) ** 2).mean()
            losses.append(loss)
        critic.descend(sum(losses[1:], losses[0]) / critics)
        actions, log_prob = act(actor(states), drawn[2], smooth=False)
        actor.descend((5.0 * log_prob - critic(states, actions).min(0).values).mean())
        critic.follow(0.1)
    critic.assert_same(ours, "critic")
    actor.assert_same(ours, "actor")


def test_ls_iq_learns_from_the_agents_actions_by_default() -> None:
    """The value term does not read them, so it cannot credit them."""
    batch = steps(BOX, 2 * SIZE)
    other = dataclasses.replace(batch, actions=torch.cat([batch.actions[:SIZE], -batch.actions[SIZE:]]))
    for changes, reads in (({}, True), ({"policy_term": "replay"}, True), ({"policy_term": "value"}, False)):
        config = dataclasses.replace(ALGORITHMS["ls_iq"][1], **changes)
        learners = []
        for each in (batch, other):
            learners.append(LSIQ(config, BOX))
            learners[-1].update(each)
        first, second = (one.learner.parameters_of("critic") for one in learners)
        assert equal(first, second) is not reads, changes


def test_sqil_is_soft_q_learning_for_discrete_actions() -> None:
    ours = SQIL(SQILConfig(hidden_sizes=(16, 12), batch_size=SIZE, lr=1e-2, tau=0.1), DISCRETE)
    critic = Plain(ours, "critic", 1e-2, torch.relu)
    for number in range(4):
        batch = steps(DISCRETE, 2 * SIZE, number)
        ours.update(batch)
        loss = torch.zeros(())
        for part, reward in ((slice(SIZE), 1.0), (slice(SIZE, None), 0.0)):
            with torch.no_grad():
                value = torch.log(torch.exp(critic(batch.next_observations[part], target=True)).sum(-1))
                y = reward + batch.discounts[part] * value
            q = critic(batch.observations[part])[range(SIZE), batch.actions[part]]
            loss = loss + ((q - y) ** 2).mean()
        critic.descend(loss)
        critic.follow(0.1)
    critic.assert_same(ours, "critic")


def test_sqil_is_sac_on_fixed_rewards_for_continuous_actions() -> None:
    config = SQILConfig(hidden_sizes=(16, 12), batch_size=SIZE, temperature=0.3)
    ours, sac = SQIL(config, BOX), SAC(SACConfig(hidden_sizes=(16, 12), initial_temperature=0.3), BOX)
    for number in range(3):
        batch = steps(BOX, 2 * SIZE, number)
        ours.update(batch)
        rewards = T([1.0] * SIZE + [0.0] * SIZE)
        sac.update(Transitions(batch.observations, batch.actions, rewards, batch.discounts, batch.next_observations))
    assert equal(ours.state_dict(), sac.state_dict())


# --- closed forms on tables -----------------------------------------------------------------------------------------


def tabular(mdp: MDP, q: np.ndarray, temperature: float, **fields: Any) -> IQLearn:
    """IQ-Learn whose Q is this table."""
    spec = Spec(spaces.Discrete(mdp.num_states), spaces.Discrete(mdp.num_actions))
    config = IQLearnConfig(hidden_sizes=(), temperature=temperature, discount=mdp.discount, **fields)
    algorithm = IQLearn(config, spec)
    with torch.no_grad():
        weights = algorithm.learner.parameters_of("critic")
        weights["mlp.layers.0.weight"].copy_(T(q, dtype=torch.float32)[None])
        weights["mlp.layers.0.bias"].zero_()
    return algorithm


def seen(states: Any) -> Step:
    states = torch.as_tensor(states)
    no = torch.zeros(len(states), dtype=torch.bool)
    return Step(states, torch.zeros_like(states), torch.zeros(len(states)), no, no)


@pytest.fixture(scope="module")
def mdp() -> MDP:
    """Four states on a line; action 1 goes right, also into the last state, which is terminal; action 0 goes left."""
    transitions = np.zeros((4, 2, 4))
    for state in range(3):
        transitions[state, 0, max(state - 1, 0)] = transitions[state, 1, state + 1] = 1
    rewards = np.random.default_rng(3).normal(size=(4, 2))
    return MDP(
        transitions=transitions,
        rewards=rewards[:, :, None].repeat(4, 2),
        initial=np.array([0.7, 0.3, 0, 0]),
        discount=0.9,
        terminal=np.array([False, False, False, True]),
    )


def test_the_implicit_reward_of_the_soft_optimal_q_is_the_true_reward(mdp: MDP, tmp_path: Path) -> None:
    solution = soft_value_iteration(mdp, temperature=0.5)
    algorithm = tabular(mdp, solution.q, 0.5)
    learned = load_reward(algorithm.reward().save(tmp_path))
    for reward in (algorithm.reward(), learned):
        for state in range(3):
            for action in range(2):
                following = int(mdp.transitions[state, action].argmax())
                found = reward.at(T([state]), T([action]), T([following]), T([following == 3]))
                assert found[0] == pytest.approx(mdp.expected_rewards[state, action], abs=1e-5)
    probs = algorithm.policy().distribution(seen([0, 1, 2]), None)[0].probs  # type: ignore[attr-defined]
    np.testing.assert_allclose(probs, solution.policy[:3], atol=1e-5)


def test_offline_iq_learn_recovers_the_soft_optimal_policy_of_the_expert(mdp: MDP) -> None:
    """Without χ², eq. 6 makes the loss −α mean log π(a|s): the policy is the expert's, for any data of all states."""
    expert = soft_value_iteration(mdp, temperature=2.0).policy
    generator, played = np.random.default_rng(0), []
    for _ in range(1_500):
        state, states, actions = int(generator.choice(4, p=mdp.initial)), [], []
        while state != 3 and len(actions) < 40:
            states.append(state)
            actions.append(int(generator.choice(2, p=expert[state])))
            state = int(mdp.transitions[state, actions[-1]].argmax())
        values: dict[str, Any] = {"observations": np.array([*states, state]), "actions": np.array(actions)}
        played.append(values | {"rewards": np.zeros(len(actions)), "terminated": state == 3, "truncated": state != 3})
    space, choice = spaces.Discrete(4), spaces.Discrete(2)
    replay = ReplayBuffer(Episodes.from_episodes(played, observation_space=space, action_space=choice))
    algorithm = tabular(mdp, np.zeros((4, 2)), 2.0, chi2="none", batch_size=1_024, critic_lr=5e-2)
    generators = [torch.Generator().manual_seed(0)]
    for _ in range(120):
        algorithm.update(algorithm.sample(replay, generators))
    probs = algorithm.policy().distribution(seen([0, 1, 2]), None)[0].probs  # type: ignore[attr-defined]
    np.testing.assert_allclose(probs, expert[:3], atol=0.03)
    assert np.abs(expert[:3] - 0.5).max() > 0.2  # the test could fail


def test_the_reward_of_continuous_actions_is_that_of_the_mode() -> None:
    for name in ("iq_learn", "ls_iq"):
        make, config = ALGORITHMS[name]
        algorithm, batch = make(config, BOX), steps(BOX, 6)
        actor, critic = (Plain(algorithm, network, 1.0, torch.relu) for network in ("actor", "critic"))
        with torch.no_grad():
            mode = actor(batch.next_observations)[:, :ACTIONS].tanh()
            value = critic(batch.next_observations, mode)[0]
            expected = critic(batch.observations, batch.actions)[0] - batch.discounts * value
        torch.testing.assert_close(algorithm.reward()(batch), expected)


# --- traps ----------------------------------------------------------------------------------------------------------


def test_trap_discrete_actions_are_sampled_in_evaluation(mdp: MDP) -> None:
    q = np.array([[0.0, 0.3], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    algorithm = tabular(mdp, q, 0.5)
    many = seen([0] * 4_000)
    share = float(algorithm.policy()(many, None, torch.Generator().manual_seed(0))[0].float().mean())
    assert share == pytest.approx(1 / (1 + math.exp(-0.6)), abs=0.03)
    again = algorithm.policy()(many, None, torch.Generator().manual_seed(0))[0]
    assert torch.equal(again, algorithm.policy()(many, None, torch.Generator().manual_seed(0))[0])
    by_mode = tabular(mdp, q, 0.5, evaluate_by="mode")
    assert bool((by_mode.policy()(many, None)[0] == 1).all())
    assert 0 < float(by_mode.policy(deterministic=False)(many, None, torch.Generator())[0].float().mean()) < 1
    with_actor = IQLearn(IQLearnConfig(), BOX).policy(), IQLearn(IQLearnConfig(evaluate_by="sample"), BOX).policy()
    states = Step(torch.zeros(1, STATES), torch.zeros(1, ACTIONS), torch.zeros(1), T([True]), T([True]))
    for policy, same in zip(with_actor, (True, False), strict=True):
        one, two = (policy(states, None, torch.Generator().manual_seed(n))[0] for n in range(2))
        assert torch.equal(one, two) is same


def loss_of(config: IQLearnConfig, spec: Spec = DISCRETE) -> float:
    algorithm = IQLearn(config, spec)
    batch = IQBatch(steps(spec, 2 * SIZE), steps(spec, SIZE, 9).observations)
    if config.value_term != "initial":
        batch = IQBatch(batch.transitions)
    return float(algorithm.update(batch)["loss/critic"])


def test_trap_the_value_terms_are_different_losses() -> None:
    losses = {term: loss_of(IQLearnConfig(**ONLINE, value_term=term)) for term in ("initial", "expert", "all")}
    assert len({round(loss, 4) for loss in losses.values()}) == 3


def test_trap_chi2_over_the_expert_and_over_both_are_different_divergences() -> None:
    losses = {chi2: loss_of(IQLearnConfig(**ONLINE, chi2=chi2)) for chi2 in ("expert", "both", "none")}
    assert len({round(loss, 4) for loss in losses.values()}) == 3


def test_trap_initial_states_are_not_all_expert_states() -> None:
    data = episodes([7, 9, 5]).subsample(4, offset=2)  # the mask leaves out every first step
    replay = ReplayBuffer(data)
    assert replay.initial_observations()[:, 0].tolist() == [0, 100, 200]
    config = IQLearnConfig(**{**ONLINE, "batch_size": 64}, value_term="initial")
    algorithm = IQLearn(config, BOX, demonstrations=replay)
    batch = algorithm.sample(ReplayBuffer(episodes([20], offset=5000)), [torch.Generator().manual_seed(0)])
    assert set(batch.initial[:, 0].tolist()) == {0, 100, 200}  # type: ignore[index]  # not None
    assert batch.transitions.observations[:64, 0].max() < 300 and batch.transitions.observations[64:, 0].min() >= 5000
    several = IQLearn(config, BOX, demonstrations=replay, seeds=(0, 1))
    two = several.sample(replay, [torch.Generator().manual_seed(seed) for seed in range(2)])
    assert two.initial.shape == (2, 64, STATES)  # type: ignore[union-attr]  # not None
    assert two.transitions.rewards.shape == (2, 128)
    with pytest.raises(TypeError, match="an online replay does not keep the first observation"):
        ReplayBuffer.online(BOX, 10).initial_observations()


def test_trap_the_temperature_of_iq_learn_and_ls_iq_is_fixed() -> None:
    for name in ("iq_learn", "ls_iq"):
        make, config = ALGORITHMS[name]
        assert "temperature" not in make(config, BOX).learner.networks


@pytest.mark.parametrize("name", ALGORITHMS)
def test_trap_an_expert_buffer_smaller_than_the_batch_keeps_the_mix(name: str) -> None:
    make, config = ALGORITHMS[name]
    few, own = ReplayBuffer(episodes([3])), ReplayBuffer(episodes([50, 60], offset=5000))
    algorithm = make(config, BOX, demonstrations=few)
    batch = algorithm.sample(own, [torch.Generator().manual_seed(0)])
    batch = batch.transitions if isinstance(batch, IQBatch) else batch
    assert (batch.observations[:, 0] < 5000).tolist() == [True] * SIZE + [False] * SIZE
    two = half_and_half(few, own, SIZE, [torch.Generator().manual_seed(seed) for seed in range(2)], discount=0.9)
    assert (two.observations[..., 0] < 5000).tolist() == [[True] * SIZE + [False] * SIZE] * 2


@pytest.mark.parametrize("name", ALGORITHMS)
def test_demonstrations_of_other_spaces_or_none_are_refused(name: str) -> None:
    make, config = ALGORITHMS[name]
    data = ReplayBuffer(episodes([SIZE]))
    wider = spaces.Box(-1, 1, (STATES + 1,))
    for spec, what in ((Spec(wider, BOX.action_space), "observations"), (Spec(VECTOR, wider), "actions")):
        with pytest.raises(ValueError, match=rf"^{name}: expected demonstrations with {what} in .*, got Box"):
            make(config, spec, demonstrations=data)
    with pytest.raises(ValueError, match=f"^{name}: expected demonstrations to learn from, got None"):
        make(config, BOX).sample(data, [torch.Generator()])


def test_trap_the_entropy_cap_of_ls_iq_is_not_a_floor() -> None:
    entropies = T([5.0, -1.0, 3.0, 2.0, 3.0, -4.0])  # three of the expert, three of the agent
    assert capped_entropies(entropies, 3).tolist() == [3, -1, 3, 2, 3, -4]
    assert capped_entropies(T([-9.0, 1.0]), 1).tolist() == [-9, 1]


def test_the_targets_of_ls_iq_stay_within_its_bounds_whatever_q_is() -> None:
    generator = torch.Generator().manual_seed(0)
    for regularisation, discount in ((0.5, 0.99), (10.0, 0.5), (1e-3, 0.999), (0.5, 0.0)):
        bound = 1 / (regularisation * (1 - discount))
        values = torch.randn(500, generator=generator) * 10 ** torch.linspace(-3, 30, 500)
        values[:4] = T([math.inf, -math.inf, bound, -bound])
        discounts = discount * (torch.rand(500, generator=generator) < 0.7).float()
        targets = agent_target(values, discounts, -1 / regularisation, discount)
        assert bool(targets.isfinite().all()) and float(targets.abs().max()) <= bound * (1 + 1e-5)


def test_a_termination_has_no_value_and_a_truncation_has_one() -> None:
    data = ReplayBuffer(episodes([3, 3]))  # the first terminates, the second is truncated
    ends = data.gather(T([2, 5]), discount=0.9)
    assert ends.discounts.tolist() == pytest.approx([0.0, 0.9])
    algorithm = IQLearn(IQLearnConfig(discount=0.9), BOX)
    critic = Plain(algorithm, "critic", 1.0, torch.relu)
    q = critic(ends.observations, ends.actions)[0].detach()
    reward = algorithm.reward()(ends)
    assert reward[0] == pytest.approx(float(q[0]), rel=1e-5) and reward[1] != pytest.approx(float(q[1]), rel=1e-3)


@pytest.mark.parametrize("changes", [{"value_term": "all"}, {"chi2": "both"}])
def test_terms_over_the_agents_steps_are_refused_offline(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="IQLearnConfig: expected online=True beside value_term=.*, chi2=.*got False"):
        IQLearnConfig(**changes)


def test_a_soft_q_design_is_checked() -> None:
    with pytest.raises(ValueError, match="soft_q: expected the inputs transition and no shaping, got 'state', False"):
        RewardDesign(form="soft_q", inputs="state")
    networks = {"critic": lambda: torch.nn.Linear(STATES, 4)}
    own = IQLearn(IQLearnConfig(), DISCRETE, networks=networks)
    with pytest.raises(ValueError, match="expected members with the parameters"):
        own.reward()
    assert RewardDesign.soft_q().build(Scaling(BOX)).critic.mlp.copies == 1  # type: ignore[union-attr]


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_online_run_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    env = gymnasium.make("Pendulum-v1")
    shown = random_episode(env)
    _, config = ALGORITHMS[name]
    changes = {"warmup_steps": 20, "replay_steps": 500, "batch_size": SIZE, "hidden_sizes": (8,)}
    config = dataclasses.replace(config, **changes)
    known: dict[str, Any] = {"dataset": shown, "env": "Pendulum-v1"}
    fixed: dict[str, Any] = {"eval_episodes": 0, "checkpoint_every": 30, "quiet": True}
    whole = herdbook.train(config, steps=60, run_dir=tmp_path / "whole", **known, **fixed)
    part = herdbook.train(config, steps=30, run_dir=tmp_path / "part", **known, **fixed)
    part, _ = resume(part.path, steps=60, quiet=True, **known)
    assert equal(state_of(whole), state_of(part)) and whole.metrics() == part.metrics()
    assert whole.metrics()[-1]["loss/critic"] != whole.metrics()[-2]["loss/critic"]
    assert (whole.path / "rewards" / "seed_0" / "reward.json").exists() is (name != "sqil")


def random_episode(env: Any) -> Episodes:
    observations, actions = [env.reset(seed=0)[0]], []
    env.action_space.seed(0)
    for _ in range(12):
        actions.append(env.action_space.sample())
        observations.append(env.step(actions[-1])[0])
    return Episodes.from_episodes(
        [{"observations": np.stack(observations), "actions": np.stack(actions), "rewards": np.zeros(12),
          "terminated": False, "truncated": True}],
        observation_space=env.observation_space,
        action_space=env.action_space,
    )  # fmt: skip
