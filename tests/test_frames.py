"""Frame stacks on pixels: what the policy saw is what the replay gives, every frame is stored once, runs are exact."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import herdbook
from herdbook.core.actor import Actor
from herdbook.core.book import Book
from herdbook.core.distributions import Categorical
from herdbook.core.environments import (
    EnvironmentSpec,
    EnvironmentUnavailable,
    describe_environment,
    make_environment,
    registered_only,
    whole_games,
)
from herdbook.core.frames import Frames
from herdbook.core.networks import Encoder
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.runner import EndlessEpisodes, VectorRunner
from herdbook.core.runs import Run
from herdbook.core.spaces import flat_space
from herdbook.core.types import Spec, Steps
from herdbook.datasets.load import load_dataset
from herdbook.datasets.prioritised import PrioritisedReplay
from herdbook.datasets.replay import ReplayBuffer
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.fqe import fitted_q_evaluation
from herdbook.experiments.catalogue import UserError, algorithm_class, config_class
from herdbook.experiments.collect import collect, export_replay
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.settings import settings_for
from herdbook.experiments.train import resume
from herdbook.online.dqn import DQN, DQNConfig

GREY = spaces.Box(0, 255, (20, 20), np.uint8)
SPEC = Spec(GREY, spaces.Discrete(2))
SMALL: dict[str, Any] = {"frame_stack": 2, "hidden_sizes": (16,), "batch_size": 8, "steps": 60, "quiet": True}
ONLINE: dict[str, Any] = {"warmup_steps": 20, "replay_steps": 40, "num_envs": 2, "eval_episodes": 2}


class Pixels(gymnasium.Env[Any, Any]):
    """Frames are dark or bright, at random; reward `pay` for action 1 where the last frame is not as the one before."""

    observation_space = GREY
    action_space = spaces.Discrete(2)

    def __init__(self, pay: float = 1.0) -> None:
        self.pay = pay

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.length, self.t = int(self.np_random.integers(1, 8)), 0
        self.bright = self.before = bool(self.np_random.integers(2))
        return self._frame(), {}

    def step(self, action: Any) -> Any:
        reward = self.pay * float(action == (self.bright != self.before))
        self.before, self.bright = self.bright, bool(self.np_random.integers(2))
        self.t += 1
        over = self.t == self.length
        return self._frame(), reward, over and self.length % 2 == 0, over and self.length % 2 == 1, {}

    def _frame(self) -> Any:
        noise = self.np_random.integers(0, 40, GREY.shape)  # no two frames are equal
        return (noise + (215 if self.bright else 0)).astype(np.uint8)


@pytest.fixture(scope="module")
def pixels() -> Iterator[str]:
    gymnasium.register("Pixels-v0", Pixels, max_episode_steps=100)
    yield "Pixels-v0"
    del gymnasium.registry["Pixels-v0"]


class Spy:
    """Policies that draw their actions and keep what their network was given."""

    def __init__(self, count: int) -> None:
        self.scaling, self.seen = Scaling(SPEC, frame_stack=count), list[Tensor]()

    def policy(self) -> FeedForwardPolicy:
        return FeedForwardPolicy(self.scaling, self._look, deterministic=False)

    def _look(self, observations: Tensor) -> Categorical:
        self.seen.append(observations.clone())
        return Categorical(torch.zeros(len(observations), 2))


# --- stacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_a_replay_gives_the_stacks_that_the_policy_saw_frame_for_frame(count: int) -> None:
    """3 lanes of 12 steps each in the ring, which wraps 5 times; the policy is another one at every step."""
    lanes, steps = 3, 60
    spy, runner = Spy(count), VectorRunner(Pixels, lanes, EndlessEpisodes(1), max_steps=100)
    replay = ReplayBuffer.online(SPEC, 12 * lanes, lanes, frame_stack=count)
    by_hand: list[list[Any]] = [[] for _ in range(lanes)]
    ended = np.zeros((steps, lanes), np.bool_)
    compared = 0
    for number in range(steps):
        stepped = runner.step(spy.policy(), torch.Generator().manual_seed(number), keep_carry=True)
        replay.add(stepped.played)
        ended[number] = stepped.played.terminated | stepped.played.truncated
        for lane in range(lanes):
            by_hand[lane] = [*([] if stepped.first[lane] else by_hand[lane]), stepped.played.observations[lane]]
            frames = [by_hand[lane][max(len(by_hand[lane]) - count + i, 0)] for i in range(count)]
            assert np.array_equal(spy.seen[-1][lane].numpy(), np.stack(frames, -1))  # [20, 20, k], oldest first
        rings = replay.rings
        assert rings is not None
        numbers = torch.arange(rings.first, rings.added)
        entries = (numbers[:, None] % rings.steps * lanes + torch.arange(lanes)).reshape(-1)
        batch = spy.scaling(replay.gather(entries, discount=0.9, frame_stack=count))
        expected = torch.stack([spy.seen[int(n)] for n in numbers]).flatten(0, 1)
        assert batch.observations.dtype == torch.uint8 and torch.equal(batch.observations, expected)
        following = torch.stack([spy.seen[int(n)] for n in numbers]).flatten(0, 1)[lanes:]
        goes_on = torch.from_numpy(~ended[rings.first : number].reshape(-1))
        assert torch.equal(batch.next_observations[:-lanes][goes_on], following[goes_on])
        compared += int(goes_on.sum())
    assert compared > 500 and ended.sum() > 20


def test_data_give_the_stacks_that_the_policy_saw() -> None:
    spy = Spy(3)
    episodes = evaluate(spy.policy(), Pixels, 6, 0, num_envs=1, max_steps=100)
    assert episodes.observations.dtype == np.uint8
    assert episodes.observations.nbytes == (episodes.num_steps + 6) * 400  # every frame once
    batch = ReplayBuffer(episodes).gather(torch.arange(episodes.num_steps), discount=1.0, frame_stack=3)
    assert torch.equal(spy.scaling.observations(batch.observations), torch.cat(spy.seen))


def test_a_stack_goes_on_after_a_checkpoint_in_the_middle_of_an_episode() -> None:
    def make() -> VectorRunner:
        return VectorRunner(Pixels, 2, EndlessEpisodes(4), max_steps=100)

    for cut in range(1, 12):
        whole, uninterrupted, spy, runner = Spy(4), make(), Spy(4), make()
        for number in range(cut + 4):
            uninterrupted.step(whole.policy(), torch.Generator().manual_seed(number), keep_carry=True)
        for number in range(cut):
            runner.step(spy.policy(), torch.Generator().manual_seed(number), keep_carry=True)
        state, schedule = runner.state_dict(), runner.schedule
        runner = make()
        runner.load_state_dict(state)
        runner.schedule = schedule
        for number in range(cut, cut + 4):
            runner.step(spy.policy(), torch.Generator().manual_seed(number), keep_carry=True)
        assert all(map(torch.equal, spy.seen, whole.seen))


def test_another_player_does_not_remember_what_it_did_not_see() -> None:
    spy, runner = Spy(2), VectorRunner(lambda: gymnasium.wrappers.TimeLimit(Pixels(), 3), 1, EndlessEpisodes(2))
    while True:
        first = runner.step(spy.policy())
        if not (first.played.terminated | first.played.truncated).any():
            break
    runner.step(spy.policy())
    assert torch.equal(spy.seen[-1][..., 0], spy.seen[-1][..., 1])


def test_an_actor_sees_the_stacks_of_an_evaluation_whatever_the_environment_does_to_its_frame() -> None:
    spy = Spy(3)
    evaluate(spy.policy(), Pixels, 4, 0, num_envs=1, max_steps=100)
    expected, spy.seen = spy.seen, []
    actor, env = Actor(spy.policy(), SPEC, generator=torch.Generator().manual_seed(0)), Pixels()
    shown = np.empty(GREY.shape, np.uint8)  # one buffer, written over
    for seed in range(4):
        actor.reset()
        shown[:], over = env.reset(seed=seed)[0], False
        while not over:
            frame, _, terminated, truncated, _ = env.step(int(actor.act(shown)))
            shown[:], over = frame, terminated or truncated
    assert len(spy.seen) == len(expected) and all(map(torch.equal, spy.seen, expected))


@pytest.mark.parametrize(
    ("shape", "stacked"),
    [((4, 5), (4, 5, 3)), ((1, 4, 5), (4, 5, 3)), ((4, 5, 1), (4, 5, 3)), ((4, 5, 2), (4, 5, 6)), ((4,), (12,))],
)
def test_frames_become_channels_and_vectors_follow_each_other(shape: tuple[int, ...], stacked: tuple[int, ...]) -> None:
    space = spaces.Box(0, 255, shape, np.uint8 if len(shape) > 1 else np.float32)
    frames = Frames(space, 3)
    assert frames.space == spaces.Box(0, 255, stacked, space.dtype.type)
    stacks = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 2, 3, *shape))).to(torch.uint8)
    laid_out = frames(stacks)
    assert laid_out.shape == (6, 2, *stacked)
    channels = stacked[-1] // 3
    for k in range(3):
        frame = laid_out[..., k * channels : (k + 1) * channels]
        assert torch.equal(frame.reshape(6, 2, -1), stacks[:, :, k].reshape(6, 2, -1))
    assert torch.equal(laid_out[0], frames(stacks[0]))


def test_a_dict_is_stacked_part_by_part_and_vectors_are_standardised_first() -> None:
    space = spaces.Dict({"eye": GREY, "arm": spaces.Box(-1, 1, (2,))})
    frames = Frames(space, 2)
    assert frames.space == spaces.Dict(
        {"eye": spaces.Box(0, 255, (20, 20, 2), np.uint8), "arm": spaces.Box(-1, 1, (4,))}
    )
    seen = {"eye": torch.zeros(3, 20, 20, dtype=torch.uint8), "arm": torch.ones(3, 2)}
    stacks = frames.push(
        frames.push(None, seen, torch.ones(3)), {**seen, "arm": 2 * seen["arm"]}, torch.tensor([0, 1, 0]) > 0
    )
    assert frames(stacks)["arm"].tolist() == [[1, 1, 2, 2], [2, 2, 2, 2], [1, 1, 2, 2]]
    vectors = Spec(
        spaces.Box(-9, 9, (2,)),
        spaces.Discrete(2),
        observation_mean=np.array([1.0, 2.0]),
        observation_std=np.ones(2) - 1e-3,
    )
    scaling = Scaling(vectors, standardise=True, frame_stack=2)
    torch.testing.assert_close(
        scaling.observations(torch.tensor([[[1.0, 2.0], [3.0, 3.0]]])), torch.tensor([[0.0, 0.0, 2.0, 1.0]])
    )


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Dict({"eye": GREY, "kind": spaces.Discrete(2)})])
def test_what_is_no_image_or_vector_is_not_stacked(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="frame_stack: expected image or vector observations to stack 2 of, got Disc"):
        algorithm_class("dqn")(config_class(algorithm_class("dqn"))(frame_stack=2), Spec(space, spaces.Discrete(2)))


# --- uint8 ----------------------------------------------------------------------------------------------------------


def test_grey_frames_are_pictures_and_boards_are_vectors() -> None:
    assert flat_space(GREY) == GREY
    board = spaces.Box(0, 5, (20, 20), np.uint8)
    assert flat_space(board) == spaces.Box(0, 5, (400,), np.float32)


@pytest.mark.parametrize("shape", [(40, 40), (1, 40, 40), (40, 40, 1)])
def test_every_form_of_a_grey_frame_is_scaled_once(shape: tuple[int, ...]) -> None:
    encoder = Encoder(spaces.Box(0, 255, shape, np.uint8))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 40))).to(torch.uint8)
    expected = encoder.convolutions(images[:, None].double().div(255).float())
    torch.testing.assert_close(encoder(images.reshape(3, *shape)), expected)


def test_a_replay_holds_each_frame_once() -> None:
    stacked, single = (ReplayBuffer.online(SPEC, 10_000, 2, frame_stack=k) for k in (4, 1))
    assert stacked.nbytes - single.nbytes == 3 * 2 * 400  # room for 3 more frames in each lane
    assert single.nbytes < 10_000 * 1.3 * (400 + 40)  # an episode's last frame has its own row


def test_pixels_stay_uint8_in_checkpoint_file_and_batch(pixels: str, minari_root: Path) -> None:
    run = herdbook.train("dqn", env=pixels, run_dir="run", **SMALL, **ONLINE)
    state = run.checkpoints.load()
    frames = run.checkpoints.load_replay(state)["replays"][0]["observations"]
    assert frames.dtype == torch.uint8 and frames.shape[1:] == (20, 20)
    carry = state["loop"]["collector"]["seats"][0]["rollout"]["carry"]
    assert carry.dtype == torch.uint8 and carry.shape == (2, 2, 20, 20)
    kept, folder = export_replay("run", out="tests/pixels/replay-v0")
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        assert file["episode_0/observations"].dtype == np.uint8
    read = load_dataset("tests/pixels/replay-v0")
    assert read.observations.dtype == np.uint8 and np.array_equal(read.observations, kept.observations)
    batch = ReplayBuffer(read).sample(4, [torch.Generator()], discount=0.9, frame_stack=4)
    assert batch.observations.dtype == torch.uint8 and batch.observations.shape == (4, 4, 20, 20)


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"prioritised": True, "n_step": 3, "dueling": True}])
def test_a_run_on_pixels_that_dies_resumes_to_the_bit(
    pixels: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for kill -9: nothing of ours runs after it."""

    def go(path: str) -> Run:
        cadence = {"checkpoint_every": 10, "log_every": 10, "evaluate_every": 30}
        return herdbook.train(
            "dqn", env=pixels, run_dir=path, epsilon_end=0.0, epsilon_steps=1, **SMALL, **ONLINE, **cadence, **changes
        )

    whole, original = go("whole"), Book.checkpoint
    middle = 0
    for number in (3, 5):

        def die(book: Book, step: int, *rest: Any, last: int = 10 * number) -> None:
            if step > last:
                raise Killed
            original(book, step, *rest)

        monkeypatch.setattr(Book, "checkpoint", die)
        with pytest.raises(Killed):
            go(f"cut_{number}")
        monkeypatch.setattr(Book, "checkpoint", original)
        cut = Run(f"cut_{number}")
        rollout = cut.checkpoints.load()["loop"]["collector"]["seats"][0]["rollout"]
        middle += sum(actions is not None for actions in rollout["actions"])
        resume(cut.path, quiet=True)
        assert all(
            (cut.path / f).read_bytes() == (whole.path / f).read_bytes() for f in ("metrics.jsonl", "evaluations.jsonl")
        )
        ours, theirs = (torch.utils._pytree.tree_leaves(run.checkpoints.load()["state"]) for run in (cut, whole))
        assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(ours, theirs, strict=True))
    assert middle  # some episode had begun


