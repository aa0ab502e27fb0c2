"""The command's work as functions: `train`, `resume`, `load`, `evaluate_run`; the first and third are `herdbook.…`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from herdbook.core.actor import Actor
from herdbook.core.book import Evaluate
from herdbook.core.checkpoint import CheckpointError
from herdbook.core.collection import Collector
from herdbook.core.environments import EnvironmentSource, ReferenceScores, whole_games
from herdbook.core.exploration import NoisyPolicy
from herdbook.core.fine_tuning import FineTuned, score_of, watched
from herdbook.core.joint.actor import JointActor
from herdbook.core.joint.types import JointSpec
from herdbook.core.logging import Reporter
from herdbook.core.loop import Cadence, train_offline, train_online
from herdbook.core.random import generator
from herdbook.core.runs import (
    Run,
    RunError,
    create_run,
    locked,
    next_free_directory,
    provenance,
    refuse_existing_run,
)
from herdbook.core.specs import any_spec_from_state, any_spec_state
from herdbook.core.types import Spec
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.learned import LearnedBy
from herdbook.datasets.minari import minari_root
from herdbook.datasets.prioritised import PrioritisedReplay
from herdbook.experiments.build import (
    EVALUATION_ENVIRONMENTS,
    Data,
    Networks,
    Task,
    build_algorithm,
    check_dataset,
    choose_device,
    dataset_record,
    fine_tuned,
    keep_others,
    lanes_of,
    learns_in_environment,
    load_playground,
    load_task,
    make_evaluation,
    make_plan,
    make_replays,
    make_stepper,
    mixed_replays,
    play,
    play_options,
    random_policy,
    random_task,
    same_environment,
    score_line,
    scores,
    settings_of,
    step_replay,
    with_arguments,
    workers_of,
    write_any,
)
from herdbook.experiments.catalogue import ALGORITHMS, UserError, algorithm_class, config_class, nearest
from herdbook.experiments.options import RunOptions, as_words
from herdbook.experiments.records import (
    absolute,
    build_config,
    check_networks,
    check_reserved,
    config_from_values,
    config_values,
    environment_from_record,
    environment_record,
    merge,
    options_of,
    run_schedules,
    same_record,
    spec_of_record,
)
from herdbook.experiments.settings import Setting

_RUN_FIELDS = tuple(f.name for f in fields(RunOptions))


def train(
    algorithm: str | type[Any] | Any,
    *,
    dataset: str | Path | Data | None = None,
    env: EnvironmentSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    config: Any = None,
    networks: Networks | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Train on a dataset, or in an environment, and return the run.

    Args:
        algorithm: A config (`CQLConfig(alpha=10)`, taken as it is), a name (`"cql"`, `"module:Class"`; the settings of
            the task apply), or a class.
        dataset: What `load_dataset` takes, `Episodes` or `JointEpisodes`.
        env: Environment to learn in, or to evaluate in if not the dataset's: id, `module:callable`, or a callable.
        env_kwargs: Its keyword arguments.
        config: The config, where `algorithm` is a name or a class.
        networks: A user's own modules, by the name that the algorithm gives them.
        quiet: Show no progress.
        options: Fields of `RunOptions` (`steps=`, `seeds=`, `run_dir=`, …) and, where no config is given, fields of
            the algorithm's config.

    Raises:
        UserError, DataError, RunError, EnvironmentUnavailable: Something named is wrong or not there.
        RunFailed: No seed is left with a finite loss, or the disk is full.
    """
    run_options = {name: value for name, value in options.items() if name in _RUN_FIELDS}
    values = {name: value for name, value in options.items() if name not in _RUN_FIELDS}
    name, chosen = _resolve(algorithm)
    if is_dataclass(algorithm) and not isinstance(algorithm, type):
        config = algorithm
    applied: list[Setting] = []
    if config is None:
        applied = settings_of(
            name,
            chosen,
            dataset=dataset,
            data_dir=run_options.get("data_dir"),
            env=env,
            env_kwargs=env_kwargs or {},
        )
        values = {key: value for row in applied for key, value in row.config.items()} | values
        run_options = {key: value for row in applied for key, value in row.run.items()} | run_options
        config = build_config(config_class(chosen), values)
    elif values:
        unknown = sorted(values)
        raise UserError(
            f"unknown option {unknown[0]!r}{nearest(unknown[0], _RUN_FIELDS)}; "
            "fields of the config belong into the config object that you give"
        )
    if "seeds" in run_options:
        run_options["seeds"] = tuple(run_options["seeds"])
    if "learn" in run_options:
        learn = run_options["learn"]
        run_options["learn"] = (learn,) if isinstance(learn, str) else tuple(learn)
    for path in ("run_dir", "data_dir", "others"):
        if run_options.get(path) is not None:
            run_options[path] = str(run_options[path])
    if dataset is not None:
        run_options["dataset"] = str(dataset) if isinstance(dataset, (str, Path)) else dataset.source
    run_options.setdefault("workers", 0)  # a process that is spawned imports the script that calls us
    if isinstance(env, str):
        run_options["env"], env = env, None
    if env_kwargs:
        run_options["env_kwargs"] = as_words(env_kwargs)
    return start(
        name,
        chosen,
        config,
        RunOptions(**run_options),
        dataset=dataset,
        env=env,
        networks=networks,
        applied=applied,
        quiet=quiet,
    )


