"""What every algorithm of one agent in the catalogue must do, whatever it is."""

import copy
import dataclasses
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core import checkpoint
from herdbook.core.config import Config
from herdbook.core.networks import Ensemble
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.spaces import flat_space
from herdbook.core.types import Segments, Spec, Step, Steps, to_numpy, tree_map
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rollout_buffer import RolloutBuffer
from herdbook.experiments.catalogue import ALGORITHMS, algorithm_class, config_class
from herdbook.tabular.mdp import MDP

FAMILIES = ("herdbook.offline.", "herdbook.online.", "herdbook.irl.")
NAMES = sorted(name for name, where in ALGORITHMS.items() if where.startswith(FAMILIES))
ACTING = [name for name in NAMES if algorithm_class(name).needs.policy]
"""They learn a policy."""
ON_POLICY = [name for name in NAMES if algorithm_class(name).needs.on_policy]
BATCHED = [name for name in NAMES if algorithm_class(name).needs.seeds_together]
VECTORS = ["dac"]
"""They learn from vectors alone."""
TABLES = [name for name in NAMES if algorithm_class(name).needs.dynamics]
"""They learn from numbered states alone, in a model."""
SMALL = {
    "batch_size": 16,
    "hidden_sizes": (12, 12),
    "vae_hidden_sizes": (12, 12),
    "num_actions": 3,
    "num_target_actions": 3,
    "num_policy_actions": 8,
    "target_period": 3,
    "epochs": 2,
    "critic_epochs": 2,
    "actor_warmup_steps": 0,
    "evaluate_by": "mode",
    "discriminator_updates": 2,
    "allow_variable_horizon": True,
    "pairs": 12,
    "segment_length": 5,
    "cloning_updates": 2,
}
"""Fields that make any algorithm fast, its evaluated policy deterministic, or let it learn from the episodes below."""
STABLE = {"normalise_observations": True, "scale_rewards": True}
SLOWED = {"max_grad_norm": 0.05, "decay_lr": True, "decay_steps": 2_000}
NOISY = {"parameter_noise": 0.2}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "cql": [{"lagrange": True, "deterministic_backup": False, "n_step": 3}, {"max_target_backup": True}],
    "td3_bc": [{"policy_delay": 1}],
    "iql": [{"dropout": 0.1}],
    "bc": [{"frame_stack": 3}],
    "discrete_bcq": [{"frame_stack": 3, "standardise_observations": True}],
    "discrete_cql": [{"frame_stack": 3, "n_step": 3}],
    "dqn": [
        {"dueling": True, "double_q": False, "n_step": 3},
        {"target_period": 1, "tau": 0.01, "frame_stack": 2},
        {**STABLE, **SLOWED},
        {"parameter_noise": True},
        {**STABLE, "parameter_noise": True, "frame_stack": 2},
    ],
    "ddpg": [{**STABLE, **SLOWED}, NOISY],
    "td3": [{**STABLE, **SLOWED}, NOISY],
    "sac": [{"tune_temperature": False}, {**STABLE, **SLOWED, "n_step": 3}],
    "discrete_sac": [{"tune_temperature": False, "frame_stack": 2, "n_step": 3}, {**STABLE, **SLOWED}],
    "ppo": [{"normalise_observations": True, "scale_rewards": True, "decay_lr": True, "decay_steps": 500}],
    "a2c": [{"normalise_observations": True, "scale_rewards": True, "decay_lr": True, "decay_steps": 500}],
    "trpo": [{"normalise_observations": True, "scale_rewards": True}],
    "reinforce": [{**STABLE, "max_grad_norm": 0.05}, {"baseline": False}],
    "iq_learn": [
        {"value_term": "initial", "chi2": "none", "standardise_observations": True},
        {"online": True, "value_term": "all", "chi2": "both", "tau": 0.01, "critics": 2},
    ],
    "ls_iq": [{"policy_term": "value", "cap_entropy": False, "standardise_observations": True, "critics": 2}],
    "sqil": [{"tune_temperature": False}],
    "gail": [{"gradient_penalty": 10.0, "old_rollouts": 2}, {"reward_convention": "logit", "reward_inputs": "state"}],
    "dac": [{"agent": "sac"}, {"absorbing": False, "reward_inputs": "state", "reward_convention": "-log(1-D)"}],
    "airl": [{"reward_inputs": "state", "old_rollouts": 2, "policy_reward": "f"}, {"shaped": False}],
    "preference_reward": [{"inputs": "transition", "bootstrap": False, "teacher": "noisy", "discount": 0.9}],
    "cpl": [{"dropout": 0.0, "teacher": "mistake"}],
}
"""Further settings under which the learner does something else."""


