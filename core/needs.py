"""What an algorithm declares about itself, read before anything is loaded, built or run.

class Mine:
    needs: ClassVar[Needs] = Needs(data=True, actions="box")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Wanted = bool | Literal["optional"]
ActionKind = Literal["box", "discrete", "any"]
"""Which actions an algorithm handles."""
Agents = Literal["one", "many"]
Interaction = Literal["steps", "rollouts", "episodes"]
"""How a policy plays while it learns: step by step in the learner's process, into a replay; in rollouts of fixed length
in that process, each learned from once; or in whole episodes, in worker processes at a fixed lag, into a replay."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an algorithm learns from, for whom, and how it plays.

    Raises ValueError for declarations that contradict each other.
    """

    data: Wanted = False
    """It learns from a dataset. If it also plays, the data are its demonstrations: the argument `demonstrations`."""
    environment: Wanted = False
    """It plays while it learns. Both "optional": from a dataset if one is given, else in an environment."""
    agents: Agents = "one"
    actions: ActionKind = "any"
    interaction: Interaction = "steps"
    state: bool = False
    """It reads the global state of many agents, so that the replay stores it."""
    num_envs: int = 1
    """Environments that each seed steps side by side, unless the user says otherwise."""
    max_envs: int | None = None
    """Their largest number; None: any."""
    seeds_together: bool = True
    """Several seeds can train as one program."""
    follows: bool = False
    """Its attribute `follows` takes in every played step once, as the replay does (None: no statistics are kept)."""
    acting: tuple[str, ...] = ()
    """The networks that its policies read, which are sent to worker processes."""
    goes_online: bool = False
    """It has a method `go_online()`, called once where fine-tuning in an environment begins."""
    online_noise: float = 0.0
    """Standard deviation of the noise on Box actions in fine-tuning, in units of half their range, for a policy that is
    deterministic."""

    def __post_init__(self) -> None:
        for name in ("data", "environment"):
            if getattr(self, name) not in (True, False, "optional"):
                raise ValueError(f"Needs: expected {name} as True, False or 'optional', got {getattr(self, name)!r}")
        if not self.data and not self.environment:
            raise ValueError("Needs: expected data=True, environment=True or both; got neither")
        if self.environment == "optional" and self.data != "optional":
            raise ValueError(f"Needs: expected data='optional' beside environment='optional', got data={self.data!r}")
        for name, choices in (
            ("agents", ("one", "many")),
            ("actions", ("box", "discrete", "any")),
            ("interaction", ("steps", "rollouts", "episodes")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"Needs: expected {name} among {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.num_envs < 1 or (self.max_envs is not None and self.max_envs < self.num_envs):
            raise ValueError(f"Needs: expected 1 <= num_envs <= max_envs, got {self.num_envs} and {self.max_envs}")
        if self.environment and self.interaction == "episodes" and not self.acting:
            raise ValueError("Needs: expected acting=(…), the networks that play whole episodes; got none")

    @property
    def on_policy(self) -> bool:
        """Each step is learned from once, by the policy that took it."""
        return self.interaction == "rollouts"

    def plays(self, has_data: bool) -> bool:
        """Whether it steps environments while it learns, in a run with or without a dataset."""
        return self.environment is True or (self.environment == "optional" and not has_data)

    def demonstrates(self, has_data: bool) -> bool:
        """Whether the dataset of a run is demonstrations beside an environment."""
        return has_data and bool(self.data) and self.environment is True
