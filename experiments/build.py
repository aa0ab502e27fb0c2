"""From what a user named to what the loop takes: dataset, environment, device, algorithm, replays, evaluation."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import herdbook.tabular.environment  # noqa: F401  # importing it registers our environments
from herdbook.core.book import Evaluate
from herdbook.core.collection import Plan
from herdbook.core.environments import (
    EnvironmentSource,
    EnvironmentSpec,
    EnvironmentUnavailable,
    ReferenceScores,
    describe_environment,
    make_environment,
    registered_only,
    whole_games,
)
from herdbook.core.fine_tuning import FineTuned
from herdbook.core.joint.games import IllegalAction
from herdbook.core.joint.rollout import JointRandomPolicy, JointRollout
from herdbook.core.joint.types import JointSpec
from herdbook.core.rollout import EnvironmentFailed, RandomPolicy, Rollout, fixed_episodes
from herdbook.core.runs import Run, RunError
from herdbook.core.seeds import SeedBySeed
from herdbook.core.spaces import check_action_space, flat_action_space, flat_space
from herdbook.core.stepping import Stepper
from herdbook.core.types import Algorithm, Policy, Spec
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.joint.episodes import JointEpisodes
from herdbook.datasets.joint.minari import save_joint
from herdbook.datasets.joint.replay import JointReplay
from herdbook.datasets.load import load_dataset, recorded_environment
from herdbook.datasets.minari import write_minari
from herdbook.datasets.mixed import MixedReplay
from herdbook.datasets.prioritised import PrioritisedReplay
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rewards import RewardMap, reward_map, transform_rewards
from herdbook.datasets.rollouts import Rollouts
from herdbook.evaluation.evaluate import Scores, evaluate, score
from herdbook.evaluation.joint import evaluate_joint
from herdbook.evaluation.scores import find_references, normalised_score
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.opponents import RunPlayer
from herdbook.experiments.options import RunOptions, literal_pairs
from herdbook.experiments.records import OTHERS, environment_record
from herdbook.experiments.settings import Setting, settings_for

EVALUATION_ENVIRONMENTS = 20  # stepped side by side


Data = Episodes | JointEpisodes
Networks = Mapping[str, Callable[[], torch.nn.Module]]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The dataset that a run learns from."""

    given: Data  # as it was loaded
    episodes: Data  # with the run's own transform of rewards


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run learns from, and what it plays and is evaluated in."""

    data: Recorded | None  # None: it learns in the environment
    spec: Spec | JointSpec
    environment: EnvironmentSource | None
    references: ReferenceScores | None
    play: Mapping[str, Any] = field(default_factory=dict)  # who learns and who plays the others, for `JointRollout`

    @property
    def source(self) -> str:
        """What it is called by."""
        if self.data is not None:
            return self.data.episodes.source
        record = environment_record(self.environment)
        return "environment" if record is None else str(record["id"])


def learns_in_environment(algorithm: type[Any]) -> bool:
    """Whether an algorithm plays while it learns; else it learns from a dataset."""
    return hasattr(algorithm, "updates_due")


def learns_jointly(algorithm: type[Any]) -> bool:
    """Whether it is one for many agents."""
    return bool(getattr(algorithm, "joint", False))


def load_playground(algorithm: type[Any], options: RunOptions, env: EnvironmentSource | None) -> Task:
    """The environment that a run learns in. Raises EnvironmentUnavailable or UserError."""
    source = with_arguments(env or options.env, literal_pairs(options.env_kwargs))
    if source is None:
        raise UserError("expected --env (env= in Python), an environment to learn in; got none")
    if not learns_jointly(algorithm):
        return _load_single(algorithm, options, source)
    if options.reward_transform != "none":
        raise UserError(
            f"reward_transform: expected none where many agents play, got {options.reward_transform}; "
            "wrap the environment"
        )
    play = play_options(options)
    try:
        rollout = JointRollout(source, 1, **play)
    except IllegalAction as error:  # of the others
        raise UserError(f"others: {error}") from error
    rollout.close()
    return Task(data=None, spec=rollout.spec, environment=source, references=None, play=play)


def _load_single(algorithm: type[Any], options: RunOptions, source: EnvironmentSource) -> Task:
    if options.learn or options.others != "random":
        raise UserError(f"learn, others: {algorithm.__name__} is an algorithm for one agent")
    if options.workers:
        raise UserError(
            f"workers: expected 0, {algorithm.__name__} steps its environments itself; got {options.workers}"
        )
    try:
        spec = _single_spec(source, options.observation_keys)
    except EnvironmentUnavailable:
        raise
    except ValueError as error:  # of the keys
        raise UserError(str(error)) from error
    return Task(
        data=None, spec=spec, environment=source, references=find_references(None, describe_environment(source))
    )


def _single_spec(source: EnvironmentSource, keys: tuple[str, ...] | None = None) -> Spec:
    """The spaces of an environment of one agent. Raises EnvironmentUnavailable or ValueError."""
    env = make_environment(source)
    env.close()
    raw = env.observation_space
    seen = flat_space(raw, keys)
    return Spec(seen, flat_action_space(env.action_space), None if raw == seen else raw, keys)


def settings_of(
    name: str,
    algorithm: type[Any],
    *,
    dataset: str | Path | Data | None,
    data_dir: str | Path | None,
    env: EnvironmentSource | None,
    env_kwargs: Mapping[str, Any],
) -> list[Setting]:
    """The settings of a task, known by its dataset, which is fetched or made if need be, and by its environment.

    Fields that follow an argument of the environment follow the one that the data were made in, where there are data.
    Raises DataError for a dataset that is not there.
    """
    source, recorded = None, None
    if dataset is not None and not learns_in_environment(algorithm):
        if isinstance(dataset, (str, Path)):
            source, recorded = str(dataset), recorded_environment(dataset, data_dir=data_dir)
        else:
            source, recorded = dataset.source, dataset.environment
    chosen = None if env is None else describe_environment(env)
    names = [source, *(spec.id for spec in (recorded, chosen) if spec is not None)]
    arguments = recorded.kwargs if recorded else {**(chosen.kwargs if chosen else {}), **env_kwargs}
    return settings_for(name, *names, arguments=arguments)


def play_options(options: RunOptions) -> dict[str, Any]:
    """Who learns and who plays the others, as `JointRollout` takes them. Raises UserError or RunError."""
    if options.others == "random" and options.others_step is not None:
        raise UserError(f"others_step: expected --others, the run that has it, beside it; got {options.others_step}")
    if not options.learn:
        if options.others != "random":
            raise UserError("others: expected --learn beside it, which names the agents that learn; got none")
        return {}
    others = None if options.others == "random" else RunPlayer(options.others, options.others_step)
    return {"learners": options.learn, "others": others}


def keep_others(run: Run, task: Task) -> None:
    """Put the policies of the others into the run's own directory: where they came from may change."""
    player = task.play.get("others")
    if player is not None:
        player.move(run.path / OTHERS)
        run.update_config(run={**run.options, "others_step": player.step})