def start(
    name: str,
    algorithm: type[Any],
    config: Any,
    options: RunOptions,
    *,
    dataset: str | Path | Data | None = None,
    env: EnvironmentSource | None = None,
    networks: Networks | None = None,
    applied: Sequence[Setting] = (),
    quiet: bool = False,
) -> Run:
    """A new run, everything named resolved. Nothing is written before all of it has been found good."""
    check_reserved(type(config))
    if hasattr(config, "for_run") and not options.online_steps:  # schedules that last the whole training
        config = config.for_run(options.steps)
    options = absolute(options)
    if learns_in_environment(algorithm) or options.online_steps:
        options = merge(options, num_envs=lanes_of(options, FineTuned if options.online_steps else algorithm))
    device = choose_device(options.device)
    cadence = Cadence.of(options.total_steps, options.log_every, options.evaluate_every, options.checkpoint_every)
    path = Path(options.run_dir) if options.run_dir else None
    if path is not None:
        refuse_existing_run(path)
    task = _load(algorithm, options, dataset, env)
    trainer = _Trainer(algorithm, config, options, task, device, networks, env is not None)
    path = path or next_free_directory("runs", options.name or _slug(f"{name}-{task.source}"))
    run = create_run(
        path,
        {
            "algorithm": name,
            "config": config_values(config),
            "settings": [asdict(row) for row in applied],
            "dataset": dataset_record(task),
            "environment": environment_record(task.environment),
            "references": None if task.references is None else asdict(task.references),
            "networks": sorted(networks or ()),
            "seeds": list(options.seeds),
            "time_limit": options.time_limit,
            "run": {**asdict(options), "device": device, "threads": torch.get_num_threads()}
            | {f"{which}_every": getattr(cadence, which) for which in ("log", "evaluate", "checkpoint")},
            **provenance(),
        },
    )
    keep_others(run, task)
    for row in applied:
        trainer.notices.insert(0, f"settings: {row}")
    trainer.run(run, options, quiet)
    return Run(run.path)


