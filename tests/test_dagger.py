"""DAgger: the labels are the expert's, the expert acts as β says, and experts are found, copied and refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import herdbook
from herdbook.cli.main import main
from herdbook.core.distributions import Deterministic
from herdbook.core.environments import EnvironmentSpec
from herdbook.core.exploration import NoisyPolicy
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.types import Spec, Step, Steps
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.recipes.cartpole import CartPoleController
from herdbook.datasets.recipes.control import Controller
from herdbook.datasets.replay import ReplayBuffer
from herdbook.evaluation.evaluate import evaluate
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.collect import replay_of
from herdbook.experiments.experts import find_expert
from herdbook.experiments.options import RunOptions
from herdbook.experiments.restore import restore
from herdbook.experiments.tasks import load_task
from herdbook.experiments.train import resume, train
from herdbook.irl.dagger import DAgger, DAggerConfig, Labels, Mixture
from herdbook.offline.bc import BC, BCConfig
from herdbook.tabular.environment import GridWorldEnv
from herdbook.tabular.planning import value_iteration
from herdbook.tabular.policy import TabularPolicy

VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float32)
WIDE = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32))
FROM_ONE = spaces.Discrete(3, start=1)
TINY: dict[str, Any] = {"hidden_sizes": (8,), "batch_size": 16, "iteration_steps": 20, "replay_steps": 500}
SHORT: dict[str, Any] = {"steps": 80, "eval_episodes": 1, "evaluate_every": 40, "checkpoint_every": 20, "quiet": True}


class Scripted:
    """The mode of its distribution is a function of the observation; its carry is `memory`."""

    def __init__(self, function: Callable[[Tensor], Tensor], memory: Any = None, discrete: bool = False) -> None:
        self.function, self.memory, self.discrete = function, memory, discrete

    def initial(self, num_envs: int) -> Any:
        return None

    def __call__(self, step: Step, carry: Any, generator: torch.Generator | None = None) -> tuple[Tensor, Any]:
        return self.function(step.observations), self.memory

    def distribution(self, step: Step, carry: Any) -> tuple[Any, Any]:
        return Deterministic(self.function(step.observations)), self.memory


def opposite(observations: Tensor) -> Tensor:
    """Actions in WIDE and beyond it."""
    return torch.stack([-observations[:, 0], 10 * observations[:, 1]], -1)


def played(spec: Spec, steps: int = 60) -> ReplayBuffer:
    """An online replay of random observations and actions, in two lanes."""
    replay, generator = ReplayBuffer.online(spec, 500, 2), np.random.default_rng(3)
    rows = generator.normal(size=(steps + 1, 2, 2)).astype(np.float32)
    flags = np.zeros(2, dtype=np.bool_)
    for t in range(steps):
        if isinstance(spec.action_space, spaces.Discrete):
            actions: Any = generator.integers(1, 4, 2)
        else:
            actions = generator.uniform([-2, 0], [2, 5], (2, 2)).astype(np.float32)
        replay.add(Steps(rows[t], actions, np.zeros(2), flags, flags, rows[t + 1]))
    return replay


# --- labels ---------------------------------------------------------------------------------------------------------


def test_visited_states_are_labelled_by_the_expert_and_not_by_the_action_taken() -> None:
    """A learner that clones what it did itself learns nothing."""
    spec = Spec(VECTOR, WIDE)
    replay, generators = played(spec), [torch.Generator().manual_seed(0)]
    algorithm = DAgger(DAggerConfig(batch_size=32), spec, expert=Scripted(opposite))
    batch = algorithm.sample(replay, generators)
    taken = replay.sample(32, [torch.Generator().manual_seed(0)], discount=1.0)
    assert torch.equal(batch.observations, taken.observations)
    assert (batch.actions != taken.actions).any(-1).all()
    assert torch.equal(
        batch.actions, opposite(batch.observations).clamp(torch.tensor([-2.0, 0]), torch.tensor([2.0, 5]))
    )


def test_without_an_expert_there_is_a_policy_and_no_training() -> None:
    algorithm = DAgger(DAggerConfig(batch_size=4), Spec(VECTOR, WIDE))
    assert algorithm.policy(step=0) is not None
    asks: list[Callable[[], Any]] = [
        lambda: algorithm.sample(played(Spec(VECTOR, WIDE)), [torch.Generator()]),
        lambda: algorithm.policy(deterministic=False, step=0),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match="^dagger: expected an expert to learn from, got None; pass a policy"):
            ask()


def test_labels_beyond_the_bounds_are_the_actions_that_are_executed() -> None:
    labels = Labels(Scripted(opposite), Spec(VECTOR, WIDE))
    observations = torch.tensor([[1.5, 0.25], [3.0, -0.1], [-2.0, 0.5], [-7.0, 0.6]])
    expected = [[-1.5, 2.5], [-2.0, 0.0], [2.0, 5.0], [2.0, 5.0]]
    assert labels(observations, (4,)).tolist() == expected
    assert labels(observations.reshape(2, 2, 2), (2, 2)).tolist() == [expected[:2], expected[2:]]
    algorithm = DAgger(DAggerConfig(), Spec(VECTOR, WIDE), expert=Scripted(opposite))
    assert algorithm.scaling.actions(labels(observations, (4,))).tolist() == [[-0.75, 0.0], [-1, -1], [1, 1], [1, 1]]


def test_labels_are_raw_where_actions_and_states_start_at_other_numbers_than_0() -> None:
    spec = Spec(spaces.Discrete(3, start=5), FROM_ONE)
    labels = Labels(TabularPolicy([[0.1, 0.2, 0.7], [1, 0, 0], [0, 1, 0]]), spec)
    assert labels(torch.tensor([5, 6, 7, 5]), (4,)).tolist() == [3, 1, 2, 3]
    algorithm = DAgger(DAggerConfig(), spec, expert=TabularPolicy(np.eye(3)))
    assert algorithm.expert is not None
    assert algorithm.scaling.actions(algorithm.expert(torch.tensor([5, 6, 7]), (3,))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("actions", [WIDE, FROM_ONE])
def test_an_update_is_that_of_behavioural_cloning_on_the_labels(actions: spaces.Space[Any]) -> None:
    spec = Spec(VECTOR, actions)
    expert = Scripted(opposite if actions is WIDE else lambda o: 1 + (o[:, 0] > 0).long() + (o[:, 1] > 0).long())
    small: dict[str, Any] = {"hidden_sizes": (8,), "batch_size": 16}
    ours = DAgger(DAggerConfig(**small), spec, seeds=(4,), expert=expert)
    cloning = BC(BCConfig(**small, standardise_observations=False), spec, seeds=(4,))
    replay, generator = played(spec), torch.Generator().manual_seed(1)
    for _ in range(5):
        batch = ours.sample(replay, [generator])
        assert torch.equal(ours.update(batch)["loss/actor"], cloning.update(batch)["loss/actor"])
    one, other = (a.learner.parameters_of("actor") for a in (ours, cloning))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_demonstrations_keep_their_own_labels_and_count_as_often_as_visited_states() -> None:
    spec = Spec(VECTOR, WIDE)
    shown = Episodes.from_episodes(
        [
            {
                "observations": np.full((61, 2), 9, np.float32),
                "actions": np.full((60, 2), 0.125, np.float32),
                "rewards": np.zeros(60),
                "terminated": False,
                "truncated": True,
            }
        ],
        observation_space=VECTOR,
        action_space=WIDE,
    )
    replay = played(spec, steps=90)  # 180 states, three times as many
    algorithm = DAgger(
        DAggerConfig(batch_size=4_000), spec, expert=Scripted(opposite), demonstrations=ReplayBuffer(shown)
    )
    batch = algorithm.sample(replay, [torch.Generator().manual_seed(0)])
    demonstrated = (batch.observations == 9).all(-1)
    assert (batch.actions[demonstrated] == 0.125).all() and not (batch.actions[~demonstrated] == 0.125).any()
    assert abs(int(demonstrated.sum()) - 1_000) < 110  # four standard deviations of a binomial(4,000, 1/4)
    both = DAgger(algorithm.config, spec, expert=Scripted(opposite), demonstrations=ReplayBuffer(shown), seeds=(0, 1))
    two = both.sample(replay, [torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)])
    shares = (two.observations == 9).all(-1).float().mean(-1)  # [2]
    assert two.actions.shape == (2, 4_000, 2) and ((shares - 0.25).abs() < 0.03).all() and shares[0] != shares[1]


# --- β --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta_steps", "betas"),
    [
        (0, [0, 0, 0, 0]),  # the learner acts alone from the start
        (1, [1, 0, 0, 0]),  # the paper's choice without parameters
        (500, [1, 0, 0, 0]),
        (1_000, [1, 0.5, 0, 0]),
        (2_000, [1, 0.75, 0.5, 0]),
    ],
)
def test_beta_falls_from_1_to_0(beta_steps: int, betas: list[float]) -> None:
    """In the iterations that begin at steps 0, 500, 1,000 and 2,000."""
    config = DAggerConfig(beta_steps=beta_steps)
    assert [config.beta(step) for step in (0, 500, 1_000, 2_000)] == betas
    algorithm = DAgger(config, Spec(VECTOR, WIDE), expert=Scripted(opposite))
    mixture = algorithm.policy(deterministic=False, step=500)
    assert isinstance(mixture, Mixture) and mixture.beta == betas[1]


def test_the_expert_acts_with_probability_beta_and_else_the_learner() -> None:
    spec = Spec(VECTOR, WIDE)
    learner = Scripted(lambda o: torch.full((len(o), 2), 0.5))
    labels = Labels(Scripted(lambda o: torch.full((len(o), 2), 1.5)), spec)
    observations, new = torch.zeros(2_000, 2), torch.ones(2_000, dtype=torch.bool)
    step = Step(observations, observations, torch.zeros(2_000), new, new)

    def shares(beta: float, seed: int = 0) -> Tensor:
        actions, _ = Mixture(learner, labels, beta)(step, None, torch.Generator().manual_seed(seed))
        assert (actions[:, 0] == actions[:, 1]).all()  # one coin for all dimensions of an action
        return actions[:, 0] == 1.5

    assert shares(1.0).all() and not shares(0.0).any()
    assert abs(float(shares(0.3).float().mean()) - 0.3) < 0.05
    assert torch.equal(shares(0.3), shares(0.3)) and not torch.equal(shares(0.3), shares(0.3, seed=1))


@pytest.mark.parametrize(("num_envs", "steps"), [(1, 500), (2, 250), (8, 63), (600, 1)])
def test_an_iteration_has_its_steps_whatever_the_number_of_environments(num_envs: int, steps: int) -> None:
    algorithm = DAgger(DAggerConfig(updates_per_step=0.5), Spec(VECTOR, WIDE))
    assert algorithm.round_steps(num_envs) == steps
    assert [algorithm.updates_due(0, n) for n in (0, 500, 1_001)] == [0, 250, 500]


# --- covariate shift ------------------------------------------------------------------------------------------------

SLIPPERY = "S....\n.XX..\n.X...\n...XG"


def slippery() -> GridWorldEnv:
    return GridWorldEnv(SLIPPERY, slip=0.3)


def test_dagger_agrees_with_the_expert_in_all_visited_states_where_cloning_drifts() -> None:
    """Demonstrations without slips show one path. A clone that slips off it is where it has never seen the expert."""
    best = value_iteration(slippery().grid.mdp(discount=0.95)).policy  # [S, A]
    expert = TabularPolicy(best)
    shown = evaluate(expert, lambda: GridWorldEnv(SLIPPERY), 2, 0, max_steps=50)
    fast: dict[str, Any] = {"hidden_sizes": (32,), "lr": 1e-2, "batch_size": 64, "quiet": True, "eval_episodes": 0}
    clone = train(BC, dataset=shown, env=slippery, steps=100, run_dir="bc", **fast, standardise_observations=False)
    asked: dict[str, Any] = {"env": slippery, "expert": expert, "iteration_steps": 200, "beta_steps": 0}
    learner = train(DAgger, dataset=shown, steps=800, max_steps=50, run_dir="dagger", **asked, **fast)

    def errors(run: Any, states: Any) -> int:
        observations, new = torch.as_tensor(states), torch.ones(len(states), dtype=torch.bool)
        step = Step(observations, torch.zeros_like(observations), torch.zeros(len(states)), new, new)
        policy = restored(run)
        return int((policy(step, policy.initial(len(states)))[0].numpy() != best[states].argmax(-1)).sum())

    def seen(episodes: Episodes) -> Any:
        return np.unique(episodes.observations[episodes.step_rows])

    path, visited = seen(shown), seen(replay_of(learner))
    drifted = seen(evaluate(restored(clone), slippery, 20, 0, num_envs=20, max_steps=50))
    assert errors(clone, path) == 0 and errors(clone, drifted) > 0
    assert errors(learner, visited) == 0 and set(path) < set(visited)


def restored(run: Any) -> Any:
    """The greedy policy of a run."""
    return restore(run, None, None, run.seeds[0], "cpu", None).policy()


# --- runs -----------------------------------------------------------------------------------------------------------


def bits(run: Any) -> list[bytes]:
    return [(run.path / name).read_bytes() for name in ("metrics.jsonl", "evaluations.jsonl")]


def same_state(one: Any, other: Any) -> bool:
    leaves = [torch.utils._pytree.tree_leaves(run.checkpoints.load()["state"]) for run in (one, other)]
    pairs = list(zip(*leaves, strict=True))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def test_a_run_goes_on_to_the_bit_with_a_copy_of_its_expert(minari_root: Path) -> None:
    """The expert is a run that is deleted, and the learner has demonstrations and two seeds."""
    herdbook.train("sac", env="Pendulum-v1", steps=0, run_dir="expert", hidden_sizes=(8,), eval_episodes=0, quiet=True)
    data = evaluate(RandomPolicy(spaces.Box(-2, 2, (1,), np.float32)), EnvironmentSpec(id="Pendulum-v1"), 2, 0)
    given: dict[str, Any] = {"dataset": data, "env": "Pendulum-v1", "seeds": (3, 5), **TINY, "beta_steps": 60}
    whole = train("dagger", expert="expert", run_dir="whole", **given, **SHORT)
    half = train("dagger", expert=Path("expert"), run_dir="half", **given, **{**SHORT, "steps": 40})
    shutil.rmtree("expert")
    assert (half.path / "expert" / "config.json").is_file()
    gone, _ = resume(half.path, steps=80, dataset=data, quiet=True)
    assert bits(gone) == bits(whole) and same_state(gone, whole)
    assert not list((half.path / "expert" / "checkpoints").glob("replay*"))
    with pytest.raises(UserError, match="expert: expected none, half goes on with its own; got another"):
        resume(half.path, steps=100, dataset=data, expert="another")


@pytest.mark.parametrize(("env", "name"), [("CartPole-v1", "classic/cartpole"), ("Pendulum-v1", "classic/pendulum")])
def test_the_controller_of_a_recipe_takes_no_random_actions(env: str, name: str) -> None:
    task = load_task(DAgger, DAggerConfig(), RunOptions(env=env), None, None)
    controller = find_expert(name, None, task, "cpu").policy
    assert isinstance(controller, Controller) and controller.random_fraction == 0
    run = train("dagger", env=env, expert=name, run_dir="run", **TINY, **{**SHORT, "steps": 20})
    assert run.config["run"]["expert"] == name
    assert resume(run.path, steps=40, quiet=True)[1]


OWN_EXPERT = """
from herdbook.datasets.recipes.cartpole import CartPoleController

