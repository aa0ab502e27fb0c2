"""Training by name: `train` a new run, or `resume` one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from herdbook.core.book import Evaluate
from herdbook.core.config import Config, flat_fields
from herdbook.core.environments import EnvironmentSource
from herdbook.core.fine_tuning import score_of, watched
from herdbook.core.logging import Reporter, WandbFailed, require_wandb
from herdbook.core.loop import Cadence, train_offline, train_online
from herdbook.core.runs import (
    Run,
    RunError,
    check_length,
    create_run,
    locked,
    next_free_directory,
    provenance,
    refuse_existing_run,
)
from herdbook.core.threads import default_threads, keep_threads, multiplications_of, usable_cores
from herdbook.core.types import Policy
from herdbook.experiments.build import build_algorithm, choose_device
from herdbook.experiments.catalogue import ALGORITHMS, UserError, config_class, nearest, needs_of
from herdbook.experiments.domain import Networks, Task
from herdbook.experiments.environments import (
    environment_from_record,
    environment_record,
    own_environment,
    same_record,
)
from herdbook.experiments.experts import check_expert, expert_again, expert_name, find_expert
from herdbook.experiments.opponents import keep_opponents
from herdbook.experiments.options import RunOptions, as_words, literal_pairs
from herdbook.experiments.records import (
    absolute,
    build_config,
    change_record,
    check_networks,
    check_reserved,
    config_from_values,
    config_values,
    differences,
    merge,
    options_of,
    rates_at_start,
    with_length,
    with_rates,
    without_schedules,
)
from herdbook.experiments.restore import algorithm_of, resolve
from herdbook.experiments.rewards import keep_reward, named_reward, remove_rewards, rewards_written, write_rewards
from herdbook.experiments.settings import Setting
from herdbook.experiments.tasks import (
    Named,
    check_dataset,
    check_task,
    dataset_record,
    known_model,
    load_task,
    make_evaluation,
    settings_of,
    trusted_task,
    try_named_environment,
)

_FINE_TUNING = ("num_envs", *(f.name for f in fields(RunOptions) if f.metadata["group"] == "fine_tuning"))
_RUN_FIELDS = tuple(f.name for f in fields(RunOptions))


def train(
    algorithm: str | type[Any] | Any,
    *,
    dataset: Named | None = None,
    env: EnvironmentSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    config: Any = None,
    networks: Networks | None = None,
    expert: str | Path | Policy | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Train on a dataset, or in an environment, and return the run.

    Args:
        algorithm: A config (`CQLConfig(alpha=10)`), a name (`"cql"`, `"module:Class"`) or a class. The settings of the
            task apply only where no config is given; beside a config, a notice names those that say otherwise.
        dataset: A name or path for `load_dataset`, `Episodes` or `JointEpisodes`.
        env: Environment to learn in, or to evaluate in: an id, `module:callable`, or a callable.
        env_kwargs: Keyword arguments of the environment.
        config: The config, if `algorithm` is a name or a class.
        networks: The user's own modules, by the names that the algorithm gives them.
        expert: For an algorithm that asks an expert: a run, a recipe, `module:callable`, or a policy.
        quiet: Show no progress.
        options: Fields of `RunOptions` (`steps=`, `seeds=`, `run_dir=`, …) and, if no config is given, fields of the
            algorithm's config.

    Raises:
        UserError, DataError, RunError, EnvironmentUnavailable: An argument is wrong, or something named is missing.
        RunFailed: No seed has a finite loss any more, or the disk is full.
    """
    run_options: dict[str, Any] = {"workers": 0}  # a spawned process would import the caller's script
    run_options |= {name: value for name, value in options.items() if name in _RUN_FIELDS}
    values = {name: value for name, value in options.items() if name not in _RUN_FIELDS}
    name, chosen = resolve(algorithm)
    if is_dataclass(algorithm) and not isinstance(algorithm, type):
        config = algorithm
    if config is not None and values:
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
    for path in ("run_dir", "data_dir", "others", "reward"):
        if run_options.get(path) is not None:
            run_options[path] = str(run_options[path])
    if dataset is not None:
        run_options["dataset"] = str(dataset) if isinstance(dataset, (str, Path)) else dataset.source
    if isinstance(env, str):
        run_options["env"] = env
    if env_kwargs:
        run_options["env_kwargs"] = as_words(env_kwargs)
    given: dict[str, Any] = {"dataset": dataset, "env": None if isinstance(env, str) else env}
    if expert is not None:
        run_options["expert"] = expert_name(expert)
    asked = build_config(config_class(chosen), values) if config is None else config
    check_start(chosen, asked, RunOptions(**run_options), **given)  # before a dataset is fetched
    applied: list[Setting] | None = None
    if config is None:
        applied = settings_of(
            name,
            chosen,
            dataset=dataset,
            data_dir=run_options.get("data_dir"),
            env=env,
            env_kwargs=env_kwargs or {},
            offline=values.get("online") is False,
        )
        values = {key: value for row in applied for key, value in row.config.items()} | values
        run_options = {key: value for row in applied for key, value in row.run.items()} | run_options
        config = build_config(config_class(chosen), values)
    given |= {"networks": networks, "applied": applied, "quiet": quiet}
    given["expert"] = None if isinstance(expert, (str, Path)) else expert
    return start(name, chosen, config, RunOptions(**run_options), **given)