def untrained(name: str, changes: dict[str, Any]) -> set[str]:
    """Networks that stand still."""
    if name == "cql":
        return set() if changes.get("lagrange") else {"multiplier"}
    fixed = {"tune_temperature": "temperature", "baseline": "baseline"}
    return {network for field, network in fixed.items() if not changes.get(field, True)}


SETTINGS = [(name, variant) for name in NAMES for variant in [{}, *VARIANTS.get(name, [])]]
BATCHED_SETTINGS = [(name, variant) for name, variant in SETTINGS if name in BATCHED]

BOXES = {
    "box": spaces.Box(np.array([-1, -1], np.float32), np.array([1, 1], np.float32)),
    "wide": spaces.Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32)),
}
DISCRETES = {"discrete": spaces.Discrete(3), "from_one": spaces.Discrete(3, start=1)}
ACTIONS: dict[str, spaces.Space[Any]] = {**BOXES, **DISCRETES}
IMAGE, ARM = spaces.Box(0, 255, (8, 8, 2), np.uint8), spaces.Box(-np.inf, np.inf, (2,), np.float32)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "image": IMAGE,
    "index": spaces.Discrete(5),
    "mixed": spaces.Dict({"camera": IMAGE, "joints": ARM}),
    "nested": flat_space(spaces.Dict({"robot": spaces.Dict({"camera": IMAGE, "type": ARM}), "keys": ARM})),
}


def fits(name: str, actions: str) -> bool:
    kind = algorithm_class(name).needs.actions
    return kind == "any" or (kind == "box") == (actions in BOXES)


def own_actions(name: str) -> str:
    return "wide" if fits(name, "wide") else "from_one"


