"""MaxEnt and MCE IRL: worked by hand, against enumerated paths and other planners, invariants, traps, bad input."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import herdbook
from herdbook.core.random import generator as torch_generator
from herdbook.core.runs import Run
from herdbook.core.types import Spec, Step, Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer
from herdbook.evaluation.evaluate import evaluate
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.train import resume
from herdbook.irl import maxent_irl, mce_irl
from herdbook.irl.known_dynamics import Fitted, Flow, Plan, Valuation, flow_of, objective, soft_plan
from herdbook.irl.maxent_irl import MaxEntIRL, MaxEntIRLConfig, optimistic_value
from herdbook.irl.mce_irl import MCEIRL, MCEIRLConfig, expected_value
from herdbook.irl.rewards import load_reward
from herdbook.tabular.dynamics import Dynamics
from herdbook.tabular.environment import GridWorldEnv, MDPEnv, model_of
from herdbook.tabular.gridworld import GridWorld
from herdbook.tabular.mdp import MDP
from herdbook.tabular.planning import (
    evaluate_policy,
    occupancy,
    policy_iteration,
    soft_value_iteration,
    uniform,
    visitation,
)
from herdbook.tabular.policy import TabularPolicy

# State 0: action 0 stays; action 1 goes to 1 or, as likely, stays. State 1: both actions stay.
HAND = MDP(
    transitions=[[[1, 0], [0.5, 0.5]], [[0, 1], [0, 1]]],  # type: ignore[arg-type]
    rewards=[0, 0],  # type: ignore[arg-type]
    initial=[1, 0],  # type: ignore[arg-type]
    discount=0.5,
)
SPEC = Spec(spaces.Discrete(2), spaces.Discrete(2))
ROOM = "S..\n.#.\n..G"
METHODS = {"mce": (mce_irl.fit, expected_value), "maxent": (maxent_irl.fit, optimistic_value)}


def random_mdp(seed: int, *, discount: float = 0.9, terminal: int = 1, states: int = 6) -> MDP:
    generator = np.random.default_rng(seed)
    return MDP.random(states, 3, discount=discount, branching=3, num_terminal=terminal, generator=generator)


def grid(discount: float = 0.9, slip: float = 0.2) -> MDP:
    return GridWorld(text=ROOM, slip=slip, step_reward=-2.0).mdp(discount=discount)


def whole(mdp: MDP, policy: Any, horizon: int | None = None) -> Flow:
    """The exact measures of a policy."""
    return Flow.of(mdp, occupancy(mdp, policy), horizon)


def solve(mdp: MDP, rewards: Any, flow: Flow, valuation: Valuation, discount: float | None = None) -> Plan:
    gamma = mdp.discount if discount is None else discount
    rows = np.broadcast_to(np.asarray(rewards, float).reshape(mdp.num_states, -1), (mdp.num_states, mdp.num_actions))
    return soft_plan(Dynamics(mdp), rows, flow.entries, discount=gamma, valuation=valuation)


def pairs(mdp: MDP) -> Any:
    """One feature for each state and action, [S, A, S · A]."""
    size = mdp.num_states, mdp.num_actions
    return np.eye(size[0] * size[1]).reshape(*size, -1)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_two_states_by_hand() -> None:
    start = Flow.of(HAND, np.zeros((2, 2)), 2)
    # V_1 = r + log 2, so Q_0(0, 1) − Q_0(0, 0) = r(1) / 4 = log 3.
    causal = solve(HAND, [0, 4 * np.log(3)], start, expected_value)
    np.testing.assert_allclose(causal.policy[0, 0], [1 / 4, 3 / 4], atol=1e-12)
    np.testing.assert_allclose(causal.occupancy, np.array([[13, 29], [3, 3]]) / 32, atol=1e-12)
    # Q_0(0, 1) = ½ log(½ · 2 + ½ · 2 · 7) = ½ log 8, Q_0(0, 0) = ½ log 2; p̃(1 | 0, 1) = 7/8.
    paths = solve(HAND, [0, np.log(7)], start, optimistic_value)
    np.testing.assert_allclose(paths.policy[0, 0], [1 / 3, 2 / 3], atol=1e-12)
    np.testing.assert_allclose(paths.values[0, 0], np.log(np.sqrt(2) + np.sqrt(8)), atol=1e-12)
    np.testing.assert_allclose(paths.occupancy, np.array([[16 + 5, 32 + 5], [7, 7]]) / 48, atol=1e-12)


def test_the_measures_of_demonstrations_by_hand() -> None:
    mdp = MDP(
        transitions=[[[0, 1, 0]], [[0.5, 0, 0.5]], [[0, 0, 1]]],  # type: ignore[arg-type]
        rewards=[0, 0, 0],  # type: ignore[arg-type]
        initial=[1, 0, 0],  # type: ignore[arg-type]
        discount=0.5,
        terminal=[False, False, True],  # type: ignore[arg-type]
    )
    paths = ([10, 11, 12], True), ([10, 11, 10, 11], False)  # one ends after 2 steps, one is cut off after 3
    data = Episodes.from_episodes(
        [
            {
                "observations": np.array(path),
                "actions": np.full(len(path) - 1, 3),
                "rewards": np.ones(len(path) - 1),
                "terminated": ended,
                "truncated": not ended,
            }
            for path, ended in paths
        ],
        observation_space=spaces.Discrete(3, start=10),
        action_space=spaces.Discrete(1, start=3),
    )
    measure = lambda data, **options: flow_of(ReplayBuffer(data, **options), mdp, data.spec(), discount=0.5)  # noqa: E731
    flow = measure(data)
    np.testing.assert_allclose(flow.occupancy[:, 0], [(1 + 1 + 1 / 4) / 2, (1 / 2 + 1 / 2) / 2, 0])
    np.testing.assert_allclose(flow.entries, [1, -1 / 16, 0])  # γ³ V(1) of one of two is bootstrapped
    np.testing.assert_allclose(measure(data, time_limit="terminal").entries, [1, 0, 0])
    sampled = measure(data.subsample(2))  # steps 0, and 0 and 2
    np.testing.assert_allclose(sampled.occupancy[:, 0], [(1 + 1 + 1 / 4) / 2, 0, 0])
    np.testing.assert_allclose(sampled.entries, [(2 + 1 / 4) / 2, -(2 / 2 + 1 / 8) / 2, 0])
    timed = flow_of(ReplayBuffer(data), mdp, data.spec(), discount=0.5, horizon=4)
    np.testing.assert_allclose(timed.entries, [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, -1 / 16, 0]], atol=1e-15)
    np.testing.assert_allclose(timed.occupancy, flow.occupancy)
    short = flow_of(ReplayBuffer(data), mdp, data.spec(), discount=0.5, horizon=3)
    assert not short.entries[1:].any()  # V is 0 at the horizon


# --- against other planners -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [None, 6])
@pytest.mark.parametrize("seed", range(3))
def test_the_causal_plan_is_soft_value_iteration(seed: int, horizon: int | None) -> None:
    mdp = random_mdp(seed)
    expected = soft_value_iteration(mdp, horizon=horizon, tolerance=1e-12)
    flow = whole(mdp, expected.policy, horizon)
    found = solve(mdp, mdp.expected_rewards, flow, expected_value)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-9)
    np.testing.assert_allclose(found.policy, expected.policy, atol=1e-9)
    np.testing.assert_allclose(found.occupancy, flow.occupancy, atol=1e-9)


def test_the_path_distribution_is_that_of_all_paths() -> None:
    """Ziebart et al. 2008, eq. 4, over every path of 3 steps."""
    mdp, horizon = random_mdp(0, discount=1.0, states=4, terminal=0), 3
    expected, total = np.zeros((4, 3)), np.zeros(4)
    counts = [np.zeros((4, 3)) for _ in range(4)]
    for states in itertools.product(range(4), repeat=horizon + 1):
        for actions in itertools.product(range(3), repeat=horizon):
            steps = list(zip(states, actions, states[1:], strict=False))
            weight = np.prod([mdp.transitions[step] * np.exp(mdp.expected_rewards[step[:2]]) for step in steps])
            total[states[0]] += weight
            for state, action, _ in steps:
                counts[states[0]][state, action] += weight
    expected = sum(mdp.initial[s] * counts[s] / total[s] for s in range(4))
    found = solve(mdp, mdp.expected_rewards, Flow.of(mdp, expected, horizon), optimistic_value)
    np.testing.assert_allclose(found.occupancy, expected, atol=1e-12)
    np.testing.assert_allclose(found.values[0], np.log(total), atol=1e-12)


@pytest.mark.parametrize("horizon", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_that_of_the_objective(method: str, horizon: int | None) -> None:
    """By central differences, for demonstrations that are cut off too: ν then has negative entries."""
    generator, mdp, (_, valuation) = np.random.default_rng(1), random_mdp(2), METHODS[method]
    rewards = generator.normal(size=(6, 3))
    flow = Flow.of(mdp, generator.uniform(size=(6, 3)), horizon)
    flow = Flow(flow.occupancy, flow.entries - 0.2 * generator.uniform(size=flow.entries.shape))
    gradient = flow.occupancy - solve(mdp, rewards, flow, valuation).occupancy
    for state, action in itertools.product(range(5), range(3)):
        moved = [rewards.copy(), rewards.copy()]
        moved[0][state, action] += 1e-5
        moved[1][state, action] -= 1e-5
        high, low = (objective(flow, each, solve(mdp, each, flow, valuation)) for each in moved)
        assert gradient[state, action] == pytest.approx((high - low) / 2e-5, abs=1e-7)


def test_sparse_and_dense_products_agree() -> None:
    mdp = MDP.random(40, 2, discount=0.9, branching=3, num_terminal=2, generator=np.random.default_rng(0))
    sparse, dense = Dynamics(mdp), Dynamics(mdp)
    assert sparse.sparse is not None
    dense.sparse = None
    generator = np.random.default_rng(1)
    values, visits = generator.normal(size=40), generator.uniform(size=(40, 2))
    np.testing.assert_allclose(sparse.expected(values), mdp.transitions @ values, atol=1e-12)
    np.testing.assert_allclose(dense.expected(values), mdp.transitions @ values, atol=1e-12)
    np.testing.assert_allclose(sparse.arrivals(visits), np.einsum("sa,sat->t", visits, mdp.transitions), atol=1e-12)
    np.testing.assert_allclose(dense.arrivals(visits), sparse.arrivals(visits), atol=1e-12)
    np.testing.assert_allclose(dense.chain(visits), np.einsum("sa,sat->st", visits, mdp.transitions), atol=1e-12)


# --- invariants -------------------------------------------------------------------------------------------------------

WORLDS: dict[str, Callable[[], MDP]] = {
    "grid": grid,
    "garnet": lambda: random_mdp(3),
    "endless": lambda: random_mdp(4, terminal=0),
}


@pytest.mark.parametrize("horizon", [None, 8])
@pytest.mark.parametrize("world", WORLDS)
def test_the_fitted_occupancy_is_that_of_the_demonstrations(world: str, horizon: int | None) -> None:
    mdp = WORLDS[world]()
    flow = whole(mdp, soft_value_iteration(mdp, horizon=horizon).policy, horizon)
    fitted = mce_irl.fit(mdp, flow.occupancy, horizon=horizon, features=pairs(mdp))
    again = occupancy(mdp, fitted.plan.policy)  # by the other planner, in the real dynamics
    np.testing.assert_allclose(again, flow.occupancy, atol=1e-5)
    paths = maxent_irl.fit(mdp, flow.occupancy, horizon=horizon, features=pairs(mdp))
    np.testing.assert_allclose(paths.plan.occupancy, flow.occupancy, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_the_value_of_the_optimal_policy_for_the_learned_reward_is_the_optimal_value(world: str) -> None:
    """From the demonstrations of the soft-optimal and of the optimal policy, below 1 % of the optimal value."""
    mdp = WORLDS[world]()
    best = policy_iteration(mdp)
    optimum, floor = mdp.initial @ best.values, mdp.initial @ evaluate_policy(mdp, uniform(mdp))
    for policy in (soft_value_iteration(mdp).policy, 0.99 * best.policy + 0.01 * uniform(mdp)):
        fitted = mce_irl.fit(mdp, occupancy(mdp, policy), features=pairs(mdp))
        fresh = policy_iteration(mdp.with_rewards(fitted.rewards)).policy
        difference = optimum - mdp.initial @ evaluate_policy(mdp, fresh)
        assert difference <= 0.01 * abs(optimum) < 0.5 * (optimum - floor)


def test_a_state_reward_is_recovered_up_to_what_cannot_be_seen() -> None:
    """In a grid whose reward depends on the state, the policy of the fitted state reward is the demonstrator's."""
    mdp = grid().with_rewards(np.random.default_rng(0).normal(size=8))
    policy = soft_value_iteration(mdp).policy
    fitted = mce_irl.fit(mdp, occupancy(mdp, policy))
    np.testing.assert_allclose(fitted.plan.policy[:-1], policy[:-1], atol=1e-5)
    assert np.ptp(fitted.rewards, axis=1).max() == 0


