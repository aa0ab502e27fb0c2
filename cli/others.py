"""Those who play beside the agents that learn: the policies of another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herdbook.core.joint_games import IllegalAction


class RunPlayer:
    """The policies of a run as players; loaded where they first act, so that it can be sent to a worker."""

    def __init__(self, path: str, step: int | None) -> None:
        """`step` is its checkpoint's. Raises RunError or UserError if there is no run of many agents at `path`."""
        self.path, self.step = path, step
        self._actor: Any = None
        self._loaded()
        self._actor = None  # a worker gets the path, and loads it again

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
            from herdbook.cli.api import load
            from herdbook.cli.catalogue import UserError
            from herdbook.core.joint_actor import JointActor

            self._actor = load(self.path, step=self.step)
            if not isinstance(self._actor, JointActor):
                raise UserError(f"{self.path}: expected a run of many agents, got one of a single agent")
        return self._actor
