"""Agents that play beside the learners with the policies of another run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from herdbook.core.joint.actor import JointActor
from herdbook.core.joint.games import IllegalAction
from herdbook.core.runs import Run
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.options import RunOptions
from herdbook.experiments.records import OTHERS
from herdbook.experiments.restore import Restored, copy_checkpoint, restore


class RunPlayer:
    """The greedy policies of a run's checkpoint. Each copy of a player has its own recurrent state.

    The policies are loaded when they first act, so that a player can be sent to a worker process.
    """

    def __init__(self, path: str | Path, step: int | None = None) -> None:
        """`step` is the step of the checkpoint, by default the last good one.

        Raises RunError or UserError if `path` is no run of many agents, CheckpointError if there is no such checkpoint.
        """
        self.path = str(path)
        self.step = _restored(self.path, step).step
        self._actor: JointActor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "step": self.step, "_actor": None}

    def move(self, folder: Path) -> None:
        """Copy the checkpoint to `folder` and play from there, since the run may go on or be deleted."""
        copy_checkpoint(Run(self.path), self.step, folder)
        self.path = str(folder)

    def reset(self) -> None:
        """A new episode begins."""
        self._loaded().reset()

    def act(self, observations: Mapping[str, Any]) -> dict[str, Any]:
        """Actions of these agents, by name. Raises IllegalAction if the run has no policy for one of them."""
        actor = self._loaded()
        if missing := [agent for agent in observations if agent not in actor.spec.index]:
            raise IllegalAction(
                f"{self.path}: expected a run of {', '.join(missing)}, who do not learn here; "
                f"it has policies of {', '.join(actor.spec.agents)}"
            )
        return actor.act(observations)

    def _loaded(self) -> JointActor:
        if self._actor is None:
            restored = _restored(self.path, self.step)
            self._actor = JointActor(restored.policy(), restored.spec)
        return self._actor


@lru_cache(maxsize=8)
def _restored(path: str, step: int | None) -> Restored:
    """The first seed of a run of many agents, loaded once per process."""
    run = Run(path)
    restored = restore(run, None, step, run.seeds[0], "cpu", None)
    if not restored.domain.has_opponents:
        raise UserError(f"{path}: expected a run of many agents, got one for {restored.domain.title}")
    return restored


def opponents_of(options: RunOptions) -> dict[str, Any]:
    """The agents that learn and the player of the others, for `Task.opponents`. Raises UserError or RunError."""
    if options.others == "random" and options.others_step is not None:
        raise UserError(f"others_step: expected --others, the run that has it, beside it; got {options.others_step}")
    if not options.learn:
        if options.others != "random":
            raise UserError("others: expected --learn beside it, which names the agents that learn; got none")
        return {}
    others = None if options.others == "random" else RunPlayer(options.others, options.others_step)
    return {"learners": options.learn, "others": others}


def keep_opponents(run: Run, opponents: Mapping[str, Any]) -> None:
    """Copy the policies of the opponents into the run's directory, unless they are there."""
    player = opponents.get("others")
    if player is None:
        return
    if not (run.path / OTHERS).is_dir():
        player.move(run.path / OTHERS)
    if run.options.get("others_step") != player.step:
        run.update_config(run={**run.options, "others_step": player.step})