def load_task(options: RunOptions, dataset: str | Path | Data, env: EnvironmentSource | None) -> Task:
    """Load the dataset, transform its rewards, and find the environment to evaluate in.

    Raises DataError, EnvironmentUnavailable or UserError.
    """
    if isinstance(dataset, (Episodes, JointEpisodes)):
        given = dataset
    else:
        try:
            given = load_dataset(dataset, data_dir=options.data_dir, observation_keys=options.observation_keys)
        except DataError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from error
    chosen, arguments = env or options.env, literal_pairs(options.env_kwargs)
    recorded, references = given.environment, find_references(given.reference_scores, given.environment)
    if recorded is not None and not same_environment(chosen, arguments, recorded):
        references = None  # those of the dataset's environment say nothing about another one
    return Task(
        data=Recorded(given=given, episodes=_transformed(given, options.reward_transform)),
        spec=given.spec if isinstance(given, JointEpisodes) else given.spec(),
        environment=with_arguments(chosen or recorded, arguments),
        references=references,
        play=play_options(options) if isinstance(given, JointEpisodes) else {},
    )


def _transformed(given: Data, transform: str) -> Data:
    """The run's own transform of the rewards. Raises UserError for an unknown name."""
    if isinstance(given, JointEpisodes):
        if transform != "none":
            raise UserError(f"reward_transform: expected none for data of many agents, got {transform}")
        return given
    try:
        return transform_rewards(given, transform)
    except DataError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def same_environment(chosen: EnvironmentSource | None, arguments: Mapping[str, Any], recorded: EnvironmentSpec) -> bool:
    """Whether what a user chose (None: nothing) and its keyword arguments make the recorded environment."""
    described = recorded if chosen is None else describe_environment(chosen)
    if described is None or described.id != recorded.id:
        return False
    if not isinstance(chosen, str) and dict(described.kwargs) != dict(recorded.kwargs):
        return False
    return all(name in recorded.kwargs and recorded.kwargs[name] == value for name, value in arguments.items())


