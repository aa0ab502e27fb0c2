"""Those who play beside the agents that learn: the policies of another run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from herdbook.core.joint.games import IllegalAction


class RunPlayer:
    """The policies of a run's checkpoint as players, each copy with a memory of its own.

    They are loaded where they first act, once in a process, so that a player can be sent to a worker.
    """

    def __init__(self, path: str | Path, step: int | None = None) -> None:
        """`step` is the checkpoint's, by default the last good one's.

        Raises RunError or UserError if there is no run of many agents at `path`, CheckpointError for another step.
        """
        self.path = str(path)
        self.step = _policies(self.path, step)[-1]
        self._actor: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "step": self.step, "_actor": None}

    def move(self, folder: Path) -> None:
        """Copy what is needed of the run to `folder`, and play from there: the run itself may go on, or be deleted."""
        from herdbook.core.runs import Run

        run = Run(self.path)
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(run.path / "config.json", folder)
        source = run.checkpoints.path(self.step)
        shutil.copytree(source, folder / "checkpoints" / source.name)
        self.path = str(folder)

    def reset(self) -> None:
        """A new episode begins."""
        self._loaded().reset()

    def act(self, observations: Mapping[str, Any]) -> dict[str, Any]:
        """Actions of these agents, by name. Raises IllegalAction for those whom the run has no policy of."""
        actor = self._loaded()
        if missing := [agent for agent in observations if agent not in actor.spec.index]:
            raise IllegalAction(
                f"{self.path}: expected a run of {', '.join(missing)}, who do not learn here; "
                f"it has policies of {', '.join(actor.spec.agents)}"
            )
        actions: dict[str, Any] = actor.act(observations)
        return actions

    def _loaded(self) -> Any:
        if self._actor is None:
            from herdbook.core.joint.actor import JointActor

            policy, spec, _ = _policies(self.path, self.step)
            self._actor = JointActor(policy, spec)
        return self._actor


@lru_cache(maxsize=8)
def _policies(path: str, step: int | None) -> tuple[Any, Any, int]:
    """Greedy policies of a run's first seed, their spec, and the step that they are of."""
    from herdbook.core.joint.types import JointSpec
    from herdbook.core.runs import Run
    from herdbook.experiments.catalogue import UserError
    from herdbook.experiments.train import restore

    run = Run(path)
    built, spec, at = restore(run, None, step, run.seeds[0], "cpu", None)
    if not isinstance(spec, JointSpec):
        raise UserError(f"{path}: expected a run of many agents, got one of a single agent")
    return built.policy(0), spec, at