def draw(space: spaces.Space[Any], count: int, generator: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: draw(part, count, generator) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return generator.integers(space.start, space.start + space.n, count)
    if space.dtype == np.uint8:
        return generator.integers(0, 256, (count, *space.shape)).astype(np.uint8)
    if not space.is_bounded():
        return generator.normal(size=(count, *space.shape)).astype(np.float32)
    unit = generator.uniform(size=(count, *space.shape))
    unit[:3] = unit[:3].round()  # at the bounds
    return (space.low + (space.high - space.low) * unit).astype(np.float32)


def make_episodes(observations: str, actions: str) -> Episodes:
    generator = np.random.default_rng(5)
    lengths = [7, 12, 3, 9, 11]
    return Episodes.from_episodes(
        [
            {
                "observations": draw(OBSERVATIONS[observations], length + 1, generator),
                "actions": draw(ACTIONS[actions], length, generator),
                "rewards": generator.normal(size=length),
                "terminated": number % 2 == 0,
                "truncated": number % 2 == 1,
            }
            for number, length in enumerate(lengths)
        ],
        observation_space=OBSERVATIONS[observations],
        action_space=ACTIONS[actions],
    )


class Played:
    """Rollouts of 2 lanes and 20 steps, drawn anew each time, whose episodes end in both ways."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.generator = spec, np.random.default_rng(17)

    def take(self) -> Segments:
        rollouts = RolloutBuffer()
        observations = draw(self.spec.observation_space, 2, self.generator)
        for number in range(20):
            terminated, truncated = np.array([number % 7 == 6, False]), np.array([False, number % 5 == 4])
            following = draw(self.spec.observation_space, 2, self.generator)
            actions, rewards = draw(self.spec.action_space, 3, self.generator)[1:], self.generator.normal(size=2)
            rollouts.add(Steps(observations, actions, rewards, terminated, truncated, following))
            observations = following
        return rollouts.take()


def play(episodes: Episodes, follows: Any) -> None:
    """Hand every step to what follows them, as where they enter a replay."""
    for number, row in enumerate(episodes.step_rows):
        observations = (episodes.observations[row][None], episodes.observations[row + 1][None])
        terminated, truncated = (flags[[number]] for flags in (episodes.terminated, episodes.truncated))
        rewards = episodes.rewards[[number]]
        follows.add(Steps(observations[0], episodes.actions[[number]], rewards, terminated, truncated, observations[1]))


def small(config: Config) -> Config:
    """A config with the fields of SMALL that it has, and its inner algorithms' configs have."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    inner = {name: small(value) for name, value in values.items() if isinstance(value, Config)}
    return dataclasses.replace(config, **inner, **{name: SMALL[name] for name in SMALL.keys() & values.keys()})


def learners(state: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The states of all learners in an algorithm's state, with their names."""
    if "online" in state:
        yield name, state
    for key, part in state.items():
        if isinstance(part, dict):
            yield from learners(part, f"{name}{key}.")


class Trial:
    """An algorithm with a replay and a generator for each seed."""

    def __init__(
        self,
        name: str,
        changes: dict[str, Any],
        observations: str | None = None,
        actions: str | None = None,
        **setup: Any,
    ) -> None:
        cls, own = algorithm_class(name), "index" if name in TABLES else "vector"
        episodes = make_episodes(observations or own, actions or own_actions(name))
        if cls.needs.dynamics:  # a model in which no state is terminal
            ends = episodes.terminated | episodes.truncated
            episodes = dataclasses.replace(episodes, terminated=np.zeros_like(ends), truncated=ends)
            setup["mdp"] = MDP.random(5, 3, discount=1.0, generator=np.random.default_rng(3))
        if cls.needs.demonstrations:
            setup["demonstrations"] = ReplayBuffer(episodes)
        self.spec = episodes.spec()
        if cls.needs.expert:
            setup["expert"] = RandomPolicy(self.spec.action_space)
        self.algorithm = cls(dataclasses.replace(small(config_class(cls)()), **changes), self.spec, **setup)
        self.replay: Any = Played(self.spec) if name in ON_POLICY else ReplayBuffer(episodes)
        self.generators = [torch.Generator().manual_seed(100 + seed) for seed in self.algorithm.learner.seeds]
        if self.algorithm.needs.follows and self.algorithm.follows is not None:
            play(episodes, self.algorithm.follows)

    def train(self, updates: int) -> list[dict[str, Tensor]]:
        return [self.algorithm.update(self.batch()) for _ in range(updates)]

    def batch(self) -> Any:
        if self.algorithm.needs.on_policy:
            return self.replay.take()
        return self.algorithm.sample(self.replay, self.generators)

    def weights(self, seed_index: int = 0) -> dict[str, Tensor]:
        """Parameters and targets of one seed."""
        return {
            f"{part}/{learner}{name}/{key}": value[seed_index].clone()
            for learner, state in learners(self.algorithm.state_dict())
            for part in ("online", "target")
            for name, parameters in state[part].items()
            for key, value in parameters.items()
        }

    def step(self, count: int = 6) -> Step:
        generator = np.random.default_rng(11)
        observations = tree_map(torch.as_tensor, draw(self.spec.observation_space, count, generator))
        actions = torch.as_tensor(draw(self.spec.action_space, count, generator))
        first = torch.zeros(count, dtype=torch.bool)
        return Step(observations, torch.zeros_like(actions), torch.zeros(count), first, first)


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The norm of each difference within 1e-5 of the tensor's norm, 1e-6 for a zero tensor."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        difference, size = float((value - theirs[name]).norm()), float(theirs[name].norm())
        assert difference <= (1e-5 * size or 1e-6), f"{name}: differs by {difference} of {size}"


def assert_same_bits(ours: Any, theirs: Any) -> None:
    mine, other = (torch.utils._pytree.tree_flatten(tree) for tree in (ours, theirs))
    assert mine[1] == other[1]
    for one, two in zip(mine[0], other[0], strict=True):
        assert torch.equal(one, two) if isinstance(one, Tensor) else one == two


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "changes"), SETTINGS)
def test_metrics_are_finite_and_every_parameter_moves(name: str, changes: dict[str, Any]) -> None:
    trial = Trial(name, changes)
    before = trial.weights()
    for metrics in trial.train(8):
        assert metrics
        for key, value in metrics.items():
            assert value.shape == () and bool(value.isfinite()) and not value.requires_grad, key
    still = {key.split("/")[1] for key, value in trial.weights().items() if torch.equal(value, before[key])}
    assert still == untrained(name, changes)
    assert trial.algorithm.learner.updates == 8


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("name", NAMES)
def test_needs_are_what_it_does(name: str) -> None:
    """No algorithm steps an environment by itself: who needs one is handed what was played."""
    trial, needs = Trial(name, {}), algorithm_class(name).needs
    assert trial.algorithm.needs == needs
    trial.train(3)
    if needs.policy:
        policy = trial.algorithm.policy()
        policy(trial.step(), policy.initial(6))
    assert ("follows" in vars(trial.algorithm)) is needs.follows
    for actions in ACTIONS:
        if fits(name, actions):
            continue
        with pytest.raises(ValueError, match="expected .* actions"):
            Trial(name, {}, actions=actions)
    if needs.seeds_together:
        assert Trial(name, {}, seeds=(0, 1)).train(1)
    else:
        with pytest.raises(ValueError, match=rf"^{name}: it trains one seed at a time, got seeds \[0, 1\]"):
            Trial(name, {}, seeds=(0, 1))


