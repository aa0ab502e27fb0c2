"""The expert of a run: the policy of another run, the scripted controller of a recipe, or a policy of the user."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herdbook.core.registry import cause
from herdbook.core.runs import Run
from herdbook.core.spaces import alike
from herdbook.core.types import Policy
from herdbook.datasets.recipes.control import Controller
from herdbook.datasets.recipes.registry import RECIPES, resolve
from herdbook.datasets.recipes.training import Training
from herdbook.experiments.catalogue import UserError, import_name, nearest, needs_of
from herdbook.experiments.domain import Task
from herdbook.experiments.records import EXPERT, is_code, is_run
from herdbook.experiments.restore import copy_checkpoint, restore


@dataclass(frozen=True, kw_only=True)
class Expert:
    """An expert's policy and, if it is that of a run, the run and the step of its checkpoint."""

    policy: Policy
    run: Run | None = None
    step: int = 0

    def keep(self, run: Run) -> None:
        """Copy the checkpoint of an expert into the directory of the run that asks it, unless it is there."""
        if self.run is not None and not (run.path / EXPERT).is_dir():
            copy_checkpoint(self.run, self.step, run.path / EXPERT)


def expert_name(expert: str | Path | Policy) -> str:
    """The name of an expert in the options of a run: `python:Name` for a policy, which cannot be found by it."""
    return str(expert) if isinstance(expert, (str, Path)) else f"python:{type(expert).__qualname__}"


def check_expert(algorithm: type[Any], name: str | None) -> None:
    """Raise UserError if an algorithm asks an expert and none is named, or none is known by that name.

    It imports and loads nothing.
    """
    wanted = needs_of(algorithm).expert
    if name is None and wanted:
        raise UserError(f"{algorithm.__name__} asks an expert: give --expert (expert= in Python), {_expected()}")
    if name is None:
        return
    if not wanted:
        raise UserError(f"expert: expected none, {algorithm.__name__} asks no expert; got {name}")
    if not (is_code(name) or is_run(name) or resolve(name)):
        raise UserError(f"expert: expected {_expected()}; got {name!r}{nearest(name, _scripted())}")


def find_expert(name: str, given: Policy | None, task: Task, device: str) -> Expert:
    """The expert that `check_expert` has accepted; `given` is the user's own policy, which `name` only describes.

    Raises UserError for an expert of other spaces, a recipe without a scripted controller, and code that fails;
    RunError or CheckpointError for a run that cannot be read.
    """
    if given is not None:
        return Expert(policy=given)
    if is_run(name):
        run = Run(name)
        restored = restore(run, None, None, run.seeds[0], device, None)
        if restored.domain is not task.domain:
            raise UserError(f"expert: expected a run of {task.domain.title}, {name} is one of {restored.domain.title}")
        _check_spaces(name, restored.spec, task.spec)
        return Expert(policy=restored.policy(), run=run, step=restored.step)
    if is_code(name):
        return Expert(policy=_own(name))
    return Expert(policy=_controller(name, task))


def expert_again(run: Run, name: str | None, given: str | Path | Policy | None) -> Policy | None:
    """The user's own policy, with which the run `name`s its expert goes on; None where the name is enough.

    Raises UserError unless code is given again, and for any other expert than that of the run.
    """
    if name is None or not is_code(name):
        if given is not None:
            raise UserError(f"expert: expected none, {run.path} goes on with its own; got {expert_name(given)}")
        return None
    if given is None:
        raise UserError(
            f"{run.path}: its expert is code, {name}; code that a run directory names is not imported: give it again "
            f"with --expert {name} (expert= in Python) if you trust it"
        )
    if not isinstance(given, (str, Path)):
        return given
    if str(given) != name:
        raise UserError(f"expert: expected the expert of {run.path}, {name}, got {given}")
    return None


def _own(name: str) -> Policy:
    try:
        found = import_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"expert: {name} cannot be imported: {error}") from error
    if isinstance(found, Policy) and not isinstance(found, type):
        return found
    if not callable(found):
        raise UserError(f"expert: expected {name} as a callable that returns a policy, got {type(found).__name__}")
    try:
        made = found()
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"expert: {name} raised {cause(error)}") from error
    if not isinstance(made, Policy):
        raise UserError(
            f"expert: expected a policy from {name} (initial, __call__ and distribution, as core/types.py says), "
            f"got {type(made).__name__}"
        )
    return made


def _controller(name: str, task: Task) -> Policy:
    """The controller of a recipe that takes the fewest random actions, without any."""
    recipe = resolve(name)
    assert recipe is not None  # `check_expert` knows it
    if isinstance(recipe.behaviours, Training):
        raise UserError(
            f"expert: expected a recipe with a scripted controller ({', '.join(_scripted())}), {name} is trained; "
            "train it, and give the run"
        )
    _check_spaces(name, task.domain.environment_spec(recipe.environment, task.spec.observation_keys, {}), task.spec)
    policies = [behaviour.policy for behaviour in recipe.behaviours()]
    scripted = [policy for policy in policies if isinstance(policy, Controller)]
    if scripted:
        return replace(min(scripted, key=lambda policy: policy.random_fraction), random_fraction=0.0)
    return policies[-1]


def _check_spaces(name: str, own: Any, spec: Any) -> None:
    for part in ("observation_space", "action_space"):
        theirs, ours = getattr(own, part), getattr(spec, part)
        if not alike(theirs, ours):
            raise UserError(f"expert: expected the {part} {ours} of the task, {name} has {theirs}")
    if own.observation_keys != spec.observation_keys:
        raise UserError(
            f"expert: expected the observation_keys {spec.observation_keys} of the task, {name} has "
            f"{own.observation_keys}"
        )


def _scripted() -> list[str]:
    return [recipe.name for recipe in RECIPES.values() if recipe.training is None]


def _expected() -> str:
    return f"the directory of a run, a recipe with a scripted controller ({', '.join(_scripted())}) or module:callable"