def test_state_visits_sum_to_the_horizon_plus_one() -> None:
    mdp, horizon = random_mdp(5, discount=1.0, terminal=0), 9
    demonstrated = occupancy(mdp, soft_value_iteration(mdp, horizon=horizon).policy)
    fitted = mce_irl.fit(mdp, demonstrated, horizon=horizon)
    assert visitation(mdp, fitted.plan.policy).sum() == pytest.approx(horizon + 1)
    assert fitted.plan.occupancy.sum() == pytest.approx(
        horizon
    )  # rewards are those of the steps, not of the last state
    np.testing.assert_allclose(fitted.plan.occupancy.sum(-1), demonstrated.sum(-1), atol=1e-5)


@pytest.mark.parametrize("horizon", [None, 5])
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_reward_leaves_the_policy_as_it_is(method: str, horizon: int | None) -> None:
    mdp, (_, valuation) = random_mdp(6, terminal=0), METHODS[method]
    start = Flow.of(mdp, np.zeros((6, 3)), horizon)
    plans = [solve(mdp, mdp.expected_rewards + c, start, valuation) for c in (0.0, 3.0, -40.0)]
    for other in plans[1:]:
        np.testing.assert_allclose(other.policy, plans[0].policy, atol=1e-9)
        np.testing.assert_allclose(other.occupancy, plans[0].occupancy, atol=1e-8)