@pytest.mark.parametrize(("name", "changes"), BATCHED_SETTINGS)
def test_batched_seeds_equal_solo_seeds(name: str, changes: dict[str, Any]) -> None:
    together = Trial(name, changes, seeds=(2, 0, 9))
    for metrics in together.train(25):
        assert all(value.shape == (3,) for value in metrics.values())
    for index, seed in enumerate((2, 0, 9)):
        solo = Trial(name, changes, seeds=(seed,))
        solo.train(25)
        assert_close(together.weights(index), solo.weights())


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits_and_other_seeds_differ(name: str) -> None:
    one, same, other = (Trial(name, {}, seeds=(seed,)) for seed in (4, 4, 5))
    assert all(not torch.equal(v, other.weights()[k]) for k, v in one.weights().items() if v.norm() > 0)
    one.train(3)
    torch.randn(5)  # what others draw does not matter
    same.train(3)
    assert_same_bits(one.algorithm.state_dict(), same.algorithm.state_dict())


@pytest.mark.parametrize(
    ("name", "changes", "seeds"),
    [(*setting, (1,)) for setting in SETTINGS] + [(*setting, (1, 6)) for setting in BATCHED_SETTINGS],
)
def test_state_round_trips_to_the_bit(
    name: str, changes: dict[str, Any], seeds: tuple[int, ...], tmp_path: Path
) -> None:
    source, other = Trial(name, changes, seeds=seeds), Trial(name, changes, seeds=seeds)
    source.train(3)
    other.train(5)  # what was there is gone afterwards
    checkpoint.save(tmp_path / "state", source.algorithm.state_dict())
    other.algorithm.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert_same_bits(other.algorithm.state_dict(), source.algorithm.state_dict())
    for index in range(len(seeds) if name in ACTING else 0):
        one, two = (trial.algorithm.policy(index) for trial in (source, other))
        assert torch.equal(one(source.step(), one.initial(6))[0], two(source.step(), two.initial(6))[0])
    for _ in range(2):
        batch = source.batch()
        assert_same_bits(other.algorithm.update(batch), source.algorithm.update(batch))
    assert_same_bits(other.algorithm.state_dict(), source.algorithm.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_compiled_equals_eager(name: str) -> None:
    compiled, eager = (Trial(name, {}, compile=how) for how in ("aot_eager", False))
    compiled.train(25)
    eager.train(25)
    assert_close(compiled.weights(), eager.weights())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize(
    ("name", "changes", "seeds"),
    [(*setting, (0,)) for setting in SETTINGS] + [(*setting, (0, 1)) for setting in BATCHED_SETTINGS],
)
def test_inductor_equals_eager(name: str, changes: dict[str, Any], seeds: tuple[int, ...]) -> None:
    compiled, eager = (Trial(name, changes, compile=how, seeds=seeds) for how in (True, False))
    compiled.train(25)
    eager.train(25)
    for index in range(len(seeds)):
        assert_close(compiled.weights(index), eager.weights(index))


@pytest.mark.parametrize("observations", ["image", "index", "mixed", "nested"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*VECTORS, *TABLES)])
def test_every_kind_of_observation_trains_and_acts(name: str, observations: str) -> None:
    last = 1 if name in BATCHED else 0
    trial = Trial(name, {}, observations, seeds=(0, 1)[: last + 1])
    before = trial.weights(last)
    for metrics in trial.train(2):
        assert all(bool(value.isfinite().all()) for value in metrics.values())
    after = trial.weights(last)
    assert any(not torch.equal(after[key], before[key]) for key in after if "encoder" in key or observations == "index")
    if name not in ACTING:
        return
    actions, _ = trial.algorithm.policy(last)(trial.step(), None)
    assert all(trial.spec.action_space.contains(action) for action in to_numpy(actions))