def with_arguments(source: EnvironmentSource | None, arguments: Mapping[str, Any]) -> EnvironmentSource | None:
    """An environment with keyword arguments bound."""
    if source is None or not arguments:
        return source
    if callable(source):
        return functools.partial(source, **arguments)
    return describe_environment(source, **arguments)


def choose_device(name: str) -> str:
    """`auto` → cuda where there is one, else cpu. Raises UserError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: expected auto, cpu, cuda or cuda:<n>, got {name!r}") from error
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device.type == "mps" and torch.backends.mps.is_available():
        there.append("mps")
    if device.type != "cpu" and name not in there and not (name == "cuda" and len(there) > 1):
        raise UserError(f"device: {name} is not there; this machine has {', '.join(there)}")
    return name


def build_algorithm(
    algorithm: type[Any],
    config: Any,
    spec: Spec | JointSpec,
    *,
    seeds: Sequence[int],
    device: str,
    networks: Networks | None = None,
    compile: str = "off",
    apart: bool = False,
) -> Any:
    """Construct an algorithm for these spaces: one of all seeds, or several of one seed where it trains so.

    `apart`: of one seed each, whatever it is: as runs that are fine-tuned have them. `networks` and `compile` are
    passed only where they are used, so that a user's own class need not know them.

    Raises UserError if it cannot learn in these spaces.
    """
    optional: dict[str, Any] = {} if networks is None else {"networks": networks}
    if compile == "on" or (compile == "auto" and device.startswith("cuda")):
        optional["compile"] = True
    one_by_one = apart or learns_in_environment(algorithm) or getattr(config, "recurrent", False)
    try:
        _check_agents(algorithm, spec)
        if one_by_one:
            return SeedBySeed([algorithm(config, spec, seeds=(seed,), device=device, **optional) for seed in seeds])
        return algorithm(config, spec, seeds=tuple(seeds), device=device, **optional)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_agents(algorithm: type[Any], spec: Spec | JointSpec) -> None:
    """Raise ValueError unless the algorithm is one for as many agents, and for such actions."""
    if isinstance(spec, JointSpec) != learns_jointly(algorithm):
        there = "many agents" if isinstance(spec, JointSpec) else "one agent"
        raise ValueError(
            f"{algorithm.__name__} is an algorithm for {'many agents' if learns_jointly(algorithm) else 'one agent'}, "
            f"the data are of {there}; `herdbook list algorithms` says which there are"
        )
    if isinstance(spec, Spec):
        check_action_space(spec.action_space, getattr(algorithm, "action_space", "any"), algorithm.__name__)


def make_evaluation(
    algorithm: Algorithm, task: Task, *, episodes: int, seed: int, device: str, required: bool
) -> tuple[Evaluate | None, str | None]:
    """The loop's evaluation, or None and the reason: training goes on where the environment cannot be made.

    `required`: the user named the environment, so that failing to make it is an error. Else it is the dataset's, of
    which only what is registered is made.
    """
    if episodes == 0:
        return None, None
    if task.environment is None:
        return None, f"{task.source}: names no environment, so nothing is evaluated; name one with --env"
    source = task.environment
    try:  # now rather than after the first updates
        source = trusted(source, required)
        if isinstance(task.spec, JointSpec):
            JointRollout(source, 1, spec=task.spec, device=device, **task.play).close()
        else:
            Rollout(source, 1, fixed_episodes(1, seed), spec=task.spec, device=device).close()
    except (EnvironmentUnavailable, EnvironmentFailed) as error:
        if required and isinstance(error, EnvironmentUnavailable):
            raise UserError(str(error)) from error
        if required:
            raise
        return None, f"training goes on without evaluation: {error}"

    def function(seed_index: int, step: int) -> dict[str, Any]:
        return score_line(scores(algorithm.policy(seed_index), source, episodes, seed, task, device), task.references)

    return function, None


def trusted(source: EnvironmentSource, given: bool) -> EnvironmentSource:
    """An environment that the user gave, or a dataset's, of which only what is registered is made.

    Raises EnvironmentUnavailable for another one.
    """
    return source if given or not isinstance(source, EnvironmentSpec) else registered_only(source)


def play(
    policy: Policy,
    source: EnvironmentSource,
    episodes: int,
    seed: int,
    task: Task,
    device: str,
    num_envs: int = EVALUATION_ENVIRONMENTS,
    state: bool = False,
) -> Data:
    """Evaluate a policy in an environment, of one agent (in whole games) or of many; `state`: with the global state."""
    lanes = min(episodes, num_envs)
    if isinstance(task.spec, JointSpec):
        return evaluate_joint(
            policy, source, episodes, seed, num_envs=lanes, device=device, spec=task.spec, state=state, **task.play
        )
    return evaluate(policy, whole_games(source), episodes, seed, num_envs=lanes, device=device, spec=task.spec)


def scores(
    policy: Policy, source: EnvironmentSource, episodes: int, seed: int, task: Task, device: str
) -> Scores | JointEpisodes:
    """What the episodes of `play` come to, for `score_line`; those of one agent are not kept."""
    if isinstance(task.spec, JointSpec):
        played = play(policy, source, episodes, seed, task, device)
        assert isinstance(played, JointEpisodes)
        return played
    lanes = min(episodes, EVALUATION_ENVIRONMENTS)
    return score(policy, whole_games(source), episodes, seed, num_envs=lanes, device=device, spec=task.spec)


def random_task(source: EnvironmentSource) -> Task:
    """An environment to play in: of one agent if it is Gymnasium's, else of many. Raises EnvironmentUnavailable."""
    spec: Spec | JointSpec
    try:
        spec = _single_spec(source)
    except EnvironmentUnavailable:
        joint = JointRollout(source, 1)
        joint.close()
        spec = joint.spec
    return Task(data=None, spec=spec, environment=source, references=None)