@pytest.mark.parametrize("name", ["dqn", "discrete_sac", "discrete_cql", "discrete_bcq", "bc"])
def test_a_run_on_pixels_trains_is_evaluated_and_acts(pixels: str, name: str, minari_root: Path) -> None:
    if name in ("dqn", "discrete_sac"):
        run = herdbook.train(name, env=pixels, run_dir="run", **SMALL, **ONLINE)
    else:
        collect("random", env=pixels, episodes=20, out="tests/pixels/random-v0")
        run = herdbook.train(
            name, dataset="tests/pixels/random-v0", run_dir="run", seeds=(0, 1), eval_episodes=2, **SMALL
        )
    (*_, line) = (line for line in run.evaluations() if line["seed"] == 0)
    again = evaluate_run(run.path, episodes=2, seed=10_000)
    assert again["seeds"][0]["returns"] == line["returns"]
    actor, env = herdbook.load(run.path), make_environment(pixels)
    for number, expected in enumerate(line["returns"]):
        actor.reset()
        observation, total, over = env.reset(seed=10_000 + number)[0], 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(actor.act(observation))
            total, over = total + float(reward), terminated or truncated
        assert total == expected
    played, _ = collect(run.path, episodes=3, out="tests/pixels/played-v0")
    assert played.observations.shape[1:] == (20, 20)