# --- policies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("name", "changes", "actions"),
    [(name, {}, actions) for name in ACTING for actions in ACTIONS if fits(name, actions)]
    + [(name, changes, own_actions(name)) for name, changes in SETTINGS if changes.keys() & {*STABLE, *NOISY}],
)
def test_the_policy_contract(name: str, changes: dict[str, Any], actions: str, deterministic: bool) -> None:
    trial = Trial(name, changes, actions=actions)
    trial.train(2)
    policy = trial.algorithm.policy(deterministic=deterministic)
    step, space = trial.step(), trial.spec.action_space
    carry = policy.initial(6)
    chosen, carry = policy(step, carry, torch.Generator().manual_seed(0))
    assert len(chosen) == 6 and not chosen.requires_grad
    assert chosen.dtype == (torch.int64 if isinstance(space, spaces.Discrete) else torch.float32)
    for action in to_numpy(chosen):
        assert space.contains(action), f"{action} is not in {space}"
    same, _ = policy(step, policy.initial(6), torch.Generator().manual_seed(0))
    assert torch.equal(chosen, same)
    if deterministic:
        without, _ = policy(step, policy.initial(6))
        assert torch.equal(chosen, without)

    distribution, _ = policy.distribution(step, policy.initial(6))
    for action in to_numpy(distribution.sample(torch.Generator().manual_seed(1))):
        assert space.contains(action)
    if deterministic:
        assert torch.equal(distribution.mode(), chosen)
    try:
        log_prob = distribution.log_prob(chosen)
    except TypeError as error:  # no density
        assert "density" in str(error)
    else:
        assert log_prob.shape == (6,) and bool(log_prob.isfinite().all())


@pytest.mark.parametrize("name", ACTING)
def test_a_deterministic_policy_acts_on_each_observation_as_if_it_were_alone(name: str) -> None:
    trial = Trial(name, {})
    policy, step = trial.algorithm.policy(), trial.step()
    together, _ = policy(step, policy.initial(6))
    for number in range(6):
        alone, _ = policy(tree_map(lambda x, i=number: x[i : i + 1], step), policy.initial(1))
        torch.testing.assert_close(alone[0], together[number])


OPTIONS: dict[str, set[str]] = {
    "normalise_observations": {"dqn", "ddpg", "td3", "sac", "discrete_sac", "reinforce", "a2c", "ppo", "trpo"},
    "scale_rewards": {"dqn", "ddpg", "td3", "sac", "discrete_sac", "reinforce", "a2c", "ppo", "trpo"},
    "decay_lr": {"dqn", "ddpg", "td3", "sac", "discrete_sac", "a2c", "ppo"},
    "max_grad_norm": {"dqn", "ddpg", "td3", "sac", "discrete_sac", "reinforce", "a2c", "ppo"},
    "parameter_noise": {"dqn", "ddpg", "td3"},
}
"""Who has which, as docs/online.md says."""