def resume(
    path: str | Path,
    *,
    steps: int | None = None,
    online_steps: int | None = None,
    algorithm: str | type[Any] | None = None,
    dataset: str | Path | Data | None = None,
    env: EnvironmentSource | None = None,
    networks: Networks | None = None,
    device: str | None = None,
    data_dir: str | None = None,
    workers: int | None = 0,
    quiet: bool = False,
) -> tuple[Run, bool]:
    """Continue a run to the bit from its last checkpoint, or extend it: to `steps`, or to `online_steps` where it is
    fine-tuned.

    A user's own algorithm, environment, networks and `Episodes` must be given again: nothing that a run directory
    names is imported. `workers`: as in `RunOptions`; None: as many as the run was begun with. Returns the run, and
    whether there was anything to do.

    Raises RunError if the dataset, the algorithm or the shapes are not those of the run.
    """
    run = Run(path)
    options = options_of(run)
    last, begun = run.checkpoints.last(), options
    if options.online_steps and steps is not None:
        raise UserError(f"steps: {run.path} is fine-tuned after {options.steps}; expected online_steps, got {steps}")
    if not options.online_steps and online_steps is not None:
        raise UserError(f"online_steps: expected steps, {run.path} was begun without fine-tuning; got {online_steps}")
    if online_steps is not None and online_steps < 1:
        raise UserError(f"online_steps: expected 1 or more, got {online_steps}")
    options = merge(options, steps=steps, online_steps=online_steps)
    if last is not None and options.total_steps < last:
        name, before = ("online_steps", options.steps) if begun.online_steps else ("steps", 0)
        raise UserError(
            f"{name}: expected at least {last - before}, where {run.path} is, got {options.total_steps - before}"
        )
    if last is not None and options.total_steps == last:
        return run, False
    _, chosen = _algorithm_of(run, algorithm)
    check_networks(run, networks)
    config = config_from_values(config_class(chosen), run.config["config"])
    named = env if isinstance(env, str) else None
    options = merge(options, device=device, data_dir=data_dir, workers=workers, env=named)
    resolved = choose_device(options.device)
    with locked(run.path):
        task = _load(chosen, _trusted(run, options, env), dataset, None if isinstance(env, str) else env)
        check_dataset(run, task)
        _check_environment(run, task, given=env is not None)
        trainer = _Trainer(chosen, config, options, task, resolved, networks, env is not None)
        for name in run_schedules(config) if options.steps > begun.steps else ():
            trainer.notices.append(
                f"the schedule {name}={getattr(config, name)} is that of the steps that the run was begun with; after "
                "it stays at its end"
            )
        if options.total_steps != begun.total_steps:
            run.update_config(run={**run.options, "steps": options.steps, "online_steps": options.online_steps})
        trainer.run(run, options, quiet, held=True)
    return Run(run.path), True


def _load(
    algorithm: type[Any], options: RunOptions, dataset: str | Path | Data | None, env: EnvironmentSource | None
) -> Task:
    """The dataset or the environment that the algorithm learns from."""
    named = options.dataset if dataset is None else dataset
    if learns_in_environment(algorithm):
        if options.online_steps:
            raise UserError(
                f"online_steps: expected 0, all steps of {algorithm.__name__} are those of an environment; "
                f"got {options.online_steps}"
            )
        if named is not None:
            raise UserError(f"{algorithm.__name__} learns in an environment: give --env, not --dataset")
        return load_playground(algorithm, options, env)
    if named is None:
        raise UserError(f"{algorithm.__name__} learns from a dataset: give --dataset (dataset= in Python)")
    return load_task(options, named, env)


def _trusted(run: Run, options: RunOptions, env: EnvironmentSource | None) -> RunOptions:
    """Options of a run read from its directory; raises where an environment is code that was not given again."""
    if env is None and options.env is not None:
        environment_from_record(environment_record(options.env))  # what would be made, whatever is recorded beside it
    elif env is None and run.config["dataset"] is None:
        environment_from_record(run.config["environment"])
    return options


def _check_environment(run: Run, task: Task, given: bool) -> None:
    """Raise unless the environment is the run's: one run is evaluated in one."""
    expected, found = run.config["environment"], environment_record(task.environment)
    own = None if task.data is None else environment_record(task.data.given.environment)
    if not given and not same_record(expected, own):
        environment_from_record(expected)  # raises where it is code, to be given again
    if not same_record(expected, found):
        raise RunError(
            f"{run.path}: expected the environment that the run was begun with, {(expected or {}).get('id')}, got "
            f"{(found or {}).get('id')} or other settings of it; another one is for `herdbook eval {run.path} --env`"
        )