READY = CartPoleController()
NUMBER = 3

def balance():
    return CartPoleController()

def nothing():
    return 3

def broken():
    raise KeyError("seven")
"""


@pytest.fixture
def user_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_expert.py").write_text(OWN_EXPERT)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_expert"


@pytest.mark.parametrize("name", ["balance", "READY", "CartPoleController"])
def test_code_is_a_policy_or_makes_one(name: str, user_expert: str) -> None:
    task = load_task(DAgger, DAggerConfig(), RunOptions(env="CartPole-v1"), None, None)
    assert find_expert(f"{user_expert}:{name}", None, task, "cpu").policy == CartPoleController()


@pytest.mark.parametrize("named", ["balance", None])
def test_an_expert_that_is_code_must_be_given_again(named: str | None, user_expert: str) -> None:
    expert: Any = CartPoleController() if named is None else f"{user_expert}:{named}"
    whole = train("dagger", env="CartPole-v1", expert=expert, run_dir="whole", **TINY, **SHORT)
    half = train("dagger", env="CartPole-v1", expert=expert, run_dir="half", **TINY, **{**SHORT, "steps": 40})
    name = "python:CartPoleController" if named is None else expert
    with pytest.raises(
        UserError, match=re.escape(f"half: its expert is code, {name}; code that a run directory names")
    ):
        resume(half.path, steps=80)
    if named is not None:
        with pytest.raises(UserError, match=f"expected the expert of half, {name}, got {user_expert}:other"):
            resume(half.path, steps=80, expert=f"{user_expert}:other")
    gone, _ = resume(half.path, steps=80, expert=expert, quiet=True)
    assert bits(gone) == bits(whole) and same_state(gone, whole)
    assert herdbook.load(half.path).act(np.zeros(4)) in (0, 1)  # the policy needs no expert


def test_the_command_asks_for_an_expert_and_takes_one(capsys: pytest.CaptureFixture[str], user_expert: str) -> None:
    words = ["train", "dagger", "--env", "CartPole-v1", "--steps", "20", "--eval-episodes", "0", "--run-dir", "run"]
    words += ["--iteration-steps", "20", "--hidden-sizes", "8"]
    with pytest.raises(SystemExit):
        main(words)
    assert "--expert" in capsys.readouterr().err
    assert main([*words, "--expert", f"{user_expert}:balance"]) == 0
    assert main(["resume", "run", "--steps", "40"]) == 2
    assert f"give it again with --expert {user_expert}:balance" in capsys.readouterr().err
    assert main(["resume", "run", "--steps", "40", "--expert", f"{user_expert}:balance"]) == 0
    assert json.loads(Path("run/config.json").read_text())["run"]["steps"] == 40


# --- experts that are refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expert", "actions", "said"),
    [
        (Scripted(opposite, memory=torch.zeros(8, 1)), WIDE, "expected a policy without a memory, because it labels"),
        (NoisyPolicy(Scripted(opposite), WIDE, 0.1), WIDE, "expected a policy with a distribution over actions: a po"),
        (Scripted(lambda o: o[:, :1]), WIDE, "got torch.float32 [8, 1] for 8"),
        (Scripted(opposite), FROM_ONE, "got torch.float32 [8, 2] for 8"),
        (Scripted(lambda o: torch.zeros(len(o))), FROM_ONE, "got torch.float32 [8] for 8"),
        (Scripted(lambda o: torch.ones(len(o), 2).long()), WIDE, "got torch.int64 [8, 2] for 8"),
        (Scripted(lambda o: torch.zeros(len(o)).long()), FROM_ONE, "expected actions in Discrete(3, start=1), got 0"),
        (Scripted(lambda o: torch.full((len(o),), 4)), FROM_ONE, "expected actions in Discrete(3, start=1), got 4"),
        (Scripted(lambda o: opposite(o) / 0), WIDE, "got -inf"),
        (TabularPolicy(np.eye(3)), FROM_ONE, "expected Discrete observations and actions for a table"),
    ],
)
def test_experts_that_cannot_label_are_refused(expert: Any, actions: spaces.Space[Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        DAgger(DAggerConfig(), Spec(VECTOR, actions), expert=expert)


def test_an_expert_that_stacks_frames_has_a_memory() -> None:
    spec = Spec(VECTOR, WIDE)
    stacking = BC(BCConfig(frame_stack=3, standardise_observations=False, hidden_sizes=(4,)), spec).policy()
    with pytest.raises(ValueError, match="expected a policy without a memory"):
        DAgger(DAggerConfig(), spec, expert=stacking)


@pytest.mark.parametrize(
    ("expert", "said"),
    [
        (None, "DAgger asks an expert: give --expert (expert= in Python), the directory of a run, a recipe with"),
        ("nowhere", "expert: expected the directory of a run, a recipe with a scripted controller (classic/pendulum"),
        ("classic/cartpol", "got 'classic/cartpol'; did you mean 'classic/cartpole'?"),
        ("classic/pendulum", "expert: expected the observation_space Box([-4.8"),
        ("classic/acrobot/expert", "is trained; train it, and give the run"),
        ("no_such_module:make", "expert: no_such_module:make cannot be imported: No module named 'no_such_module'"),
        ("my_expert:other", "expert: my_expert:other cannot be imported: module 'my_expert' has no attribute 'other'"),
        ("my_expert:NUMBER", "expected my_expert:NUMBER as a callable that returns a policy, got int"),
        ("my_expert:nothing", "expected a policy from my_expert:nothing (initial, __call__ and distribution"),
        ("my_expert:broken", "expert: my_expert:broken raised KeyError: 'seven'"),
        (Scripted(opposite), "expert: expected actions in Discrete(2), got torch.float32"),
    ],
)
@pytest.mark.usefixtures("user_expert")
def test_experts_that_are_no_experts_of_the_task_are_refused(expert: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        train("dagger", env="CartPole-v1", expert=expert, run_dir="run", **TINY, **SHORT)
    assert not Path("run").exists()


def test_runs_of_other_spaces_and_experts_of_others_are_refused() -> None:
    small: dict[str, Any] = {"hidden_sizes": (4,), "eval_episodes": 0, "quiet": True, "steps": 0}
    train("sac", env="Pendulum-v1", run_dir="pendulum", **small)
    with pytest.raises(UserError, match=re.escape("pendulum has Box([-1. -1. -8.]")):
        train("dagger", env="CartPole-v1", expert="pendulum", run_dir="run", **TINY, **SHORT)
    with pytest.raises(UserError, match="expert: expected none, SAC asks no expert; got pendulum"):
        train("sac", env="Pendulum-v1", expert="pendulum", run_dir="run", **small)
    assert not Path("run").exists()