@pytest.mark.parametrize("option", OPTIONS)
def test_the_table_of_options_is_that_of_the_configs(option: str, repo_root: Path) -> None:
    has = {n for n in NAMES if option in {field.name for field in dataclasses.fields(config_class(algorithm_class(n)))}}
    online = {name for name in has if ALGORITHMS[name].startswith("herdbook.online.")}
    assert online == OPTIONS[option]
    rows = [line.split("|")[1:-1] for line in (repo_root / "docs" / "online.md").read_text("utf-8").splitlines()]
    table = {cells[0].strip(): cells[1:] for cells in rows if len(cells) == 6}
    column = [cell.strip() for cell in table["algorithm"]].index(f"`--{option.replace('_', '-')}`")
    names = {name.strip("`"): cells[column].strip() for name, cells in table.items() if name.startswith("`")}
    assert {name for name, cell in names.items() if cell == "yes"} == OPTIONS[option]
    assert set(names) == {name for name in NAMES if ALGORITHMS[name].startswith("herdbook.online.")}


@pytest.mark.parametrize(
    ("option", "name"), [(option, name) for option, names in OPTIONS.items() for name in sorted(names)]
)
def test_every_option_is_tried_on_every_algorithm_that_has_it(option: str, name: str) -> None:
    default = next(f.default for f in dataclasses.fields(config_class(algorithm_class(name))) if f.name == option)
    assert default not in (None, False) or any(option in changes for changes in VARIANTS.get(name, []))


@pytest.mark.parametrize("name", [name for name in BATCHED if name in ACTING])
def test_a_policy_follows_the_training_and_its_seed(name: str) -> None:
    known = {field.name for field in dataclasses.fields(config_class(algorithm_class(name)))}
    fast = {rate: 1e-2 for rate in ("lr", "actor_lr") if rate in known}  # enough to change a choice
    changes = fast if fits(name, "discrete") else {}
    trial = Trial(name, changes, seeds=(3, 4))
    step = trial.step(64)
    zero, one = (trial.algorithm.policy(index, deterministic=False) for index in (0, 1))

    def act(policy: Any) -> Tensor:
        actions: Tensor = policy(step, policy.initial(64), torch.Generator().manual_seed(0))[0]
        return actions

    before = act(zero)
    assert not torch.equal(before, act(one))
    solo = Trial(name, changes, seeds=(4,))
    torch.testing.assert_close(act(one), act(solo.algorithm.policy(deterministic=False)))
    trial.train(40)
    assert not torch.equal(before, act(zero))
    with pytest.raises(IndexError, match="expected a seed index"):
        trial.algorithm.policy(2)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_algorithm_or_shape_changes_nothing(name: str) -> None:
    trial = Trial(name, {})
    trial.train(1)
    before = copy.deepcopy(trial.algorithm.state_dict())
    alike = {"bc", name, *(("a2c", "ppo") if name in ("a2c", "ppo") else ())}
    other = next(n for n in NAMES if n not in alike)
    strangers = [
        Trial(other, {}),
        Trial(name, {"hidden_sizes": (12, 13)}),
        *([] if name in (*VECTORS, *TABLES) else [Trial(name, {}, observations="index")]),
        *([Trial(name, {}, seeds=(0, 1))] if name in BATCHED else []),
        *([Trial(name, {"scale_rewards": True})] if name in OPTIONS["scale_rewards"] and name not in BATCHED else []),
        Trial(name, {}, seeds=(8,)),
    ]
    for stranger in strangers:
        with pytest.raises(ValueError, match=r"does not fit|expected|not the state of a learner"):
            trial.algorithm.load_state_dict(stranger.algorithm.state_dict())
    for broken in ({}, {"online": None}):
        with pytest.raises(ValueError, match="not the state of a learner"):
            trial.algorithm.load_state_dict(broken)
    assert_same_bits(trial.algorithm.state_dict(), before)