@pytest.mark.parametrize(("name", "changes"), [("dqn", {}), ("discrete_cql", {"alpha": 0.0}), ("discrete_bcq", {})])
def test_a_reward_that_two_frames_tell_is_valued_with_two(name: str, changes: dict[str, Any]) -> None:
    """γ = 0: Q is 1 for the right action and 0 for the other; of one frame it is the chance of a change."""
    episodes = evaluate(Spy(1).policy(), Pixels, 80, 0, num_envs=8, max_steps=100)
    replay, generators = ReplayBuffer(episodes), [torch.Generator().manual_seed(0)]
    errors = {}
    for count in (1, 2):
        cls = algorithm_class(name)
        config = config_class(cls)(
            frame_stack=count, discount=0.0, lr=2e-3, hidden_sizes=(32,), batch_size=64, **changes
        )
        algorithm = cls(config, episodes.spec())
        for _ in range(80):
            algorithm.update(algorithm.sample(replay, generators))
        batch = replay.gather(torch.arange(episodes.num_steps), discount=0.0, frame_stack=count)
        with torch.no_grad():
            q = algorithm.critic(
                algorithm.learner.parameters_of("critic"), algorithm.scaling.observations(batch.observations)
            )
        errors[count] = float((q.gather(-1, batch.actions[:, None])[:, 0] - batch.rewards).abs().mean())
    assert errors[2] < 0.1 and errors[1] > 0.2