def random_policy(spec: Spec | JointSpec) -> Policy:
    """Uniform legal actions. Raises UserError for actions without bounds."""
    try:
        return JointRandomPolicy(spec) if isinstance(spec, JointSpec) else RandomPolicy(spec.action_space)
    except ValueError as error:
        raise UserError(str(error)) from error


def write_any(episodes: Data, dataset_id: str, data_dir: str | None) -> Path:
    """Episodes of one agent or of many as a Minari dataset; returns its folder."""
    if isinstance(episodes, JointEpisodes):
        return save_joint(episodes, dataset_id, data_dir=data_dir)
    return write_minari(episodes, dataset_id, data_dir=data_dir)


def lanes_of(options: RunOptions, algorithm: Any) -> int:
    """How many environments each seed steps side by side."""
    return options.num_envs or int(getattr(algorithm, "num_envs", 8))


def make_replays(task: Task, algorithm: Any, options: RunOptions, device: str) -> list[Any]:
    """The dataset's replay, or an empty one for each seed that learns in the environment."""
    time_limit = options.time_limit
    if task.data is None and isinstance(task.spec, Spec):
        return [step_replay(task.spec, one, options, device) for one in algorithm.algorithms]
    if task.data is None:
        assert isinstance(task.spec, JointSpec)
        return [
            JointReplay.online(
                task.spec,
                one.config.replay_steps,
                device=device,
                time_limit=time_limit,
                state=keeps_state(one, task.spec),
            )
            for one in algorithm.algorithms
        ]
    if isinstance(task.data.episodes, JointEpisodes):
        state = keeps_state(algorithm, task.data.episodes.spec)
        return [JointReplay(task.data.episodes, device=device, time_limit=time_limit, state=state)]
    return [ReplayBuffer(task.data.episodes, device=device, time_limit=time_limit)]