BAD = {
    "batch_size": [0, -1],
    "discount": [-0.1, 1.5, float("nan")],
    "tau": [0.0, 1.1],
    "lr": [0.0, -1e-3, float("inf")],
    "actor_lr": [0.0],
    "critic_lr": [0.0],
    "value_lr": [0.0],
    "lagrange_lr": [0.0],
    "lagrange_threshold": [-1.0, float("inf")],
    "hidden_sizes": [(0,), (8, -1), (2.5,)],
    "vae_hidden_sizes": [(0,)],
    "n_step": [0, 1.5],
    "frame_stack": [0, 1.5],
    "alpha": [-1.0, float("inf")],
    "online_alpha": [-1.0, float("inf")],
    "num_actions": [0],
    "num_target_actions": [0],
    "num_policy_actions": [0],
    "temperature": [0.0],
    "initial_temperature": [0.0],
    "expectile": [-0.1, 1.1],
    "dropout": [-0.1, 1.0],
    "adam_epsilon": [0.0],
    "beta": [-1.0],
    "max_weight": [-1.0],
    "actor_decay_updates": [0],
    "policy_noise": [-0.1],
    "noise_clip": [-0.1],
    "policy_delay": [0],
    "perturbation": [-0.1, 1.1],
    "soft_minimum": [-0.1, 1.1],
    "kl_weight": [-1.0],
    "threshold": [-0.1, 1.0],
    "logit_penalty": [-1.0],
    "exploration_noise": [-0.1],
    "warmup_steps": [-1],
    "updates_per_step": [0.0],
    "replay_steps": [0],
    "target_period": [0],
    "max_grad_norm": [0.0],
    "parameter_noise": [0.0, -0.1, float("inf")],
    "epsilon_start": [-0.1, 1.1],
    "epsilon_end": [-0.1, 1.1],
    "epsilon_steps": [0],
    "priority_exponent": [-0.1, 1.1],
    "importance_exponent": [-0.1, 1.1],
    "importance_updates": [0],
    "target_entropy": [float("inf")],
    "entropy_share": [-0.1, 1.1],
    "temperature_lr": [0.0],
    "trace": [-0.1, 1.1],
    "clip": [0.0],
    "value_weight": [-1.0],
    "entropy_weight": [-1.0],
    "rollout_steps": [0],
    "epochs": [0],
    "decay_steps": [0],
    "initial_std": [0.0],
    "episodes_per_update": [0],
    "baseline_epochs": [0],
    "baseline_lr": [0.0],
    "max_divergence": [0.0],
    "conjugate_steps": [0],
    "damping": [-0.1],
    "backtracks": [0],
    "shrinkage": [0.0, 1.1],
    "critic_epochs": [0],
    "value_term": ["both", None],
    "chi2": ["all", None],
    "chi2_scale": [0.0],
    "critics": [0],
    "evaluate_by": ["mean"],
    "regularisation": [0.0],
    "policy_term": ["all", None],
    "actor_warmup_steps": [-1],
    "discriminator_updates": [0],
    "gradient_penalty": [-1.0],
    "old_rollouts": [-1],
    "halving_steps": [0],
    "shaping_sizes": [(0,)],
    "iteration_steps": [0],
    "beta_steps": [-1],
    "pairs": [0, 1.5],
    "segment_length": [0],
    "members": [0],
    "bias": [0.0, 1.1],
    "anchor": [-0.1],
    "cloning_updates": [-1],
    "teacher": ["me", None],
    "inputs": ["action", None],
    "horizon": [0, 1.5],
}