class _Trainer:
    """An algorithm, its replay and its evaluation, ready for the loop."""

    def __init__(
        self,
        algorithm: type[Any],
        config: Any,
        options: RunOptions,
        task: Task,
        device: str,
        networks: Networks | None,
        env_given: bool,
    ) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.options, self.device, self.config, self.task = options, device, config, task
        joint, self.offline = isinstance(task.spec, JointSpec), task.data is not None
        if joint and options.online_steps:
            raise UserError(f"online_steps: expected 0 for data of many agents, got {options.online_steps}")
        if options.online_steps and options.workers:
            raise UserError(f"workers: expected 0, the learner steps one agent itself; got {options.workers}")
        self.algorithm = build_algorithm(
            algorithm,
            config,
            task.spec,
            seeds=options.seeds,
            device=device,
            networks=networks,
            compile=options.compile,
            apart=options.online_steps > 0,
        )
        env_given = env_given or options.env is not None
        self.evaluate, notice = make_evaluation(
            self.algorithm,
            task,
            episodes=options.eval_episodes,
            seed=options.eval_seed,
            device=device,
            required=env_given,
        )
        self.notices = [] if notice is None else [notice]
        self.replays: list[Any] = make_replays(task, self.algorithm, options, device)
        self.player, self.played_into = self.algorithm, self.replays  # as it learns in an environment
        if options.online_steps:
            self.player = fine_tuned(self.algorithm, task, options)
            self.played_into = mixed_replays(self.replays[0], task, self.algorithm, options, device)
        plays = options.online_steps > 0 or not self.offline
        self.plan = make_plan(task, self.algorithm, options, networks) if plays and joint else None
        self.stepper = None
        if plays and not joint:
            self.stepper = make_stepper(task, self.player, options, device, given=env_given or not self.offline)
        self.extra = {"config": config_values(config), "spec": any_spec_state(task.spec)}

    def run(self, run: Run, options: RunOptions, quiet: bool, held: bool = False) -> None:
        """The loops, to the steps of `options`; `held`: the caller has locked the directory."""
        if not held:
            with locked(run.path):
                return self.run(run, options, quiet, held=True)
        total, recorded = options.total_steps, run.options
        try:
            reporter = Reporter(
                run.path,
                total,
                run.seeds,
                wandb=self.options.wandb,
                config=run.config,
                quiet=quiet,
                tensorboard=True,
            )
        except ImportError as error:
            raise UserError(str(error)) from error
        for notice in self.notices:
            reporter.notice(notice)
        shared: dict[str, Any] = {
            "cadence": Cadence.of(
                total, recorded["log_every"], recorded["evaluate_every"], recorded["checkpoint_every"]
            ),
            "reporter": reporter,
            "extra": self.extra,
            "device": self.device,
        }
        at = run.checkpoints.last()
        if self.offline and (not options.online_steps or at is None or at < options.steps):
            train_offline(
                self.algorithm,
                self.replays[0],
                run,
                steps=options.steps,
                evaluate=self.evaluate,
                more=options.online_steps > 0,
                **shared,
            )
        if self.stepper is None and self.plan is None:
            return
        train_online(
            self.player,
            self.played_into,
            self.stepper or Collector(self.plan, run.seeds, workers_of(self.options)),  # type: ignore[arg-type]  # one of them is there
            run,
            steps=total,
            start=options.steps if self.offline else None,
            evaluate=self._watched(run, options.steps, reporter) if self.offline else self.evaluate,
            **shared,
        )

    def _watched(self, run: Run, start: int, reporter: Reporter) -> Evaluate | None:
        """The evaluation, which says where a score has fallen below half of that at step `start`."""
        if self.evaluate is None:
            return None
        before = {run.seeds.index(line["seed"]): score_of(line) for line in run.evaluations() if line["step"] == start}

        def tell(seed_index: int, step: int, score: float) -> None:
            reporter.notice(
                f"warning: seed {run.seeds[seed_index]} has collapsed at step {step:,}: {score:.1f}, it began with "
                f"{before[seed_index]:.1f}"
            )

        return watched(self.evaluate, before, tell)