@pytest.mark.parametrize("perturbed", [False, True])
def test_fitted_q_evaluation_refuses_a_policy_of_several_observations(perturbed: bool) -> None:
    episodes = evaluate(Spy(1).policy(), Pixels, 2, 0, max_steps=100)
    dqn = DQN(DQNConfig(parameter_noise=True, frame_stack=2), SPEC)
    policy = dqn.policy(deterministic=False) if perturbed else Spy(2).policy()
    with pytest.raises(ValueError, match="expected a policy of single observations, got a stack of 2"):
        fitted_q_evaluation(policy, episodes)


# --- rewards --------------------------------------------------------------------------------------------------------


def test_clipped_rewards_are_learned_from_and_the_others_kept() -> None:
    spec = Spec(spaces.Box(-1, 1, (1,)), spaces.Discrete(2))
    replay = ReplayBuffer.online(spec, 4, reward_transform=lambda rewards: rewards.clip(-1, 1))
    row, no = np.zeros((1, 1), np.float32), np.zeros(1, np.bool_)
    for reward in (5.0, -3.0, 0.5):
        replay.add(Steps(row, np.zeros(1, np.int64), np.array([reward]), no, no, row))
    entries = torch.arange(3)
    assert replay.gather(entries, discount=0.5).rewards.tolist() == [1.0, -1.0, 0.5]
    assert replay.gather(entries, discount=0.5, n_step=3).rewards.tolist() == [0.625, -0.75, 0.5]
    assert replay.gather_segments(entries[:1], 4).rewards.tolist() == [[1.0, -1.0, 0.5, 0.0]]
    assert replay.to_episodes(spec).rewards.tolist() == [5.0, -3.0, 0.5]
    assert PrioritisedReplay(replay).replay is replay


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_returns_stay_what_they_are_where_rewards_are_clipped(name: str) -> None:
    def pays_9() -> Pixels:
        return Pixels(pay=9.0)

    options = (
        SMALL | ONLINE if name == "dqn" else {"hidden_sizes": (8,), "steps": 64, "rollout_steps": 8, "quiet": True}
    )
    run = herdbook.train(name, env=pays_9, run_dir="run", reward_transform="clip", **options)
    returns = run.evaluations()[-1]["returns"]
    assert all(value % 9 == 0 for value in returns)
    assert max(line.get("collected/return", 0.0) for line in run.metrics()) > 1
    if name == "dqn":
        kept = run.checkpoints.load_replay(run.checkpoints.load())["replays"][0]["rewards"]
        assert set(kept.tolist()) == {0.0, 9.0}