@pytest.mark.parametrize("name", NAMES)
def test_numbers_out_of_range_are_named(name: str) -> None:
    config = config_class(algorithm_class(name))
    for field in dataclasses.fields(config):
        kind = str(field.type)
        if kind == "bool" or isinstance(field.default, (str, Config)):
            continue
        never = [[64, 64], 64, (True,), (float("nan"),)] if "tuple" in kind else ["1", True, (1,), float("nan")]
        for value in [*BAD[field.name], *never, *([] if "None" in kind else [None])]:
            with pytest.raises(ValueError, match=f"{config.__name__}: expected {field.name} .*got"):
                config(**{field.name: value})


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (
            "cql",
            {"hidden_sizes": [64, 64]},
            "CQLConfig: expected hidden_sizes as a tuple of whole numbers, got [64, 64]",
        ),
        ("td3_bc", {"hidden_sizes": 64}, "TD3BCConfig: expected hidden_sizes as a tuple of whole numbers, got 64"),
        ("bc", {"batch_size": 2.5}, "BCConfig: expected batch_size as a whole number, got 2.5"),
        ("bc", {"batch_size": 0}, "BCConfig: expected batch_size >= 1, got 0"),
        ("iql", {"tau": 0}, "IQLConfig: expected tau in (0, 1], got 0"),
        ("iql", {"beta": math.inf}, "IQLConfig: expected beta >= 0 and finite, got inf"),
        ("bcq", {"lr": True}, "BCQConfig: expected lr as a number, got True"),
        ("discrete_bcq", {"threshold": 1.0}, "DiscreteBCQConfig: expected threshold in [0, 0.9999], got 1.0"),
    ],
)
def test_what_a_config_says_of_a_wrong_number(config: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        config_class(algorithm_class(config))(**values)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ("iql", {"max_weight": math.inf, "actor_decay_updates": None}),  # no cut, no decay
        ("td3_bc", {"noise_clip": math.inf, "tau": 1, "discount": np.float32(0.5), "batch_size": np.int64(8)}),
        ("td3_bc", {"noise_clip": 0.0, "policy_noise": 0.0, "alpha": 0, "hidden_sizes": ()}),
        ("cql", {"lagrange_threshold": 0.0}),
    ],
)
def test_numbers_at_the_edge_are_allowed(config: str, values: dict[str, Any]) -> None:
    config_class(algorithm_class(config))(**values)


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_frozen_keyword_only_and_name_their_algorithm(name: str) -> None:
    config = config_class(algorithm_class(name))
    assert config.algorithm == name
    assert config() == config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().batch_size = 3
    with pytest.raises(TypeError):
        config(3)
    assert all(field.kw_only for field in dataclasses.fields(config))


@pytest.mark.parametrize(
    ("name", "actions"), [(name, actions) for name in NAMES for actions in ACTIONS if not fits(name, actions)]
)
def test_actions_that_do_not_fit_are_refused_with_what_does(name: str, actions: str) -> None:
    wanted = "discrete" if actions in BOXES else "continuous"
    with pytest.raises(ValueError, match=rf"{name}: expected {wanted}.* actions, got .*; try bc, "):
        Trial(name, {}, actions=actions)


@pytest.mark.parametrize("name", NAMES)
def test_unbounded_actions_are_refused(name: str) -> None:
    cls = algorithm_class(name)
    with pytest.raises(ValueError, match=r"expected (bounded|discrete)"):
        cls(config_class(cls)(), Spec(OBSERVATIONS["vector"], spaces.Box(-np.inf, np.inf, (2,))))


# --- a user's own modules -------------------------------------------------------------------------------------------


class MyCritic(nn.Module):
    """Q(s, a) for vectors, as one writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        value: Tensor = self.net(torch.cat([observations, actions], -1))
        return value


OWN: dict[str, dict[str, Any]] = {
    "bc": {"actor": lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2), nn.Tanh())},
    "bcq": {"critic": lambda: Ensemble(MyCritic, 2)},
    "cql": {"critic": lambda: Ensemble(MyCritic, 2)},
    "iql": {"critic": lambda: Ensemble(MyCritic, 3)},
    "td3_bc": {"critic": lambda: Ensemble(MyCritic, 2), "actor": lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh())},
    "discrete_bcq": {"critic": lambda: nn.Linear(3, 3), "behaviour": lambda: nn.Linear(3, 3)},
    "discrete_cql": {"critic": lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))},
}


@pytest.mark.parametrize("name", [name for name in NAMES if name in OWN])
def test_a_users_modules_train_alone_and_with_seeds(name: str) -> None:
    together = Trial(name, {}, networks=OWN[name], seeds=(0, 1))
    before = together.weights(1)
    together.train(25)
    solo = Trial(name, {}, networks=OWN[name], seeds=(1,))
    solo.train(25)
    assert_close(together.weights(1), solo.weights())
    for key, value in together.weights(1).items():
        assert key.split("/")[1] not in OWN[name] or not torch.equal(value, before[key])


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_network_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected networks among .* got \['qf1'\]"):
        Trial(name, {}, networks={"qf1": MyCritic})
