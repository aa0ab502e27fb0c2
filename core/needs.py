"""Requirements that an algorithm declares, read before anything is loaded, built or run.

class Mine:
    needs: ClassVar[Needs] = Needs(data=True, actions="box")
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Wanted = bool | Literal["optional"]
ActionKind = Literal["box", "discrete", "any"]
Agents = Literal["one", "many"]
Interaction = Literal["steps", "rollouts", "episodes"]
"""How a policy interacts while it learns: step by step in the learner's process, into a replay; in rollouts of fixed
length in that process, each used once; or in whole episodes, in worker processes at a fixed lag, into a replay."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The data, environments and actions that an algorithm learns from, and how it interacts.

    Raises ValueError if the declarations contradict each other.
    """

    data: Wanted = False  # learns from a dataset; with an environment too, the dataset is passed as `demonstrations`
    environment: Wanted = False  # interacts; "optional": only without a dataset or, with data=True, if `config.online`
    agents: Agents = "one"
    actions: ActionKind = "any"
    interaction: Interaction = "steps"
    state: bool = False  # reads the global state of many agents, so the replay must store it
    num_envs: int = 1  # default number of environments per seed
    max_envs: int | None = None  # largest number of environments per seed; None: unlimited
    seeds_together: bool = True  # several seeds can train as one program
    follows: bool = False  # its attribute `follows` receives every environment step once; None: no statistics are kept
    acting: tuple[str, ...] = ()  # networks that its policies read, whose parameters are sent to worker processes
    goes_online: bool = False  # its method `go_online()` is called once before fine-tuning in an environment
    preferences: bool = False  # learns from pairs of segments of the dataset, which is passed as `demonstrations`
    reward: bool = False  # learns a reward function, which its method `reward(seed_index)` returns
    dynamics: bool = False  # reads the transition probabilities of a tabular environment, passed as `mdp`
    policy: bool = True  # learns a policy, which its method `policy(seed_index)` returns; else nothing is evaluated
    expert: bool = False  # asks another policy for its actions, which is passed as `expert`
    online_noise: float = 0.0  # σ of the noise on a deterministic policy's Box actions in fine-tuning, per half range

    def __post_init__(self) -> None:
        for name in ("data", "environment"):
            value = getattr(self, name)
            if not isinstance(value, bool) and value != "optional":
                raise ValueError(f"Needs: expected {name} as True, False or 'optional', got {value!r}")
        if not self.data and not self.environment:
            raise ValueError("Needs: expected data=True, environment=True or both; got neither")
        if self.data == "optional" and not self.environment:
            raise ValueError("Needs: expected environment=True or 'optional' beside data='optional', got False")
        if self.environment == "optional" and not self.data:
            raise ValueError("Needs: expected data=True or 'optional' beside environment='optional', got data=False")
        for name, choices in (
            ("agents", ("one", "many")),
            ("actions", ("box", "discrete", "any")),
            ("interaction", ("steps", "rollouts", "episodes")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"Needs: expected {name} among {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.num_envs < 1 or (self.max_envs is not None and self.max_envs < self.num_envs):
            raise ValueError(f"Needs: expected 1 <= num_envs <= max_envs, got {self.num_envs} and {self.max_envs}")
        if self.interaction != "steps" and not self.environment:
            raise ValueError(f"Needs: expected environment=True beside interaction={self.interaction!r}, got False")
        if self.expert and (self.environment is not True or self.agents == "many"):
            raise ValueError("Needs: expected environment=True and one agent beside expert=True")
        if not isinstance(self.acting, tuple):
            raise ValueError(f"Needs: expected acting as a tuple of names, got {self.acting!r}")
        if self.preferences and (self.data is not True or self.environment):
            raise ValueError("Needs: expected data=True and no environment beside preferences=True")
        if not self.policy and (not self.reward or self.environment):
            raise ValueError("Needs: expected reward=True and no environment beside policy=False")
        if not 0 <= self.online_noise < math.inf:
            raise ValueError(f"Needs: expected online_noise >= 0 and finite, got {self.online_noise}")
        if self.dynamics and self.agents != "one":
            raise ValueError("Needs: expected agents='one' beside dynamics=True, got 'many'")
        if self.environment and self.interaction == "episodes" and not self.acting:
            raise ValueError("Needs: expected acting=(…), the networks that play whole episodes; got none")

    @property
    def demonstrations(self) -> bool:
        """True if its constructor takes the replay of the dataset, or None, as `demonstrations`."""
        beside = self.environment is True or (self.data is True and bool(self.environment))
        return bool(self.data) and (beside or self.preferences or self.dynamics)

    @property
    def on_policy(self) -> bool:
        """True if each step is used once, to update the policy that took it."""
        return self.interaction == "rollouts"

    def plays(self, has_data: bool, online: bool = False) -> bool:
        """True if it interacts while it learns, in a run with or without a dataset; `online` is that of its config."""
        if self.environment == "optional":
            return online if self.data is True else not has_data
        return bool(self.environment)