def load(
    path: str | Path,
    algorithm: str | type[Any] | None = None,
    *,
    step: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    networks: Networks | None = None,
    deterministic: bool = True,
) -> Actor | JointActor:
    """The policy of a run, as an `Actor` with NumPy in and out (a dict by agent for many agents).

    Args:
        path: The run directory.
        algorithm: Needed for a user's own algorithm: the class, or `module:Class`.
        step: Of the checkpoint; by default the last, or the last good one of a seed that stopped.
        seed: One of the run's seeds; by default the first.
        device: Where it runs.
        networks: Needed where the run was trained with a user's own modules.
        deterministic: The mode of a stochastic policy; else it is sampled.

    Raises RunError, CheckpointError or UserError, saying what is missing or what there is.
    """
    run = Run(path)
    chosen = _seed_of(run, seed)
    device = choose_device(device)
    built, spec, _ = restore(run, algorithm, step, chosen, device, networks)
    policy = built.policy(run.seeds.index(chosen), deterministic=deterministic)
    noise = generator(chosen, device=device)
    if isinstance(spec, JointSpec):
        return JointActor(policy, spec, device=device, generator=noise)
    return Actor(policy, spec, device=device, generator=noise)


def evaluate_run(
    path: str | Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    step: int | None = None,
    algorithm: str | type[Any] | None = None,
    env: EnvironmentSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    networks: Networks | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate every seed of a run: episode i is reset with `seed + i`.

    Returns what `herdbook eval --out` writes: run, algorithm, environment, references, and per seed its step, returns,
    lengths, mean, standard deviation and normalised score.
    """
    run = Run(path)
    device = choose_device(device)
    source = env if env is not None else environment_from_record(run.config.get("environment"))
    bound = whole_games(with_arguments(source, env_kwargs or {}) or source)
    recorded, trained_in = run.config.get("references"), run.config.get("environment")
    same = trained_in is not None and same_environment(env, env_kwargs or {}, spec_of_record(trained_in))
    references = ReferenceScores(**recorded) if recorded and same else None
    playing = play_options(options_of(run))
    results = []
    for index, each in enumerate(run.seeds):
        built, spec, at = restore(run, algorithm, step, each, device, networks)
        task = Task(data=None, spec=spec, environment=bound, references=references, play=playing)
        result = scores(built.policy(index), bound, episodes, seed, task, device)
        results.append({"seed": each, "step": at, **score_line(result, references)})
    return {
        "run": str(run.path),
        "algorithm": run.algorithm,
        "dataset": (run.config["dataset"] or {}).get("source"),
        "environment": environment_record(bound),
        "references": recorded if references is not None else None,
        "episodes": episodes,
        "eval_seed": seed,
        "time_limit": run.config.get("time_limit"),
        "seeds": results,
    }


def collect(
    policy: str | Path,
    *,
    out: str,
    episodes: int,
    seed: int = 0,
    env: EnvironmentSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    step: int | None = None,
    run_seed: int | None = None,
    deterministic: bool = True,
    noise: float = 0.0,
    algorithm: str | type[Any] | None = None,
    networks: Networks | None = None,
    data_dir: str | None = None,
    num_envs: int = EVALUATION_ENVIRONMENTS,
    device: str = "cpu",
) -> tuple[Data, Path]:
    """Play a run's policy, or `"random"`, and write the episodes as the Minari dataset `out`.

    Episode i is reset with `seed + i`. `noise` is that of a `NoisyPolicy`. Returns the episodes, which say who learned
    the policy, and where they are.

    Raises UserError, RunError, EnvironmentUnavailable, EnvironmentFailed, or DataError for an id that is taken.
    """
    device = choose_device(device)
    _refuse_taken(out, data_dir)  # before an hour of play, rather than after it
    learned_by: tuple[LearnedBy, ...] = ()
    if policy == "random":
        if env is None:
            raise UserError("expected env=, the environment to play in")
        source = with_arguments(env, env_kwargs or {})
        assert source is not None  # env is not
        task = random_task(source)
        player = random_policy(task.spec)
    else:
        run = Run(policy)
        chosen = _seed_of(run, run_seed)
        built, spec, at = restore(run, algorithm, step, chosen, device, networks)
        learned_by = (LearnedBy(algorithm=run.algorithm, step=at, seed=chosen),)
        own = env if env is not None else environment_from_record(run.config["environment"])
        task = Task(
            data=None,
            spec=spec,
            environment=with_arguments(own, env_kwargs or {}),
            references=None,
            play=play_options(options_of(run)),
        )
        player = built.policy(run.seeds.index(chosen), deterministic=deterministic)
    assert task.environment is not None
    if noise:
        if isinstance(task.spec, JointSpec):
            raise UserError(f"noise: expected 0 for many agents, got {noise}; deterministic=False explores")
        try:
            player = NoisyPolicy(player, task.spec.action_space, noise)
        except ValueError as error:
            raise UserError(f"noise: {error}") from error
    played = play(player, task.environment, episodes, seed, task, device, num_envs, state=True)
    played = replace(played, learned_by=learned_by)
    return played, write_any(played, out, data_dir)


def export_replay(
    path: str | Path,
    *,
    out: str,
    run_seed: int | None = None,
    algorithm: str | type[Any] | None = None,
    data_dir: str | None = None,
) -> tuple[Data, Path]:
    """Write what the replay of a run's last checkpoint holds, lane by lane, as the Minari dataset `out`.

    Steps are those of one seed, `run_seed`, by default the first. Returns the episodes and where they are.

    Raises UserError for a run without such a replay, RunError, or DataError for an id that is taken.
    """
    _refuse_taken(out, data_dir)
    episodes = replay_of(Run(path), run_seed, algorithm)
    return episodes, write_any(episodes, out, data_dir)


def replay_of(run: Run, seed: int | None = None, algorithm: str | type[Any] | None = None) -> Episodes:
    """What the replay of a run's last checkpoint holds of one of its seeds, by default the first.

    Raises UserError for a run without such a replay, RunError for one that cannot be read.
    """
    chosen_seed = _seed_of(run, seed)
    index = run.seeds.index(chosen_seed)
    state = run.checkpoints.load()
    spec = any_spec_from_state(state["spec"])
    _, chosen = _algorithm_of(run, algorithm)
    if run.config["dataset"] is not None or isinstance(spec, JointSpec) or getattr(chosen, "on_policy", False):
        raise UserError(
            f"{run.path}: expected a run of one agent that learned in an environment alone and keeps a replay, got one "
            f"of {run.algorithm}" + (" on a dataset" if run.config["dataset"] is not None else "")
        )
    config = config_from_values(config_class(chosen), state["config"])
    one = build_algorithm(chosen, config, spec, seeds=run.seeds, device="cpu").algorithms[index]
    kept = step_replay(spec, one, options_of(run), "cpu")
    try:
        kept.load_state_dict(run.checkpoints.load_replay(state)["replays"][index])
    except (CheckpointError, ValueError, KeyError) as error:
        raise RunError(f"{run.path}: its replay cannot be read: {error}") from error
    replay = kept.replay if isinstance(kept, PrioritisedReplay) else kept
    recorded = run.config["environment"]
    environment = None if ":" in recorded["id"] else spec_of_record(recorded)  # code is not named in data
    return replay.to_episodes(
        spec,
        environment=environment,
        source=f"replay of {run.path.name}",
        learned_by=(LearnedBy(algorithm=run.algorithm, step=int(state["step"]), seed=chosen_seed),),
    )


def _refuse_taken(out: str, data_dir: str | None) -> None:
    if (taken := minari_root(data_dir) / out).exists():
        raise DataError(f"{out} exists at {taken}; choose another id or version, or delete that folder")


def _seed_of(run: Run, seed: int | None) -> int:
    """One of a run's seeds, by default the first. Raises RunError for another."""
    chosen = run.seeds[0] if seed is None else seed
    if chosen not in run.seeds:
        raise RunError(f"{run.path}: there is no seed {chosen}; it has seeds {', '.join(map(str, run.seeds))}")
    return chosen


def restore(
    run: Run,
    algorithm: str | type[Any] | None,
    step: int | None,
    seed: int,
    device: str,
    networks: Networks | None,
) -> tuple[Any, Spec | JointSpec, int]:
    """The algorithm as it was at a checkpoint: the given one, or the last that is good for `seed`."""
    name, chosen = _algorithm_of(run, algorithm)
    check_networks(run, networks)
    state = run.checkpoints.load(step)
    if step is None and str(seed) in state["stopped"]:
        state = run.checkpoints.load(state["stopped"][str(seed)]["checkpoint"])
    at = int(state["step"])
    if state["algorithm"] != name:
        raise RunError(f"{run.checkpoints.path(at)}: expected a checkpoint of {name}, got one of {state['algorithm']}")
    spec = any_spec_from_state(state["spec"])
    config = config_from_values(config_class(chosen), state["config"])
    built = build_algorithm(
        chosen,
        config,
        spec,
        seeds=run.seeds,
        device=device,
        networks=networks,
        apart=options_of(run).online_steps > 0,
    )
    try:
        built.load_state_dict(state["state"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise RunError(f"{run.checkpoints.path(at)}: does not fit {name}: {error}") from error
    return built, spec, at


def _resolve(algorithm: str | type[Any] | Any) -> tuple[str, type[Any]]:
    """The name to record, and the class."""
    if isinstance(algorithm, str):
        return algorithm, algorithm_class(algorithm)
    if isinstance(algorithm, type) and not is_dataclass(algorithm):
        own = f"{algorithm.__module__}:{algorithm.__qualname__}"
        return next((name for name, target in ALGORITHMS.items() if target == own), own), algorithm
    name = getattr(algorithm, "algorithm", None)
    if is_dataclass(algorithm) and name in ALGORITHMS:
        return str(name), algorithm_class(str(name))
    raise UserError(
        f"expected the config of an algorithm in the catalogue, a name or a class, got {algorithm!r}; "
        "for your own algorithm: train(Mine, config=MineConfig(…), …)"
    )


def _algorithm_of(run: Run, algorithm: str | type[Any] | None) -> tuple[str, type[Any]]:
    """The algorithm of a run. Its name in config.json is only looked up in the catalogue, never imported."""
    if algorithm is None:
        if run.algorithm not in ALGORITHMS:
            raise UserError(
                f"{run.path}: its algorithm is code, {run.algorithm}; code that a run directory names is not imported: "
                f"give it again with --algorithm {run.algorithm} (algorithm= in Python) if you trust it"
            )
        return _resolve(run.algorithm)
    name, chosen = _resolve(algorithm)
    if isinstance(algorithm, str) and algorithm != run.algorithm and run.algorithm in ALGORITHMS:
        raise RunError(f"{run.path}: expected a run of {name}, got a run of {run.algorithm}")
    if not isinstance(algorithm, str) and run.algorithm in ALGORITHMS and name != run.algorithm:
        raise RunError(f"{run.path}: expected a run of {name}, got a run of {run.algorithm}")
    return run.algorithm, chosen


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")
