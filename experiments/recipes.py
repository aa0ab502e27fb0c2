"""Training for recipes: `datasets.recipes` declares the policies, this module trains them and plays the episodes."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch

from herdbook.core.checkpoint import CheckpointError
from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.random import derive
from herdbook.core.runs import Run, RunError, provenance, to_json
from herdbook.core.threads import keep_threads
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.learned import LearnedBy
from herdbook.datasets.recipes.recipe import LANES, Recipe
from herdbook.datasets.recipes.training import Share, Training
from herdbook.evaluation.evaluate import evaluate
from herdbook.experiments.catalogue import UserError, algorithm_class, config_class, needs_of
from herdbook.experiments.collect import replay_of
from herdbook.experiments.options import RunOptions
from herdbook.experiments.records import build_config
from herdbook.experiments.restore import restore
from herdbook.experiments.train import resume, start

logger = logging.getLogger("herdbook")


@keep_threads()
def trained_episodes(recipe: Recipe, training: Training, folder: Path) -> list[Episodes]:
    """Train as the recipe says; returns the parts of its data, in order.

    The run is in `folder`; an interrupted one goes on from its last checkpoint. It uses one CPU thread, because the
    order of sums depends on the number of threads.

    Raises:
        DataError: The algorithm or its config is unknown, or a package is missing.
        EnvironmentUnavailable: The environment cannot be made.
        RunFailed: The losses are not finite, the environment keeps failing, or the disk is full.
    """
    torch.set_num_threads(1)
    try:
        run = _trained(recipe, training, folder)
        parts = [_played(recipe, training, run, number) for number in range(len(training.shares))]
        return [*parts, replay_of(run, algorithm=training.algorithm)] if training.replay else parts
    except EnvironmentUnavailable:
        raise
    except (UserError, ImportError, RunError, CheckpointError) as error:
        extra = f"; pip install 'herdbook[{recipe.extra}]' brings it" if recipe.extra and _not_installed(error) else ""
        raise DataError(f"{recipe.id} cannot be made: {error}{extra}") from error


def _not_installed(error: BaseException | None) -> bool:
    """True if an error or one of its causes is an ImportError."""
    return error is not None and (isinstance(error, ImportError) or _not_installed(error.__cause__))


def _trained(recipe: Recipe, training: Training, folder: Path) -> Run:
    """The finished run, continued if it was interrupted."""
    chosen = algorithm_class(training.algorithm)
    needs = needs_of(chosen)
    if needs.environment is not True or needs.data is True or needs.agents != "one":
        raise UserError(f"expected an algorithm of one agent that learns in an environment, got {training.algorithm}")
    config = build_config(config_class(chosen), training.config)
    path, note = folder / "run", folder / "recipe.json"
    declared = {
        **{name: getattr(training, name) for name in ("algorithm", "steps", "config", "num_envs", "checkpoint_every")},
        "environment": asdict(recipe.environment),
        "seed": recipe.seed,
        "versions": provenance()["versions"],
    }
    text = json.dumps(to_json(declared), sort_keys=True)
    if note.is_file() and note.read_text(encoding="utf-8") == text and (path / "config.json").is_file():
        try:
            return resume(path, algorithm=training.algorithm, env=recipe.environment)[0]
        except (RunError, CheckpointError, UserError) as error:
            logger.warning("%s is begun again: %s", recipe.id, error)
    else:
        logger.info(
            "%s: %s is trained for %s steps first, about %s on one core; interrupted, it goes on when asked for again",
            recipe.id,
            training.algorithm,
            f"{training.steps:,}",
            "a minute" if training.minutes <= 1 else f"{training.minutes:g} minutes",
        )
    shutil.rmtree(path, ignore_errors=True)
    note.write_text(text, encoding="utf-8")
    every = training.checkpoint_every
    options = RunOptions(
        steps=training.steps,
        seeds=(recipe.seed,),
        run_dir=str(path),
        device="cpu",
        threads=1,
        num_envs=training.num_envs,
        eval_episodes=0,
        checkpoint_every=every,
        keep=training.steps + 2,  # all of them
    )
    return start(training.algorithm, chosen, config, options, env=recipe.environment, applied=())


def _played(recipe: Recipe, training: Training, run: Run, number: int) -> Episodes:
    """The episodes of one share."""
    share: Share = training.shares[number]
    step = next(step for step in run.checkpoints.steps() if step >= training.step_of(share))
    restored = restore(run, training.algorithm, step, recipe.seed, "cpu", None)
    spec, at = restored.spec, restored.step
    policy = restored.policy(deterministic=share.deterministic)
    if share.noise:
        policy = restored.domain.noisy_policy(policy, spec, share.noise)
    seed = derive(recipe.seed, number) % 2**31  # some environments take a C int
    lanes = min(LANES, share.episodes)
    played = evaluate(policy, recipe.environment, share.episodes, seed, num_envs=lanes, spec=spec)
    said = {"algorithm": run.algorithm, "step": at, "noise": share.noise}
    return replace(
        played,
        episode_metadata=tuple({**metadata, **said} for metadata in played.episode_metadata),
        learned_by=(LearnedBy(algorithm=run.algorithm, step=at, seed=recipe.seed),),
    )