@pytest.mark.parametrize("name", ["standardise", "return_range", "clap", "scale:x"])
def test_a_transform_that_needs_data_is_refused_in_an_environment(name: str) -> None:
    with pytest.raises(UserError, match="reward_transform: (expected|unknown)"):
        herdbook.train("dqn", env="CartPole-v1", run_dir="run", reward_transform=name)
    assert not Path("run").exists()


# --- Atari ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ale() -> None:
    pytest.importorskip("ale_py", reason="needs the extra atari")
    pytest.importorskip("cv2", reason="needs the extra atari")


def preprocessing(spec: EnvironmentSpec | None) -> dict[str, Any]:
    assert spec is not None and spec.gymnasium_json is not None
    (wrapper,) = json.loads(spec.gymnasium_json)["additional_wrappers"]
    assert wrapper["entry_point"] == "gymnasium.wrappers.atari_preprocessing:AtariPreprocessing"
    return dict(wrapper["kwargs"])


def test_the_settings_of_atari_are_those_of_its_papers() -> None:
    config: dict[str, Any] = {}
    run: dict[str, Any] = {}
    for row in settings_for("dqn", "ALE/Pong-v5"):
        config |= row.config
        run |= row.run
    dqn = config_class(algorithm_class("dqn"))(**config)
    assert (dqn.frame_stack, dqn.batch_size, dqn.discount, dqn.hidden_sizes) == (4, 32, 0.99, (512,))
    assert dqn.target_period / dqn.updates_per_step == 10_000 and dqn.epsilon_steps * 4 == 1_000_000
    assert run == {"reward_transform": "clip"}
    for name, epsilon, period in (("discrete_cql", 3.125e-4, 2_000), ("discrete_bcq", 1.5e-4, 8_000)):
        values = {key: value for row in settings_for(name, "ALE/Pong-v5") for key, value in row.config.items()}
        assert (values["adam_epsilon"], values["target_period"], values["tau"]) == (epsilon, period, 1.0)
    for name in ("discrete_cql", "discrete_bcq", "bc"):
        assert {k: v for row in settings_for(name, "x", "ALE/Pong-v5") for k, v in row.config.items()}[
            "frame_stack"
        ] == 4