def step_replay(spec: Spec, algorithm: Any, options: RunOptions, device: str) -> Any:
    """What its steps go into: the rollout of one that learns on-policy, else a replay, drawn by priority on request."""
    shared: dict[str, Any] = {
        "device": device,
        "time_limit": options.time_limit,
        "reward_transform": transform_of(options.reward_transform),
    }
    if getattr(algorithm, "on_policy", False):
        return Rollouts(**shared)
    c, lanes = algorithm.config, lanes_of(options, algorithm)
    if getattr(c, "scale_rewards", False) and options.reward_transform != "none":
        raise UserError(
            "scale_rewards: expected reward_transform none beside it, for the scale is that of rewards as they were "
            f"played; got {options.reward_transform}"
        )
    try:
        replay = ReplayBuffer.online(spec, c.replay_steps, lanes, frame_stack=getattr(c, "frame_stack", 1), **shared)
    except (ValueError, MemoryError) as error:
        raise UserError(f"replay_steps: {error}") from error
    return PrioritisedReplay(replay, c.priority_exponent) if getattr(c, "prioritised", False) else replay


def transform_of(name: str, data: Recorded | None = None) -> RewardMap | None:
    """The transform of the rewards of what is played, as that of the dataset's; None for none.

    Raises UserError or DataError.
    """
    given = None if data is None else data.given
    if isinstance(given, Episodes) and (changed := [t for t in given.transforms if t.startswith("rewards:")]):
        raise UserError(
            f"online_steps: expected the rewards of {given.source} as the environment gives them, they were changed: "
            f"{', '.join(changed)}; give the raw data, and --reward-transform"
        )
    try:
        return None if name == "none" else reward_map(name, given if isinstance(given, Episodes) else None)
    except DataError:
        raise
    except ValueError as error:
        raise UserError(f"reward_transform: {error}") from error


def make_stepper(task: Task, algorithm: Any, options: RunOptions, device: str, given: bool) -> Stepper:
    """The environments of every seed, of one agent; `given`: by the user, not by a dataset."""
    if task.environment is None:
        raise UserError(f"online_steps: {task.source} names no environment to play in; name one with --env")
    assert isinstance(task.spec, Spec)
    first = algorithm.algorithms[0]
    lanes, most = lanes_of(options, first), getattr(first, "most_envs", None)
    if most is not None and lanes > most:
        raise UserError(f"num_envs: expected at most {most} for {type(first).__name__}, got {lanes}")
    try:
        return Stepper(trusted(task.environment, given), task.spec, options.seeds, lanes, device)
    except EnvironmentUnavailable:
        raise
    except ValueError as error:  # of a callable that gives the same environment twice
        raise UserError(str(error)) from error


def fine_tuned(algorithm: SeedBySeed, task: Task, options: RunOptions) -> SeedBySeed:
    """The algorithms of all seeds as they learn in an environment. Raises UserError for noise that does not fit."""
    assert isinstance(task.spec, Spec)
    noise = options.online_noise
    if noise is None:
        noise = getattr(algorithm.algorithms[0], "online_noise", 0.0)
    try:
        players = [
            FineTuned(one, task.spec.action_space, noise=noise, updates_per_step=options.online_updates)
            for one in algorithm.algorithms
        ]
    except ValueError as error:
        raise UserError(f"online_noise: {error}") from error
    return SeedBySeed(players)


