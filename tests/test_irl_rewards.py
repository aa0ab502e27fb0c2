"""Learned reward functions: their values by hand, their files, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.policy import Scaling
from herdbook.core.random import scoped_seed
from herdbook.core.types import Spec, Transitions, tree_map
from herdbook.irl.rewards import LearnedReward, RewardDesign, RewardError, load_reward, shaping_term

BOX = Spec(spaces.Box(-5, 5, (2,)), spaces.Box(-2, 2, (1,)))
GRID = Spec(spaces.Discrete(3), spaces.Discrete(2))


def parameters(design: RewardDesign, spec: Spec, seed: int = 0) -> dict[str, Tensor]:
    with scoped_seed(seed):
        return {key: value.detach() for key, value in design.build(Scaling(spec)).named_parameters()}


def reward_of(design: RewardDesign, spec: Spec, **fields: Any) -> LearnedReward:
    return LearnedReward(design=design, spec=spec, discount=0.9, **{"members": (parameters(design, spec),), **fields})


def table(*values: float, inputs: Any = "state", **fields: Any) -> LearnedReward:
    """A linear reward with one weight per state, or per state and per action."""
    members = (
        {"head.layers.0.weight": torch.tensor([values], dtype=torch.float32), "head.layers.0.bias": torch.zeros(1)},
    )
    return reward_of(RewardDesign(inputs=inputs, hidden_sizes=()), GRID, members=members, **fields)


def grid_steps(discounts: tuple[float, float] = (0.9, 0.0)) -> Transitions:
    return Transitions(
        torch.tensor([0, 2]), torch.tensor([1, 0]), torch.zeros(2), torch.tensor(discounts), torch.tensor([1, 1])
    )


@pytest.mark.parametrize(
    ("inputs", "values", "expected"),
    [
        ("state", (1, 2, 4), [1, 4]),
        ("next_state", (1, 2, 4), [2, 2]),
        ("state_action", (1, 2, 4, 10, 20), [21, 14]),
        ("transition", (1, 2, 4, 10, 20, 100, 200, 300), [221, 214]),
    ],
)
def test_linear_rewards_by_hand(inputs: Any, values: tuple[float, ...], expected: list[float]) -> None:
    assert table(*values, inputs=inputs)(grid_steps()).tolist() == expected


@pytest.mark.parametrize(
    ("potential", "following", "discount", "expected"), [(3.0, 5.0, 0.5, -0.5), (3.0, 5.0, 0.0, -3.0), (0, 2, 1, 2)]
)
def test_the_shaping_term_by_hand(potential: float, following: float, discount: float, expected: float) -> None:
    assert shaping_term(*map(torch.tensor, (potential, following, discount))).item() == expected


def test_the_potential_of_a_terminal_state_is_masked_and_gamma_is_the_batchs() -> None:
    design = RewardDesign(inputs="state", shaped=True)
    reward = reward_of(design, GRID)
    base = reward.unshaped()
    one, other = grid_steps((0.9, 0.0)), grid_steps((0.5, 0.9))
    potentials = [reward(grid_steps((0.0, 0.0))) - base(one)]  # −h(s)
    assert torch.allclose(reward(one)[1] - base(one)[1], potentials[0][1])  # terminal: no h(s′)
    following = (reward(one)[0] - base(one)[0] - potentials[0][0]) / 0.9  # h(s′), from γ = 0.9
    assert torch.allclose(reward(other)[0], base(one)[0] + potentials[0][0] + 0.5 * following, atol=1e-6)
    assert abs(following) > 1e-3


def test_each_member_is_normalised_before_the_mean() -> None:
    """A member whose rewards are a thousand times larger does not outweigh the others."""
    design = RewardDesign(inputs="state", hidden_sizes=())
    members = tuple(
        {"head.layers.0.weight": torch.tensor([[0.0, scale, 2 * scale]]), "head.layers.0.bias": torch.zeros(1)}
        for scale in (1.0, -1000.0)
    )
    reward = reward_of(design, GRID, members=members, moments=((1.0, 1.0), (-1000.0, 1000.0)))
    assert reward.each(grid_steps()).tolist() == [[-1, 1], [1, -1]]
    assert reward(grid_steps()).tolist() == [0, 0]
    square = tree_map(lambda x: x.expand(2, 2), grid_steps())  # as many rows as members
    assert reward.each(square).tolist() == [[[-1, 1], [-1, 1]], [[1, -1], [1, -1]]]
    with pytest.raises(ValueError, match="expected moments for 2 members, got 1"):
        reward_of(design, GRID, members=members, moments=((0.0, 1.0),))
    with pytest.raises(ValueError, match="expected standard deviations above 0"):
        reward_of(design, GRID, members=members, moments=((0.0, 1.0), (0.0, 0.0)))


@pytest.mark.parametrize("spec", [BOX, GRID], ids=["box", "grid"])
@pytest.mark.parametrize("design", [RewardDesign(), RewardDesign(inputs="transition", shaped=True, activation="tanh")])
def test_a_reward_is_saved_and_loaded_by_itself(tmp_path: Path, spec: Spec, design: RewardDesign) -> None:
    members = tuple(parameters(design, spec, seed) for seed in (0, 1))
    reward = reward_of(design, spec, members=members, moments=((0.5, 2.0), (0.0, 1.0)), about={"algorithm": "airl"})
    loaded = load_reward(reward.save(tmp_path / "reward"))
    rng = np.random.default_rng(0)
    step = Transitions(
        torch.as_tensor(np.stack([spec.observation_space.sample() for _ in range(5)])),
        torch.as_tensor(np.stack([spec.action_space.sample() for _ in range(5)])),
        torch.zeros(5),
        torch.as_tensor(rng.random(5), dtype=torch.float32),
        torch.as_tensor(np.stack([spec.observation_space.sample() for _ in range(5)])),
    )
    assert torch.equal(loaded(step), reward(step)) and reward(step).std() > 0
    assert (loaded.discount, loaded.about, loaded.design) == (0.9, {"algorithm": "airl"}, design)


def test_damaged_files_are_refused_with_their_name(tmp_path: Path) -> None:
    directory = reward_of(RewardDesign(), BOX).save(tmp_path / "one")
    other = reward_of(RewardDesign(), GRID).save(tmp_path / "two")
    with pytest.raises(RewardError, match="nothing: expected a saved reward function"):
        load_reward(tmp_path / "nothing")
    kept = (directory / "reward.safetensors").read_bytes()
    (directory / "reward.safetensors").write_bytes((other / "reward.safetensors").read_bytes())
    with pytest.raises(RewardError, match="of another reward function"):
        load_reward(directory)
    (directory / "reward.safetensors").write_bytes(kept)
    header = json.loads((directory / "reward.json").read_text())
    (directory / "reward.json").write_text(json.dumps({**header, "format": 9}))
    with pytest.raises(RewardError, match="expected format 1, got 9"):
        load_reward(directory)


def test_rewards_of_arrays_need_exactly_what_the_reward_depends_on() -> None:
    state_only = table(1, 2, 4)
    assert state_only.at(np.array([0, 1, 2])).tolist() == [1, 2, 4]
    with pytest.raises(RewardError, match="actions: expected none, the reward depends on state$"):
        state_only.at(np.array([0]), np.array([1]))
    both = table(1, 2, 4, 10, 20, inputs="state_action")
    assert both.at(np.array([0, 1]), np.array([1, 0])).tolist() == [21, 12]
    with pytest.raises(RewardError, match="actions: expected them, the reward depends on state action"):
        both.at(np.array([0]))
    shaped = reward_of(RewardDesign(inputs="state", shaped=True), GRID)
    with pytest.raises(RewardError, match="next_observations: expected them"):
        shaped.at(np.array([0]))
    over, on = (shaped.at(np.array([0]), None, np.array([1]), np.array([end]))[0] for end in (True, False))
    assert over != on


def test_a_reward_of_other_spaces_is_refused() -> None:
    table(1, 2, 4).check_spaces(GRID, "here")
    with pytest.raises(RewardError, match=r"here: expected the observation_space Discrete\(3\).*got Box"):
        table(1, 2, 4).check_spaces(BOX, "here")
    with pytest.raises(RewardError, match="here: expected the action_space"):
        table(1, 2, 4).check_spaces(Spec(GRID.observation_space, spaces.Discrete(4)), "here")


def test_unknown_designs_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs: expected state"):
        RewardDesign(inputs="action")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation: expected relu or tanh or elu, got 'gelu'"):
        RewardDesign(activation="gelu")  # type: ignore[arg-type]


def test_observations_are_standardised_as_they_were_in_training() -> None:
    spec = Spec(
        BOX.observation_space, BOX.action_space, observation_mean=np.array([1.0, 2.0]), observation_std=np.ones(2)
    )
    design = RewardDesign(inputs="state")
    reward = reward_of(design, spec, members=(parameters(design, spec),), standardise=True)
    plain = reward_of(design, BOX, members=reward.members)
    seen = np.array([[1.0, 2.0], [3.0, 1.0]], np.float32)
    assert np.allclose(reward.at(seen), plain.at((seen - [1, 2]).astype(np.float32) / 1.001), atol=1e-6)