@pytest.mark.parametrize("horizon", [None, 9])
@pytest.mark.parametrize("method", METHODS)
def test_truncated_demonstrations_are_bootstrapped(method: str, horizon: int | None) -> None:
    """Cut off after 3 steps, a policy's own demonstrations leave its reward where it is."""
    mdp, (_, valuation) = grid(slip=0.0), METHODS[method]
    policy = soft_value_iteration(mdp, horizon=horizon).policy
    first = policy[:3] if horizon else np.repeat(policy[None], 3, 0)
    last = visitation(mdp, first)[-1]
    entries = Flow.of(mdp, occupancy(mdp, first), horizon).entries.copy()
    entries[() if horizon is None else 3] -= mdp.discount**3 * last
    found = solve(mdp, mdp.expected_rewards, Flow(occupancy(mdp, first), entries), valuation)
    np.testing.assert_allclose(found.occupancy, occupancy(mdp, first), atol=1e-9)


# --- traps ------------------------------------------------------------------------------------------------------------


def test_mce_irl_plans_with_the_same_discount_as_the_occupancy_measure() -> None:
    """At the true reward the gradient is 0, and it is not if the plan has another discount than the occupancy."""
    mdp = grid()
    flow = whole(mdp, soft_value_iteration(mdp).policy)
    np.testing.assert_allclose(
        solve(mdp, mdp.expected_rewards, flow, expected_value).occupancy, flow.occupancy, atol=1e-9
    )
    assert np.abs(solve(mdp, mdp.expected_rewards, flow, expected_value, 0.99).occupancy - flow.occupancy).max() > 0.1
    # The algorithm has one discount, its own: that of the model that it is given is not read.
    data = demonstrations(episodes=30)
    gaps = [
        MCEIRL(MCEIRLConfig(discount=0.9), data.spec(), mdp=grid(discount), demonstrations=ReplayBuffer(data)).update()
        for discount in (0.9, 1.0)
    ]
    assert gaps[0] == gaps[1]


