"""Settings per task: changes of an algorithm's defaults, with their sources.

Applied when an algorithm is named (on the command line, or as a string in Python), before the user's own flags;
printed, and recorded in the run's config.json. A config object is taken as it is given.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Overrides of config fields (`config`) and run fields (`run`) for the tasks that it names.

    A pattern is a whole id, in which `*` stands for any letters but a slash: `Hopper-v*` is each version of Hopper,
    `mpe2/*` each environment of that package.
    """

    algorithm: str
    patterns: tuple[str, ...]
    """Ids of environments: the one that a dataset was recorded in, or the one of the run."""
    source: str
    config: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    """Names of datasets, which need not record their environment: see `dataset_name`."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Config fields that follow a keyword argument of the environment, where that is given: a count."""
    unless: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments that make another task of the environment; with one of these values the row does not apply."""

    def __str__(self) -> str:
        values = ", ".join(f"{name} = {value}" for name, value in self.values().items())
        return f"{self.algorithm} on {' '.join((*self.patterns, *self.datasets))}: {values} ({self.source})"

    def values(self) -> dict[str, Any]:
        """The overrides of config fields and run fields."""
        return {**self.config, **self.run}


_FIXED_CARTPOLE = "herdbook/FixedHorizonCartPole-v0"
_GAMES: dict[str, Any] = {"patterns": ("ALE/*",), "unless": {"obs_type": "ram"}}  # pixels

# Later rows win.
SETTINGS: tuple[Setting, ...] = (
    Setting(
        algorithm="cql",
        patterns=("Pendulum-v*",),
        config={"hidden_sizes": (64, 64), "num_actions": 4},
        source="ours, for its cost on a small task (docs/results/offline.md)",
    ),
    Setting(
        algorithm="iql",
        patterns=tuple(f"AntMaze_{maze}-v*" for maze in ("UMaze", "Open", "Medium", "Large", "*_G", "*_GR")),
        datasets=("D4RL/antmaze/*", "d4rl:antmaze-*"),
        unless={"reward_type": "dense"},
        config={"expectile": 0.9, "beta": 10.0},
        run={"reward_transform": "minus_one"},
        source="Kostrikov et al. 2021, arXiv:2110.06169, appendix B",
    ),
    Setting(
        algorithm="iql",
        patterns=(*(f"AdroitHand{task}-v*" for task in ("Pen", "Door", "Hammer", "Relocate")), "FrankaKitchen-v*"),
        datasets=tuple(
            pattern
            for task in ("pen", "door", "hammer", "relocate", "kitchen")
            for pattern in (f"D4RL/{task}/*", f"d4rl:{task}-*")
        ),
        config={"beta": 0.5, "dropout": 0.1},
        source="Kostrikov et al. 2021, arXiv:2110.06169, appendix B: Adroit and kitchen",
    ),
    Setting(
        algorithm="iql",
        patterns=("HalfCheetah-v*", "Hopper-v*", "Walker2d-v*"),
        datasets=tuple(
            pattern
            for robot in ("halfcheetah", "hopper", "walker2d")
            for pattern in (f"mujoco/{robot}/*", f"rlzoo/{robot}/*", f"d4rl:{robot}-*")
        ),
        run={"reward_transform": "return_range"},
        source="D4RL locomotion in the authors' code, ikostrikov/implicit_q_learning",
    ),
    *(
        Setting(
            algorithm=name,
            patterns=("mpe2/*",),
            run={"time_limit": "terminal", "eval_episodes": 100},
            source="Papoudakis et al. 2021, arXiv:2006.07869: the limit of 25 steps ends the game; 100 test episodes",
        )
        for name in ("independent_q", "vdn", "qmix", "maddpg", "matd3", "matd3_bc", "qmix_cql")
    ),
    *(
        Setting(
            algorithm=name,
            patterns=("mpe2/*",),
            config={"horizon": 25},
            arguments={"horizon": "max_cycles"},
            source="ours: without the time, the end at 25 steps is noise in the values (docs/results/marl.md)",
        )
        for name in ("independent_q", "vdn", "qmix", "maddpg", "matd3", "matd3_bc", "qmix_cql")
    ),
    *(
        Setting(
            algorithm=name,
            patterns=("mpe2/*",),
            config={"hidden_sizes": (128, 128), "episodes_per_update": 0.5},
            source="ours, chosen with VDN on spread (docs/results/marl.md)",
        )
        for name in ("independent_q", "vdn")
    ),
    Setting(
        algorithm="independent_q",
        patterns=("mpe2/*",),
        config={"target_period": 1, "tau": 0.01},
        source="Papoudakis et al. 2021, arXiv:2006.07869: soft targets",
    ),
    Setting(
        algorithm="independent_q",
        patterns=("mpe2/simple_spread_v3", "mpe2/simple_speaker_listener_v4"),
        config={"reward_centring": True},
        unless={"terminate_on_success": True},
        source="Papoudakis et al. 2021 standardise rewards; all episodes of these tasks have equal lengths",
    ),
    *(
        Setting(
            algorithm=name,
            patterns=("mpe2/*",),
            config={"hidden_sizes": (128, 128), "batch_size": 512},
            source="ours: as wide as EPyMARL's, with half its batch for its cost (docs/results/marl.md)",
        )
        for name in ("maddpg", "matd3")
    ),
    Setting(
        algorithm="qmix",
        patterns=("mpe2/simple_speaker_listener_v4",),
        config={"hidden_sizes": (128, 128), "episodes_per_update": 0.5},
        source="ours: with 64 × 64 and one update an episode it learns more slowly (docs/results/marl.md)",
    ),
    Setting(
        algorithm="qmix_cql",
        patterns=("mpe2/*",),
        config={"hidden_sizes": (128, 128), "alpha": 50.0},
        source="ours: at α = 10 one seed of three diverged on medium data of spread (docs/results/marl_offline.md)",
    ),
    Setting(
        algorithm="matd3_bc",
        patterns=("mpe2/*",),
        config={
            "hidden_sizes": (128, 128),
            "batch_size": 256,
            "alpha": 1.0,
            "discount": 0.9,
            "actor_lr": 2e-3,
            "decay_lr": True,
        },
        source="ours: one setting for an expert's data and for half-way ones, on spread (docs/results/marl_offline.md)",
    ),
    *(
        Setting(
            algorithm=name,
            patterns=(task,),
            config=config,
            source="ours, chosen on a seed that is not reported (docs/results/online.md)",
        )
        for name, task, config in (
            (  # its replay keeps the failures of the beginning: without them a policy forgets what it avoids
                "dqn",
                "CartPole-v1",
                {"target_period": 1, "tau": 0.005, "decay_lr": True, "n_step": 5, "replay_steps": 200_000},
            ),
            (
                "a2c",
                "CartPole-v1",
                {
                    "lr": 7e-4,
                    "entropy_weight": 0.0,
                    "rollout_steps": 8,
                    "normalise_observations": True,
                    "scale_rewards": True,
                    "decay_lr": True,
                },
            ),
            ("ppo", "CartPole-v1", {"decay_lr": True}),
            ("ppo", "Acrobot-v1", {"normalise_observations": True, "decay_lr": True}),
            (
                "ppo",
                "Pendulum-v1",
                {"discount": 0.9, "lr": 1e-3, "normalise_observations": True, "scale_rewards": True, "decay_lr": True},
            ),
        )
    ),
    *(
        Setting(
            algorithm="dqn",
            patterns=(task,),
            config={
                "hidden_sizes": (256, 256),
                "batch_size": 128,
                "lr": 6e-4,
                "decay_lr": True,
                "epsilon_steps": 12_000,
                **more,
            },
            source="after RL Baselines3 Zoo's tuned DQN; the decay is ours, and the n-step returns of Acrobot",
        )
        for task, more in (("Acrobot-v1", {"epsilon_end": 0.1, "n_step": 5}), ("LunarLander-v3", {}))
    ),
    *(
        Setting(
            algorithm="iq_learn",
            patterns=patterns,
            config={"temperature": temperature},
            source="offline, the authors' code, Div99/IQ-Learn, scripts/run_offline.sh",
        )
        for patterns, temperature in ((("CartPole-v1", "LunarLander-v3"), 0.001), (("Acrobot-v1",), 0.01))
    ),
    *(
        Setting(
            algorithm="iq_learn",
            patterns=patterns,
            config={
                "online": True,
                "value_term": value_term,
                "chi2": "both",
                "temperature": temperature,
                "tau": 0.005,
                "hidden_sizes": (256, 256),
                "critic_lr": 3e-4,
                "actor_lr": 3e-5,
                "batch_size": 256,
            },
            source="online, the authors' code, Div99/IQ-Learn, scripts/run_mujoco.sh",
        )
        for patterns, value_term, temperature in (
            (("Hopper-v*", "Walker2d-v*"), "initial", 0.01),
            (("HalfCheetah-v*",), "all", 0.01),
            (("Ant-v*",), "all", 0.001),
        )
    ),
    Setting(
        algorithm="iq_learn",
        patterns=("Pendulum-v1",),
        config={
            "online": True,
            "value_term": "all",
            "chi2": "both",
            "temperature": 0.01,
            "tau": 0.005,
            "critic_lr": 3e-4,
            "actor_lr": 3e-4,
            "batch_size": 64,
            "warmup_steps": 500,
        },
        source="ours: docs/results/irl.md",
    ),
    Setting(
        algorithm="ls_iq",
        patterns=("Pendulum-v1",),
        config={
            "policy_term": "replay",
            "critics": 2,
            "discount": 0.95,
            "temperature": 0.1,
            "hidden_sizes": (64, 64),
            "critic_lr": 1e-3,
            "actor_lr": 1e-3,
            "batch_size": 64,
            "warmup_steps": 500,
            "actor_warmup_steps": 500,
        },
        source="ours: docs/results/irl.md",
    ),
    Setting(
        algorithm="dac",
        patterns=("Pendulum-v1",),
        config={"td3.hidden_sizes": (64, 64)},
        source="ours: docs/results/irl.md",
    ),
    *(
        Setting(
            algorithm=name,
            patterns=(task,),
            config={
                "ppo.discount": discount,
                "ppo.lr": 1e-3,
                "ppo.normalise_observations": True,
                "ppo.scale_rewards": True,
                **more,
            },
            source="ours: docs/results/irl.md",
        )
        for name, task, discount, more in (
            ("gail", "Pendulum-v1", 0.9, {}),
            (
                "airl",
                "Pendulum-v1",
                0.9,
                {"ppo.decay_lr": True, "batch_size": 256, "discriminator_updates": 40, "old_rollouts": 0},
            ),
            (
                "gail",
                _FIXED_CARTPOLE,
                0.95,
                {
                    "ppo.decay_lr": True,
                    "ppo.normalise_observations": False,  # fallen poles spin so fast that the mean and std are theirs
                    "gradient_penalty": 1.0,
                    "discriminator_updates": 40,
                },
            ),
            ("airl", _FIXED_CARTPOLE, 0.95, {"ppo.decay_lr": True, "batch_size": 256}),
        )
    ),
    *(
        Setting(
            algorithm="ls_iq",
            patterns=patterns,
            config=config,
            source=f"the authors' launchers, robfiras/ls-iq, examples/01_LSIQ{more}",
        )
        for patterns, config, more in (
            (("Ant-v*", "HalfCheetah-v*", "Hopper-v*", "Walker2d-v*"), {"policy_term": "value"}, ""),
            (
                ("Humanoid-v*",),
                {"policy_term": "replay", "temperature": 0.1},
                ': those of one episode; with more episodes they have "value"',
            ),
        )
    ),
    *(
        Setting(
            algorithm=name,
            **_GAMES,
            config={"frame_stack": 4, "hidden_sizes": (512,), "batch_size": 32},
            source="Mnih et al. 2015, table 1: 4 frames, the convolutions, 512 units, batches of 32",
        )
        for name in ("dqn", "discrete_cql", "discrete_bcq", "bc")
    ),
    *(
        Setting(
            algorithm=name,
            **_GAMES,
            run={"reward_transform": "clip"},
            source="Mnih et al. 2015: rewards are clipped to learn from, returns are not",
        )
        for name in ("dqn", "discrete_cql", "discrete_bcq")
    ),
    Setting(
        algorithm="dqn",
        **_GAMES,
        config={
            "updates_per_step": 0.25,
            "target_period": 2_500,
            "epsilon_end": 0.01,
            "epsilon_steps": 250_000,
            "warmup_steps": 12_500,
            "replay_steps": 1_000_000,
        },
        source="Mnih et al. 2015 and, ε to 0.01, van Hasselt et al. 2016: an update every 4 steps, of 4 frames each; "
        "targets every 10,000 steps, as in their code (the paper: updates); 50,000 frames at random, ε over 1 million",
    ),
    Setting(
        algorithm="dqn",
        **_GAMES,
        config={"lr": 1e-4},
        source="Huang et al. 2022 (CleanRL): learning rate for Adam; Mnih et al. use RMSProp",
    ),
    Setting(
        algorithm="discrete_cql",
        **_GAMES,
        config={"lr": 5e-5, "adam_epsilon": 3.125e-4, "target_period": 2_000, "tau": 1.0},
        source="Agarwal et al. 2020, arXiv:1907.04543, Adam and targets of QR-DQN, on which Kumar et al. 2020 build: "
        "copies every 8,000 steps, of which 4 are one update",
    ),
    Setting(
        algorithm="discrete_bcq",
        **_GAMES,
        config={"lr": 6.25e-5, "adam_epsilon": 1.5e-4, "target_period": 8_000, "tau": 1.0},
        source="Fujimoto et al. 2019, arXiv:1910.01708, and the authors' code for Atari",
    ),
)


def settings_for(
    algorithm: str,
    *environments: str | None,
    dataset: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    offline: bool = False,
) -> list[Setting]:
    """The settings of an algorithm on a task.

    Args:
        algorithm: Its name.
        environments: Ids of the environment of the dataset and of the environment of the run.
        dataset: The name of the dataset, as `dataset_name` gives it.
        arguments: The keyword arguments of the environment.
        offline: The user turns the config's `online` off; rows that turn it on do not apply.
    """
    arguments = arguments or {}

    def applies(row: Setting) -> bool:
        if offline and row.config.get("online", False):
            return False
        if any(name in arguments and arguments[name] == value for name, value in row.unless.items()):
            return False
        named = any(_is(name, pattern) for name in environments for pattern in row.patterns)
        return named or any(_is(dataset, pattern) for pattern in row.datasets)

    return [_following(row, arguments) for row in SETTINGS if row.algorithm == algorithm and applies(row)]


def _is(name: str | None, pattern: str) -> bool:
    """True if the name has as many parts between slashes as the pattern, and each matches."""
    if name is None or name.count("/") != pattern.count("/"):
        return False
    return all(map(fnmatch.fnmatchcase, name.split("/"), pattern.split("/")))


def _following(row: Setting, arguments: Mapping[str, Any]) -> Setting:
    """The row with the fields that follow arguments of the environment."""
    asked = {name: arguments.get(argument) for name, argument in row.arguments.items()}
    given = {name: count for name, count in asked.items() if type(count) is int and count > 0}
    return replace(row, config={**row.config, **given}) if given else row