def test_a_game_by_name_is_preprocessed_and_its_record_makes_it_again(ale: None) -> None:
    from ale_py import AtariEnv
    from gymnasium.wrappers import AtariPreprocessing

    env = make_environment("ALE/Pong-v5")
    by_hand = AtariPreprocessing(
        gymnasium.make("ALE/Pong-v5", frameskip=1, disable_env_checker=True), frame_skip=4, noop_max=30
    )
    spec = describe_environment("ALE/Pong-v5")
    assert spec is not None
    recorded = make_environment(registered_only(EnvironmentSpec.from_json(spec.to_json())))
    plain = gymnasium.make(spec.to_gymnasium(), disable_env_checker=True)  # as Minari's recover_environment does
    assert env.observation_space == spaces.Box(0, 255, (84, 84), np.uint8)
    envs = [env, by_hand, recorded, plain]
    frames = [e.reset(seed=3)[0] for e in envs]
    for t in range(30):
        assert frames[0].dtype == np.uint8 and all(np.array_equal(frames[0], frame) for frame in frames[1:])
        frames = [e.step(t % 6)[0] for e in envs]
    assert isinstance(env.unwrapped, AtariEnv) and env.spec is not None
    assert preprocessing(EnvironmentSpec.from_gymnasium(env.spec)) == preprocessing(spec)
    assert make_environment("ALE/Pong-v5", obs_type="rgb").observation_space.shape == (210, 160, 3)
    calm = describe_environment("ALE/Pong-v5", repeat_action_probability=0.0, noop_max=0)
    assert calm is not None and calm.kwargs["repeat_action_probability"] == 0.0 and "noop_max" not in calm.kwargs
    assert preprocessing(calm)["noop_max"] == 0
    with pytest.raises(EnvironmentUnavailable, match="did you mean 'ALE/Pong-v5'"):
        make_environment("ALE/Pongg-v5")
    with pytest.raises(EnvironmentUnavailable, match="scale_obs"):
        make_environment("ALE/Pong-v5", scale_obs=True)  # no pixels would be left