@pytest.mark.parametrize("horizon", [None, 7])
def test_maxent_equals_mce_under_deterministic_dynamics(horizon: int | None) -> None:
    mdp = grid(slip=0.0)
    causal, paths = (
        solve(mdp, mdp.expected_rewards, Flow.of(mdp, np.zeros((8, 4)), horizon), valuation)
        for _, valuation in METHODS.values()
    )
    np.testing.assert_allclose(paths.values, causal.values, atol=1e-9)
    np.testing.assert_allclose(paths.policy, causal.policy, atol=1e-9)
    np.testing.assert_allclose(paths.occupancy, causal.occupancy, atol=1e-9)


def test_maxent_and_mce_differ_under_stochastic_dynamics() -> None:
    """A gamble: 10 % of a large reward. The path distribution takes the luck for the agent's choice."""
    mdp = MDP(
        transitions=[[[0, 1, 0], [0, 0.9, 0.1]], [[0, 1, 0]] * 2, [[0, 0, 1]] * 2],  # type: ignore[arg-type]
        rewards=[0, 0, 5],  # type: ignore[arg-type]
        initial=[1, 0, 0],  # type: ignore[arg-type]
        discount=1.0,
    )
    start = Flow.of(mdp, np.zeros((3, 2)), 2)
    causal, paths = (solve(mdp, [0, 0, 5], start, valuation) for _, valuation in METHODS.values())
    assert causal.policy[0, 0, 1] == pytest.approx(np.exp(0.5) / (1 + np.exp(0.5)))
    odds = 0.9 + 0.1 * np.exp(5)
    assert paths.policy[0, 0, 1] == pytest.approx(odds / (1 + odds))
    # Fitted to one demonstrator, the policy of MCE IRL visits the states as often, and that of MaxEnt IRL does not.
    wanted = occupancy(mdp, causal.policy)
    fits: dict[str, Fitted] = {name: fit(mdp, wanted, horizon=2) for name, (fit, _) in METHODS.items()}
    visits = {name: occupancy(mdp, fitted.plan.policy).sum(-1) for name, fitted in fits.items()}
    np.testing.assert_allclose(visits["mce"], wanted.sum(-1), atol=1e-5)
    assert np.abs(visits["maxent"] - wanted.sum(-1)).max() > 0.01
    np.testing.assert_allclose(fits["maxent"].plan.occupancy.sum(-1), wanted.sum(-1), atol=1e-5)