def check_start(
    algorithm: type[Any],
    config: Config,
    options: RunOptions,
    *,
    dataset: Named | None = None,
    env: EnvironmentSource | None = None,
) -> None:
    """Raise for what can be known to be wrong before a dataset is fetched or made, or a run directory is made."""
    check_run(options)
    if options.run_dir is not None:
        refuse_existing_run(options.run_dir)
    check_expert(algorithm, options.expert)
    named, _ = check_task(algorithm, config, options, dataset, env)
    if options.reward is not None:
        named_reward(options.reward)
    if named is not None:
        try_named_environment(algorithm, options, env)


def check_run(options: RunOptions) -> None:
    """Raise UserError for a device that is not there, or if Weights & Biases is wanted and missing."""
    choose_device(options.device)
    if options.wandb is not None:
        try:
            require_wandb()
        except ImportError as error:
            raise UserError(str(error)) from error


@keep_threads()
def start(
    name: str,
    algorithm: type[Any],
    config: Config,
    options: RunOptions,
    *,
    dataset: Named | None = None,
    env: EnvironmentSource | None = None,
    networks: Networks | None = None,
    expert: Policy | None = None,
    applied: Sequence[Setting] | None = None,
    quiet: bool = False,
) -> Run:
    """Begin a run. The run directory is made after everything else has been checked.

    applied: the settings of the task that the config and the options follow; None: both are the user's own.
    """
    check_reserved(type(config))
    needs = needs_of(algorithm)
    plays = needs.plays(dataset is not None or options.dataset is not None, config.online)
    if not options.online_steps:
        config = config.for_run(options.steps)
    options = absolute(options)
    if plays or options.online_steps:
        options = merge(options, num_envs=options.lanes(needs))
    device = choose_device(options.device)
    cadence = Cadence.of(options.total_steps, options.log_every, options.evaluate_every, options.checkpoint_every)
    path = Path(options.run_dir) if options.run_dir else None
    if path is not None:
        refuse_existing_run(path)
    task = load_task(algorithm, config, options, dataset, env)
    trainer = _Trainer(algorithm, config, options, task, device, networks, env is not None, expert)
    for row in _set_aside(name, algorithm, config, options, task) if applied is None else ():
        trainer.notices.append(f"settings that do not apply beside a config of your own: {row}")
    path = path or next_free_directory("runs", options.name or _slug(f"{name}-{task.source}"))
    run = create_run(
        path,
        {
            "algorithm": name,
            "config": config_values(config),
            "settings": [asdict(row) for row in applied or ()],
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
    for row in applied or ():
        trainer.notices.insert(0, f"settings: {row}")
    with locked(run.path):
        try:
            reporter = trainer.reporter(run, options.total_steps, quiet)
        except BaseException:
            (run.path / "config.json").unlink()  # nothing has begun; the same command may be given again
            raise
        trainer.keep_others(run)
        trainer.run(run, options, reporter)
        if needs.reward:
            write_rewards(run, algorithm, networks)
    return Run(run.path)


def _set_aside(name: str, algorithm: type[Any], config: Config, options: RunOptions, task: Task) -> Iterator[Setting]:
    """The settings of a task that differ from a config and options of the user's own."""
    known: dict[str, Any] = {"env_kwargs": literal_pairs(options.env_kwargs), "env": task.environment}
    given = {**vars(options), **{name: value for name, _, value in flat_fields(config)}}
    for row in settings_of(name, algorithm, dataset=task.data and task.data.given, data_dir=None, **known):
        if any(given[field] != value for field, value in row.values().items()):
            yield row


@keep_threads()
def resume(
    path: str | Path,
    *,
    steps: int | None = None,
    online_steps: int | None = None,
    algorithm: str | type[Any] | None = None,
    dataset: Named | None = None,
    env: EnvironmentSource | None = None,
    networks: Networks | None = None,
    expert: str | Path | Policy | None = None,
    device: str | None = None,
    data_dir: str | None = None,
    workers: int | None = 0,
    rates: Mapping[str, float] | None = None,
    fine_tuning: Mapping[str, Any] | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> tuple[Run, bool]:
    """Continue a run from its last checkpoint, bit for bit, or extend it to `steps` (fine-tuned runs: `online_steps`).

    In an extended run, schedules that lasted for the run (of a learning rate, for example) last for its new length.

    With `online_steps`, a finished offline run goes on in its environment; `fine_tuning` holds other options of
    `RunOptions` for that (`online_noise`, `num_envs`, …). `rates` are learning rates from here on, by the names of the
    config; config.json holds them, and their old values under `changes`.

    A user's own algorithm, environment, networks, expert and `Episodes` must be given again, because code that a run
    directory names is not imported. `workers` is that of `RunOptions`; None takes the number that the run began with.
    With `restart`, a run whose checkpoints are gone begins anew at step 0; its old lines are kept in files beside the
    new ones. Returns the run, and whether there was anything to do.

    Raises RunError if the dataset, the algorithm or the shapes differ from those of the run, or if its checkpoints are
    gone; CheckpointError if its last checkpoint is damaged, also for a finished run.
    """
    run = Run(path)
    options = options_of(run)
    _check_checkpoints(run, restart)
    last, begun = None if run.checkpoints.gone() else run.checkpoints.last(), options
    begins = online_steps is not None and not options.online_steps
    options = _extended(run, options, last, steps, online_steps, fine_tuning or {})
    if last is not None and options.total_steps == last:
        if rates:
            raise UserError(f"set: expected more steps beside it, {run.path} is finished at step {last}")
        _check_finished(run, algorithm, networks)
        return run, False
    _, chosen = algorithm_of(run, algorithm)
    check_networks(run, networks)
    values = rates_at_start(run) if restart else run.config["config"]
    config = begun_config = config_from_values(config_class(chosen), values)
    config = with_rates(config, rates or {})
    if begins:
        config = without_schedules(config, options.steps)
        options = merge(options, num_envs=options.lanes(needs_of(chosen)))
    options = merge(options, device=device, data_dir=data_dir, workers=workers)
    check_run(options)
    own_expert = expert_again(run, options.expert, expert)
    resolved = choose_device(options.device)
    with locked(run.path):
        task = load_task(chosen, config, options, dataset, _environment(run, options, env))
        check_dataset(run, task)
        _check_environment(run, task, given=env is not None)
        notices = [f"from step {last or 0:,} on: {text}" for text in differences(begun_config, config)]
        if options.steps != begun.steps:
            config, told = with_length(config, begun.steps, options.steps)
            notices += told
        trainer = _Trainer(chosen, config, options, task, resolved, networks, env is not None, own_expert)
        trainer.notices += notices
        reporter = trainer.reporter(run, options.total_steps, quiet)
        trainer.keep_others(run)  # a kill may have come before them
        remove_rewards(run)
        _record_changes(run, last or 0, begun, options, begun_config, config, restart)
        if restart:
            trainer.notices += [f"the lines of before are kept in {kept}" for kept in run.set_aside()]
        trainer.run(run, options, reporter)
        if needs_of(chosen).reward:
            write_rewards(run, chosen, networks)
    return Run(run.path), True


def _extended(
    run: Run,
    options: RunOptions,
    last: int | None,
    steps: int | None,
    online_steps: int | None,
    fine_tuning: Mapping[str, Any],
) -> RunOptions:
    """The options of a run that goes on to `steps`, or to `online_steps` of fine-tuning. Raises UserError if it can't.

    last: step of the last checkpoint, None without one.
    """
    if options.online_steps and steps is not None:
        raise UserError(f"steps: {run.path} is fine-tuned after {options.steps}; expected online_steps, got {steps}")
    if online_steps is not None and online_steps < 1:
        raise UserError(f"online_steps: expected 1 or more, got {online_steps}")
    begins = online_steps is not None and not options.online_steps
    if begins and (last is None or steps is not None or last < options.steps):
        raise UserError(
            f"online_steps: expected a finished run, {run.path} is at step {last or 0} of {steps or options.steps}; "
            f"finish it with `herdbook resume {run.path}`, then fine-tune it"
        )
    if fine_tuning and not begins:
        raise UserError(f"{next(iter(fine_tuning))}: expected it only where fine-tuning begins, with online_steps")
    extended = merge(options, steps=steps, online_steps=online_steps, **fine_tuning)
    if last is not None and extended.total_steps < last:
        name, before = ("online_steps", options.steps) if options.online_steps else ("steps", 0)
        raise UserError(
            f"{name}: expected at least {last - before}, where {run.path} is, got {extended.total_steps - before}"
        )
    return extended


def _check_finished(run: Run, algorithm: str | type[Any] | None, networks: Networks | None) -> None:
    """Check the files of a finished run, and write its learned rewards, if a kill came before them."""
    for name, size in run.checkpoints.verify_last()["files"].items():
        check_length(run.path / name, size)
    if algorithm is not None or run.algorithm in ALGORITHMS:
        _, chosen = algorithm_of(run, algorithm)
        if needs_of(chosen).reward and not rewards_written(run):
            with locked(run.path):
                write_rewards(run, chosen, networks)


def _record_changes(
    run: Run, step: int, begun: RunOptions, options: RunOptions, begun_config: Config, config: Config, restart: bool
) -> None:
    """Write to config.json in what a run that goes on at `step` differs from the run as it began."""
    record: dict[str, Any] = {"config": config_values(config), "changes": []} if restart else {}
    if options.total_steps != begun.total_steps:
        begins = options.online_steps and not begun.online_steps
        names = ("steps", "online_steps", *(_FINE_TUNING if begins else ()))
        record["run"] = {**run.options, **{name: getattr(options, name) for name in names}}
    if config != begun_config:
        before = [] if restart else run.config.get("changes", [])
        record["config"] = config_values(config)
        record["changes"] = [*before, change_record(step, begun_config, config)]
    if record:
        run.update_config(**record)


def _check_checkpoints(run: Run, restart: bool) -> None:
    """Raise RunError if the checkpoints of a run that has trained are gone, unless it restarts."""
    if not run.checkpoints.gone():
        if restart:
            raise UserError(
                f"restart: expected a run whose checkpoints are gone, {run.path} has one of step "
                f"{run.checkpoints.last()}; resume it without restart"
            )
        return
    step = max(run.logged(), run.checkpoints.last() or 0)
    if step > 0 and not restart:
        raise RunError(
            f"{run.path}: expected a checkpoint, since the run was at step {step}, got none in "
            f"{run.checkpoints.directory}; put them back, or begin anew with --restart (restart=True in Python), which "
            "keeps the old lines of the log"
        )


def _environment(run: Run, options: RunOptions, env: EnvironmentSource | None) -> EnvironmentSource | None:
    """The environment to go on in; None means that of the run's dataset. Raises for code that was not given again."""
    if env is None and options.env is not None:
        environment_from_record(environment_record(options.env))
    elif env is None and run.config["dataset"] is not None:
        return None
    return own_environment(run.config["environment"], env)


def _check_environment(run: Run, task: Task, given: bool) -> None:
    """Raise RunError if the environment is not the one that the run began with."""
    expected, found = run.config["environment"], environment_record(task.environment)
    own = None if task.data is None else environment_record(task.data.given.environment)
    if not given and not same_record(expected, own):
        environment_from_record(expected)  # raises if it is code
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
        config: Config,
        options: RunOptions,
        task: Task,
        device: str,
        networks: Networks | None,
        env_given: bool,
        expert: Policy | None,
    ) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        domain, needs = task.domain, needs_of(algorithm)
        self.options, self.device, self.task = options, device, task
        self.plays = needs.plays(task.data is not None, config.online)
        replay: Any = None if task.data is None else domain.dataset_replay(task, algorithm, options, device)
        self.expert = None if options.expert is None else find_expert(options.expert, expert, task, device)
        self.algorithm = build_algorithm(
            algorithm,
            config,
            task.spec,
            seeds=options.seeds,
            device=device,
            plays=self.plays or options.online_steps > 0,
            networks=networks,
            compile=options.compile,
            demonstrations=replay,
            mdp=known_model(task, env_given or options.env is not None) if needs.dynamics else None,
            expert=None if self.expert is None else self.expert.policy,
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
        self.notices = [*domain.cautions(task, config), *([] if notice is None else [notice])]
        self.replay, self.replays, self.player, self.collector = replay, list[Any](), self.algorithm, None
        if options.online_steps:
            self.player, self.replays = domain.fine_tuning(task, self.algorithm, replay, options, device)
        elif self.plays:
            self.replays = domain.empty_replays(task, self.algorithm.algorithms, options, device)
        if self.replays:
            trusted = trusted_task(task, env_given or task.data is None)
            self.collector = domain.collector(trusted, self.player.algorithms, options, device, networks)
        if options.threads is None:
            multiplications = multiplications_of(self.algorithm.state_dict(), config_values(config), len(options.seeds))
            threads = default_threads(
                cores=usable_cores(),
                workers=0 if self.collector is None else options.worker_processes(needs),
                multiplications=multiplications if device == "cpu" else 0,
            )
            torch.set_num_threads(min(threads, torch.get_num_threads()))  # which OMP_NUM_THREADS may limit
            self.notices.append(f"threads: {torch.get_num_threads()} (chosen from the cores, workers and networks)")
        self.extra = {"config": config_values(config), "spec": domain.spec_state(task.spec)}

    def keep_others(self, run: Run) -> None:
        """Copy into the run's directory what it needs of other runs: opponents, a learned reward, an expert."""
        keep_opponents(run, self.task.opponents)
        keep_reward(run, self.task.reward)
        if self.expert is not None:
            self.expert.keep(run)

    def reporter(self, run: Run, steps: int, quiet: bool) -> Reporter:
        """The reporter of a run up to step `steps`. Raises UserError if Weights & Biases does not start."""
        try:
            return Reporter(
                run.path, steps, run.seeds, wandb=self.options.wandb, config=run.config, quiet=quiet, tensorboard=True
            )
        except (ImportError, WandbFailed) as error:
            raise UserError(str(error)) from error

    def run(self, run: Run, options: RunOptions, reporter: Reporter) -> None:
        """Train to the steps of `options`. The caller has locked the directory."""
        total, recorded = options.total_steps, run.options
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
        at, fine_tuned = run.checkpoints.last(), options.online_steps > 0
        if not self.plays and (not fine_tuned or at is None or at < options.steps):
            train_offline(
                self.algorithm, self.replay, run, steps=options.steps, evaluate=self.evaluate, more=fine_tuned, **shared
            )
        if self.collector is None:
            return
        train_online(
            self.player,
            self.replays,
            self.collector,
            run,
            steps=total,
            start=options.steps if fine_tuned else None,
            evaluate=self._watched(run, options.steps, reporter) if fine_tuned else self.evaluate,
            **shared,
        )

    def _watched(self, run: Run, start: int, reporter: Reporter) -> Evaluate | None:
        """The evaluation, with a warning when a seed's score falls below half of its score at step `start`."""
        if self.evaluate is None:
            return None
        before = {run.seeds.index(line["seed"]): score_of(line) for line in run.evaluations() if line["step"] == start}

        def tell(seed_index: int, step: int, score: float) -> None:
            reporter.notice(
                f"warning: seed {run.seeds[seed_index]} has collapsed at step {step:,}: {score:.1f}, it began with "
                f"{before[seed_index]:.1f}"
            )

        return watched(self.evaluate, before, tell)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")
