"""Episodes of a trained or random policy, or the replay of a run, as a Minari dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from herdbook.core.checkpoint import CheckpointError
from herdbook.core.environments import EnvironmentSource
from herdbook.core.runs import Run, RunError
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.learned import LearnedBy
from herdbook.datasets.storage import check_new
from herdbook.experiments.build import build_algorithm, choose_device
from herdbook.experiments.catalogue import UserError, config_class, needs_of
from herdbook.experiments.domain import EVALUATION_ENVIRONMENTS, Data, Networks, Task
from herdbook.experiments.domains import domain_for, task_in
from herdbook.experiments.environments import own_environment, spec_of_record, with_arguments
from herdbook.experiments.opponents import opponents_of
from herdbook.experiments.records import config_from_values, options_of
from herdbook.experiments.restore import algorithm_of, restore, seed_of
from herdbook.experiments.rewards import named_reward
from herdbook.experiments.single_agent import reward_note


def collect(
    policy: str | Path,
    *,
    out: str,
    episodes: int,
    seed: int = 0,
    env: EnvironmentSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    step: int | None = None,
    run_seed: int | None = None,
    deterministic: bool = True,
    noise: float = 0.0,
    action_bounds: tuple[float, float] | None = None,
    algorithm: str | type[Any] | None = None,
    networks: Networks | None = None,
    data_dir: str | None = None,
    num_envs: int = EVALUATION_ENVIRONMENTS,
    device: str = "cpu",
) -> tuple[Data, Path]:
    """Play a run's policy, or `"random"`, and write the episodes as the Minari dataset `out`.

    Episode i is reset with `seed + i`, and cut off after `max_steps` steps (None: as many as in the run). `env` that
    names the run's own environment keeps its arguments, time limit and wrappers; `env_kwargs` replace single arguments.
    `noise` is that of a `NoisyPolicy`. `action_bounds` are those of a random policy's actions, where the environment
    has none. Returns the episodes, which say who learned the policy, and where they are.

    Raises UserError, RunError, EnvironmentUnavailable, EnvironmentFailed, or DataError for an id that is taken.
    """
    device = choose_device(device)
    check_new(out, data_dir)
    learned_by: tuple[LearnedBy, ...] = ()
    if policy == "random":
        if env is None:
            raise UserError("expected env=, the environment to play in")
        source = with_arguments(env, env_kwargs or {})
        assert source is not None
        task = replace(task_in(source), max_steps=max_steps)
        task = replace(task, spec=task.domain.bounded(task.spec, action_bounds))
        player = task.domain.random_policy(task.spec)
    else:
        run = Run(policy)
        chosen = seed_of(run, run_seed)
        restored = restore(run, algorithm, step, chosen, device, networks)
        learned_by = (LearnedBy(algorithm=run.algorithm, step=restored.step, seed=chosen),)
        task = Task(
            domain=restored.domain,
            spec=restored.spec,
            environment=own_environment(run.config["environment"], env, env_kwargs),
            opponents=opponents_of(options_of(run)),
            max_steps=max_steps or options_of(run).max_steps,
        )
        player = restored.policy(deterministic=deterministic)
    task.domain.check_storable(task)  # before an hour of play
    if noise:
        player = task.domain.noisy_policy(player, task.spec, noise)
    played = task.domain.play(task, player, episodes, seed, device, num_envs)
    played = replace(played, learned_by=learned_by)
    return played, task.domain.write(played, out, data_dir)


def export_replay(
    path: str | Path,
    *,
    out: str,
    run_seed: int | None = None,
    algorithm: str | type[Any] | None = None,
    data_dir: str | None = None,
) -> tuple[Data, Path]:
    """Write the replay of a run's last checkpoint, lane by lane, as the Minari dataset `out`.

    Steps are those of one seed, `run_seed`, by default the first. Returns the episodes and where they are.

    Raises UserError for a run without such a replay, RunError, or DataError for an id that is taken.
    """
    check_new(out, data_dir)
    run = Run(path)
    episodes = replay_of(run, run_seed, algorithm)
    domain = domain_for(needs_of(algorithm_of(run, algorithm)[1]))
    return episodes, domain.write(episodes, out, data_dir)


def replay_of(run: Run, seed: int | None = None, algorithm: str | type[Any] | None = None) -> Episodes:
    """The steps in the replay of a run's last checkpoint, for one of its seeds, by default the first.

    Rewards that the run has learned from in place of the environment's are recorded in `transforms`.

    Raises UserError for a run without such a replay, RunError for one that cannot be read.
    """
    chosen_seed = seed_of(run, seed)
    index = run.seeds.index(chosen_seed)
    state = run.checkpoints.load()
    _, chosen = algorithm_of(run, algorithm)
    needs = needs_of(chosen)
    domain, has_data = domain_for(needs), run.config["dataset"] is not None
    config = config_from_values(config_class(chosen), state["config"])
    if needs.interaction != "steps" or not needs.plays(has_data, config.online):
        raise UserError(
            f"{run.path}: expected a run of one agent that learned in an environment and keeps a replay, got one "
            f"of {run.algorithm}" + (" on a dataset" if has_data else "")
        )
    spec = domain.spec_from_state(state["spec"])
    built = build_algorithm(chosen, config, spec, seeds=run.seeds, device="cpu", plays=True)
    task = Task(domain=domain, spec=spec)
    options = options_of(run)
    kept = domain.empty_replays(task, [built.algorithms[index]], options, "cpu")[0]
    try:
        kept.load_state_dict(run.checkpoints.load_replay(state)["replays"][index])
    except (CheckpointError, ValueError, KeyError) as error:
        raise RunError(f"{run.path}: its replay cannot be read: {error}") from error
    recorded = run.config["environment"]
    environment = None if ":" in recorded["id"] else spec_of_record(recorded)  # a dataset does not name code
    episodes: Episodes = kept.to_episodes(
        spec,
        environment=environment,
        source=f"replay of {run.path.name}",
        learned_by=(LearnedBy(algorithm=run.algorithm, step=int(state["step"]), seed=chosen_seed),),
    )
    if options.reward is not None:
        episodes = episodes.with_rewards(episodes.rewards, reward_note(named_reward(options.reward).unshaped()))
    return episodes