# --- the algorithms ---------------------------------------------------------------------------------------------------


@functools.cache
def demonstrations(episodes: int = 40) -> Episodes:
    """Episodes of the soft-optimal policy of `grid()`, some of which are cut off after 30 steps."""
    policy = TabularPolicy(soft_value_iteration(grid()).policy, deterministic=False)
    return evaluate(policy, make_grid, episodes=episodes, seed=0, max_steps=30)


def make_grid(**options: Any) -> GridWorldEnv:
    return GridWorldEnv(ROOM, slip=0.2, step_reward=-2.0, **options)


def algorithm(kind: str = "mce", data: Episodes | None = None, exact: bool = False, **settings: Any) -> Any:
    """exact: fitted to the exact measures of the policy rather than to its episodes."""
    data = demonstrations() if data is None else data
    source = whole(grid(), soft_value_iteration(grid()).policy) if exact else ReplayBuffer(data)
    made, config = {"mce": (MCEIRL, MCEIRLConfig), "maxent": (MaxEntIRL, MaxEntIRLConfig)}[kind]
    known = {name: settings.pop(name) for name in ("features", "seeds") if name in settings}
    settings = {"discount": 0.9, "lr": 0.05, **settings}
    return made(config(**settings), data.spec(), mdp=grid(), demonstrations=source, **known)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("settings", "gap", "updates", "tolerance"),
    [
        ({}, "gap/state", 400, 1e-3),
        ({"horizon": 30}, "gap/state", 150, 1e-2),
        ({"exact": True, "inputs": "state_action", "hidden_sizes": (32,), "lr": 0.01}, "gap/state_action", 300, 1e-2),
        ({"features": np.eye(8)[:, ::-1] * 2}, "gap/state", 400, 1e-3),
    ],
)
def test_gradient_steps_close_the_gap(
    kind: str, settings: dict[str, Any], gap: str, updates: int, tolerance: float
) -> None:
    trained = algorithm(kind, **settings)
    first = trained.update(trained.sample(None, []))
    for _ in range(updates):
        last = trained.update(())
    assert float(last[gap]) < tolerance < float(first[gap])
    assert float(last["loss/reward"]) < float(first["loss/reward"])