def mixed_replays(
    offline: ReplayBuffer, task: Task, algorithm: Any, options: RunOptions, device: str
) -> list[MixedReplay]:
    """The dataset, and room for what each seed plays after it."""
    assert isinstance(task.spec, Spec)
    rewards = transform_of(options.reward_transform, task.data)
    try:
        return [
            MixedReplay(
                offline,
                ReplayBuffer.online(
                    task.spec,
                    options.online_replay,
                    lanes_of(options, FineTuned),
                    device=device,
                    time_limit=options.time_limit,
                    frame_stack=getattr(algorithm.config, "frame_stack", 1),
                    reward_transform=rewards,
                ),
                options.online_share,
            )
            for _ in options.seeds
        ]
    except (ValueError, MemoryError) as error:
        raise UserError(f"online_replay: {error}") from error


def keeps_state(algorithm: Any, spec: JointSpec) -> bool:
    """Whether the global state is recorded: for algorithms that read it, where there is one."""
    first = algorithm.algorithms[0] if isinstance(algorithm, SeedBySeed) else algorithm
    return spec.state_space is not None and getattr(first, "reads_state", False)


def make_plan(task: Task, algorithm: Any, options: RunOptions, networks: Networks | None) -> Plan:
    """How the environment is played while the seeds learn. Raises UserError where workers cannot be sent it."""
    assert isinstance(task.spec, JointSpec) and task.environment is not None
    first = algorithm.algorithms[0]
    plan = Plan(
        algorithm=type(first),
        config=first.config,
        spec=task.spec,
        source=task.environment,
        num_envs=lanes_of(options, first),
        rollout={**task.play, "state": keeps_state(first, task.spec)},
        networks=networks,
    )
    try:
        if workers_of(options):
            pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"workers: expected an environment and networks that another process can import, got {error}; "
            "define them at the top of a module, or set workers=0"
        ) from error
    return plan


def workers_of(options: RunOptions) -> int:
    """How many processes step environments."""
    return min(1, (os.cpu_count() or 1) - 1) if options.workers is None else options.workers


def score_line(result: Scores | Data, references: ReferenceScores | None) -> dict[str, Any]:
    """The numbers of one evaluation; `normalized_score` is the mean of the scores ×100, None without references.

    Of many agents the return is the team's, the sum over the agents, and `agent_returns` are the means of their own.
    """
    returns = result.returns()
    score = None if references is None else float(np.mean(normalised_score(returns, references)))
    of_agents: dict[str, Any] = {}
    if isinstance(result, JointEpisodes):
        of_agents["agent_returns"] = dict(zip(result.spec.agents, result.agent_returns().mean(0).tolist(), strict=True))
    return {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "normalized_score": score,
        "returns": returns.tolist(),
        "lengths": result.lengths().tolist(),
        **of_agents,
    }


def check_dataset(run: Run, task: Task) -> None:
    """Raise RunError unless these are the data that the run was begun with."""
    if task.data is None:
        return
    episodes = task.data.episodes
    expected, found = run.config["dataset"].get("fingerprint"), episodes.fingerprint()
    if found != expected:
        raise RunError(
            f"{episodes.source}: the dataset has changed since the run began (fingerprint {found[:12]}, the run has "
            f"{str(expected)[:12]}); restore the data, or begin a new run"
        )


def dataset_record(task: Task) -> dict[str, Any] | None:
    """What config.json says of a dataset; `given` is what it was before the run's own transform of rewards."""
    if task.data is None:
        return None
    episodes, given = task.data.episodes, task.data.given
    return {
        "source": episodes.source,
        "fingerprint": episodes.fingerprint(),
        "transforms": _transforms(episodes),
        "given": {"fingerprint": given.fingerprint(), "transforms": _transforms(given)},
        "statistics": episodes.statistics(),
    }


def _transforms(data: Data) -> list[str]:
    return [] if isinstance(data, JointEpisodes) else list(data.transforms)