def test_the_loss_of_a_life_ends_no_game_that_is_evaluated(ale: None, minari_root: Path) -> None:
    lives = {"terminal_on_life_loss": True}
    env: Any = make_environment("ALE/Breakout-v5", **lives)
    env.reset(seed=0)
    for t in range(500):
        _, _, terminated, _, info = env.step(1 + t % 3)
        if terminated:
            break
    assert terminated and info["lives"] == 4
    learned_in = describe_environment("ALE/Breakout-v5", **lives)
    assert learned_in is not None and preprocessing(learned_in)["terminal_on_life_loss"]
    assert not preprocessing(whole_games(learned_in))["terminal_on_life_loss"]  # type: ignore[arg-type]  # of a spec it is one
    assert whole_games("ALE/Breakout-v5") == "ALE/Breakout-v5" and whole_games(Pixels) is Pixels
    played, _ = collect("random", env="ALE/Breakout-v5", env_kwargs=lives, episodes=2, out="tests/breakout/random-v0")
    assert played.terminated.sum() == 2 and played.lengths().min() > 60  # five lives
    read = load_dataset("tests/breakout/random-v0")
    assert not preprocessing(read.environment)["terminal_on_life_loss"]
    assert np.array_equal(read.observations, played.observations)  # without loss, which Minari's own JPEG is not
    plain = minari.load_dataset("tests/breakout/random-v0")
    assert np.array_equal(plain[0].observations, played.observations[: int(played.lengths()[0]) + 1])
    assert plain.recover_environment().observation_space == played.observation_space


def test_pong_is_learned_online_collected_and_learned_offline(ale: None, minari_root: Path) -> None:
    short = {"max_num_frames_per_episode": 400}
    run = herdbook.train(
        "dqn",
        env="ALE/Pong-v5",
        env_kwargs=short,
        run_dir="run",
        steps=240,
        warmup_steps=200,
        replay_steps=150,
        eval_episodes=1,
        evaluate_every=240,
        num_envs=1,
        quiet=True,
    )
    assert run.config["config"]["frame_stack"] == 4 and run.config["run"]["reward_transform"] == "clip"
    replay = run.checkpoints.load_replay(run.checkpoints.load())["replays"][0]["observations"]
    assert replay.dtype == torch.uint8 and replay.shape[1:] == (84, 84)
    assert len(run.metrics()) and run.evaluations()[-1]["lengths"][0] <= 100
    collect(run.path, episodes=2, deterministic=False, out="tests/pong/dqn-v0")
    for name in ("discrete_cql", "discrete_bcq"):
        offline = herdbook.train(
            name, dataset="tests/pong/dqn-v0", run_dir=name, steps=4, evaluate_every=4, eval_episodes=1, quiet=True
        )
        assert offline.config["config"]["frame_stack"] == 4
        assert offline.evaluations()[-1]["lengths"][0] <= 100  # in the game that the data record


def test_a_missing_opencv_names_the_extra(ale: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(EnvironmentUnavailable, match=r"herdbook\[atari\]"):
        make_environment("ALE/Pong-v5")