@pytest.mark.parametrize(
    "settings", [{}, {"inputs": "state_action", "hidden_sizes": (8,)}, {"features": np.ones((8, 2))}]
)
def test_the_learned_reward_is_the_one_that_is_planned_for(settings: dict[str, Any], tmp_path: Path) -> None:
    trained = algorithm(**settings)
    trained.update()
    learned = load_reward(trained.reward().save(tmp_path / "reward"))
    states, actions = (part.reshape(-1) for part in np.indices((8, 4)))
    steps = Transitions(*map(torch.as_tensor, (states, actions, np.zeros(32), np.zeros(32), states)))
    np.testing.assert_allclose(learned(steps).reshape(8, 4), trained.irl.rewards(), atol=1e-6)
    assert learned.discount == 0.9 and learned.about == {"algorithm": "mce_irl", "updates": 1}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("horizon", [None, 30])
def test_a_restored_algorithm_goes_on_to_the_bit(kind: str, horizon: int | None) -> None:
    """Also one whose policy was looked at in between, and the policy of one without model and demonstrations."""
    data = demonstrations(5)
    straight, looked = (algorithm(kind, data, horizon=horizon) for _ in range(2))
    for number in range(6):
        straight.update()
        looked.update()
        if number == 2:
            looked.policy()
            saved = looked.state_dict()
            saved = {**saved, "plan": {name: table.clone() for name, table in saved["plan"].items()}}
            restored = algorithm(kind, data, horizon=horizon, seeds=(0,))
            restored.load_state_dict(saved)
            alone = type(looked)(looked.config, data.spec())
            alone.load_state_dict(saved)
            assert torch.equal(alone.policy().log_probs, looked.policy().log_probs)
            with pytest.raises(ValueError, match="expected mdp and demonstrations to learn from, got None"):
                alone.update()
        elif number > 2:
            restored.update()
    for other in (looked, restored):
        for name, table in straight.state_dict()["plan"].items():
            assert torch.equal(other.state_dict()["plan"][name], table), name


def test_other_seeds_begin_elsewhere() -> None:
    data = demonstrations(5)
    assert not np.array_equal(*(algorithm(data=data, seeds=(seed,)).irl.rewards() for seed in (0, 1)))


@pytest.mark.parametrize("kind", ["mce_irl", "maxent_irl"])
def test_training_by_name_resumes_to_the_bit(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataset": demonstrations(5), "env": make_grid, "seeds": (0, 1), "quiet": True}
    options |= {"eval_episodes": 2, "max_steps": 20, "discount": 0.9}
    whole_run = herdbook.train(kind, steps=6, run_dir=tmp_path / "whole", **options)
    parts = herdbook.train(kind, steps=3, run_dir=tmp_path / "parts", **options)
    resume(parts.path, steps=6, dataset=options["dataset"], env=make_grid, quiet=True)
    states = [Run(run.path).checkpoints.load(None)["state"]["seed_by_seed"] for run in (whole_run, parts)]
    for ours, theirs in zip(*states, strict=True):
        for name, table in ours["plan"].items():
            assert torch.equal(theirs["plan"][name], table)
        for name, value in ours["online"]["reward"].items():
            assert torch.equal(theirs["online"]["reward"][name], value)
    actor = herdbook.load(parts.path)
    assert actor.act(np.int64(0)) in range(4)


def test_the_environment_of_the_dataset_is_the_model(tmp_path: Path) -> None:
    policy = TabularPolicy(soft_value_iteration(model_of("FrozenLake-v1", discount=0.9)).policy, deterministic=False)
    data = evaluate(policy, "FrozenLake-v1", episodes=5, seed=0)
    run = herdbook.train("mce_irl", dataset=data, steps=2, run_dir=tmp_path / "run", quiet=True, eval_episodes=1)
    assert run.metrics()[-1]["step"] == 2


# --- policies of a finite horizon -------------------------------------------------------------------------------------


def test_the_policy_of_a_horizon_follows_the_steps_of_each_environment() -> None:
    choice = np.eye(2)[[0, 1, 0]][:, None].repeat(2, 1)  # [3, 2, 2]: action 0, then 1, then 0
    policy = TabularPolicy(choice)
    step = Step(
        torch.zeros(2, dtype=torch.int64), torch.zeros(2), torch.zeros(2), *[torch.ones(2, dtype=torch.bool)] * 2
    )
    on, carry, taken = replace(step, reset=torch.zeros(2, dtype=torch.bool)), policy.initial(2), []
    for now in (step, on, replace(step, reset=torch.tensor([True, False])), on, on, on):
        actions, carry = policy(now, carry, torch_generator(0))
        taken.append(actions.tolist())
    assert taken == [[0, 0], [1, 1], [0, 0], [1, 0], [0, 0], [0, 0]]  # the first is reset in step 3; then the last rows
    wide = policy.in_spaces(spaces.Discrete(2, start=5), spaces.Discrete(2, start=7))
    shifted = replace(on, observations=torch.full((2,), 5))
    assert wide(shifted, torch.tensor([0, 1]))[0].tolist() == [7, 8]


def test_the_occupancy_of_one_policy_for_each_step() -> None:
    """Σ d r is the value at the start, and the same policy at every step approaches the occupancy without a horizon."""
    mdp = random_mdp(7)
    policy = np.random.default_rng(0).dirichlet(np.ones(3), (4, 6))
    value = np.zeros(6)
    for pi in policy[::-1]:
        value = np.where(mdp.ends, 0, (pi * (mdp.expected_rewards + 0.9 * mdp.transitions @ value)).sum(-1))
    assert (occupancy(mdp, policy) * mdp.expected_rewards).sum() == pytest.approx(mdp.initial @ value)
    forever = np.repeat(policy[:1], 400, 0)
    np.testing.assert_allclose(occupancy(mdp, forever), occupancy(mdp, policy[0]), atol=1e-12)


@pytest.mark.parametrize(("policy", "said"), [(np.ones(3), r"\[S, A\] or \[T, S, A\], got shape \(3,\)")])
def test_a_policy_of_another_shape_is_refused(policy: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TabularPolicy(policy)


def test_the_row_of_a_policy_per_step_is_named() -> None:
    wrong = np.full((2, 3, 2), 0.5)
    wrong[1, 2] = 0.4
    with pytest.raises(ValueError, match=r"policy of step 1, state 2: expected probabilities that sum to 1"):
        TabularPolicy(wrong)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_spaces_that_are_not_tables_are_refused() -> None:
    spec = Spec(spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(4))
    with pytest.raises(ValueError, match="expected Discrete observations and actions, which number the states"):
        MCEIRL(MCEIRLConfig(), spec)


def test_demonstrations_of_another_model_are_refused() -> None:
    data = demonstrations(3)
    replay = ReplayBuffer(data)
    config = MCEIRLConfig(discount=0.9)
    with pytest.raises(
        ValueError, match="expected the model's 6 states and 3 actions, the demonstrations have 8 and 4"
    ):
        MCEIRL(config, data.spec(), mdp=random_mdp(0), demonstrations=replay)
    with pytest.raises(ValueError, match="from state 0 by action . to state 1, which is impossible in the"):
        moved = grid().transitions.copy()
        moved[0, :, 1], moved[0, :, 0] = 0, moved[0, :, 0] + moved[0, :, 1]
        MCEIRL(config, data.spec(), mdp=replace(grid(), transitions=moved), demonstrations=replay)
    with pytest.raises(ValueError, match="to state 7, where it ends, and the model goes on"):
        MCEIRL(config, data.spec(), mdp=replace(grid(), terminal=None), demonstrations=replay)
    with pytest.raises(ValueError, match="expected episodes of at most 2 steps, the horizon, got one of"):
        MCEIRL(replace(config, horizon=2), data.spec(), mdp=grid(), demonstrations=replay)
    with pytest.raises(ValueError, match="demonstrations: expected what to learn from beside mdp, got None"):
        MCEIRL(config, data.spec(), mdp=grid())
    with pytest.raises(ValueError, match="at least one step, got none"):
        MCEIRL(config, data.spec(), mdp=grid(), demonstrations=ReplayBuffer.online(data.spec(), 10))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"discount": 1.0}, "expected discount < 1 or a horizon, got 1 and None"),
        ({"horizon": 0}, "expected horizon >= 1, got 0"),
        ({"inputs": "transition"}, "expected inputs among state, state_action, got 'transition'"),
        ({"lr": 0.0}, "expected lr > 0 and finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MCEIRLConfig(**settings)


def test_measures_and_features_of_other_shapes_are_refused() -> None:
    mdp = grid()
    with pytest.raises(ValueError, match=r"occupancy: expected \[8, 4\], got shape \(8,\)"):
        mce_irl.fit(mdp, np.ones(8))
    with pytest.raises(ValueError, match="occupancy: expected finite values >= 0, got -1"):
        mce_irl.fit(mdp, -np.ones((8, 4)))
    with pytest.raises(ValueError, match=r"features: expected \[8, K\] or \[8, 4, K\], got \(7, 2\)"):
        mce_irl.fit(mdp, np.ones((8, 4)), features=np.ones((7, 2)))
    with pytest.raises(ValueError, match="discount: expected γ < 1 or a horizon, got 1"):
        mce_irl.fit(replace(mdp, discount=1.0), np.ones((8, 4)))
    with pytest.raises(
        ValueError, match=r"features: expected \[8, K\] beside inputs state and no hidden_sizes, got \(7"
    ):
        algorithm(features=np.ones((7, 2)))
    with pytest.raises(ValueError, match=r"got \(8, 2\), state and \(4,\)"):
        algorithm(features=np.ones((8, 2)), hidden_sizes=(4,))
    with pytest.raises(ValueError, match=r"expected a policy \[8, 4\], the state has \[30, 8, 4\]"):
        algorithm().load_state_dict(algorithm(horizon=30).state_dict())


def test_values_that_float64_cannot_hold_are_nan() -> None:
    """All outcomes of the only action are worth 900 less than the best state: the loss says so, not a wrong policy."""
    mdp = replace(HAND, transitions=np.array([[[1, 0], [1, 0]], [[0, 1], [0, 1]]], float))
    assert np.isnan(solve(mdp, [-900, 0], Flow.of(mdp, np.zeros((2, 2)), None), optimistic_value).occupancy).all()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ("CartPole-v1", "expected states as Discrete observations"),
        (lambda: GridWorldEnv(ROOM, observation="position"), "expected states as Discrete observations"),
        ("Blackjack-v1", "expected states as Discrete observations"),
    ],
)
def test_environments_without_a_known_model_are_refused(environment: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        model_of(environment, discount=0.9)
    with pytest.raises(UserError, match=said):
        herdbook.train("mce_irl", dataset=demonstrations(2), env=environment, steps=1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_an_environment_asks_for_one(tmp_path: Path) -> None:
    data = replace(demonstrations(2), environment=None)
    with pytest.raises(UserError, match="names no environment, whose transition probabilities are needed; give --env"):
        herdbook.train("mce_irl", dataset=data, steps=1, run_dir=tmp_path / "run")


def test_the_models_of_tabular_environments() -> None:
    mdp = random_mdp(8)
    for source, expected in ((lambda: MDPEnv(mdp), mdp), (make_grid, grid()), ("FrozenLake-v1", None)):
        found = model_of(source, discount=0.7)
        assert found.discount == 0.7
        if expected is not None:
            np.testing.assert_array_equal(found.transitions, expected.transitions)
            np.testing.assert_array_equal(found.ends, expected.ends)
