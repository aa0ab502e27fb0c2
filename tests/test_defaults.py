"""Every default of every algorithm against its source, and the deviations against docs/algorithms.md.

A source is a paper or the authors' code, read by hand: nothing here is computed from our code, except where a config
says that its defaults are those of another one of ours.
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from herdbook.experiments.catalogue import ALGORITHMS, algorithm_class, config_class
from herdbook.online.ppo import PPOConfig
from herdbook.online.sac import SACConfig
from herdbook.online.td3 import TD3Config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "algorithms.md"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where defaults come from."""

    same: dict[str, Any] = field(default_factory=dict)
    """Fields whose default is the source's."""
    differs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Fields whose default is ours, and the source's value."""
    own: dict[str, Any] = field(default_factory=dict)
    """Fields of which the source says nothing: options of ours, which are off, and choices of ours."""


def of(*configs: str, without: set[str] = frozenset()) -> dict[str, Any]:
    """The defaults of other algorithms of ours; of the first one that has a field."""
    found: dict[str, Any] = {}
    for name in configs:
        found = {**{f.name: f.default for f in fields(config_class(algorithm_class(name)))}, **found}
    return {name: value for name, value in found.items() if name not in without}


UNSTACKED = {"frame_stack": 1}
OFFLINE = {"n_step": 1, "standardise_observations": False}
PLAIN = {"n_step": 1, "max_grad_norm": None, "decay_lr": False, "normalise_observations": False, "scale_rewards": False}
SWITCHED_OFF = {"normalise_observations": False, "scale_rewards": False}
SOFT = {"discount": 0.99, "tau": 0.005}
ALL_RATES = {"actor_lr": 3e-4, "critic_lr": 3e-4}
WIDE = {"hidden_sizes": (256, 256)}
TD3_NOISE = {"policy_noise": 0.2, "noise_clip": 0.5, "policy_delay": 2}
# EPyMARL (uoe-agents/epymarl), src/config/default.yaml and algs/{iql,vdn,qmix}.yaml: 5,000 episodes of 25 steps in MPE.
EPYMARL = {
    "discount": 0.99,
    "double_q": True,
    "batch_size": 32,
    "lr": 5e-4,
    "max_grad_norm": 10.0,
    "target_period": 200,
    "tau": 1.0,
    "hidden_sizes": (64, 64),
    "recurrent": False,
    "agent_id": True,
    "last_action": False,
    "reward_scaling": True,
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "warmup_episodes": 32,
    "episodes_per_update": 1.0,
    "replay_steps": 125_000,
}
EPYMARL_DIFFERS = {"epsilon_steps": (200_000, 50_000), "sharing": ("kind", "all")}

SOURCES: dict[str, Source] = {
    # CORL (tinkoff-ai/CORL), algorithms/offline/any_percent_bc.py
    "bc": Source(same={"batch_size": 256, "lr": 3e-4, **WIDE, "standardise_observations": True}, own=UNSTACKED),
    # sfujim/BCQ, continuous_BCQ/BCQ.py
    "bcq": Source(
        same={
            "perturbation": 0.05,
            "soft_minimum": 0.75,
            "kl_weight": 0.5,
            "num_target_actions": 10,
            "num_policy_actions": 100,
            "batch_size": 100,
            "lr": 1e-3,
            "hidden_sizes": (400, 300),
            "vae_hidden_sizes": (750, 750),
            **SOFT,
            **OFFLINE,
        }
    ),
    # sfujim/BCQ, discrete_BCQ: main.py (regular_parameters) and discrete_BCQ.py
    "discrete_bcq": Source(
        same={
            "threshold": 0.3,
            "logit_penalty": 1e-2,
            "target_period": 1,
            "batch_size": 64,
            "lr": 3e-4,
            "adam_epsilon": 1e-8,
            **WIDE,
            **SOFT,
            **OFFLINE,
        },
        own=UNSTACKED,
    ),
    # aviralkumar2907/CQL: README.md and d4rl/examples/cql_mujoco_new.py
    "cql": Source(
        same={
            "alpha": 5.0,
            "lagrange": False,
            "lagrange_lr": 3e-4,
            "num_actions": 10,
            "temperature": 1.0,
            "importance_sampling": True,
            "max_target_backup": False,
            "deterministic_backup": True,
            "initial_temperature": 1.0,
            "batch_size": 256,
            "actor_lr": 1e-4,
            "critic_lr": 3e-4,
            "hidden_sizes": (256, 256, 256),
            **SOFT,
            **OFFLINE,
        },
        differs={"lagrange_threshold": (10.0, 5.0)},
    ),
    # aviralkumar2907/CQL, atari: README.md and batch_rl/fixed_replay/configs/quantile.gin (4 steps are one update)
    "discrete_cql": Source(
        same={"alpha": 1.0, "discount": 0.99, **OFFLINE},
        differs={
            "target_period": (1, 2_000),
            "tau": (0.005, 1.0),
            "batch_size": (256, 32),
            "lr": (3e-4, 5e-5),
            "adam_epsilon": (1e-8, 3.125e-4),
            "hidden_sizes": ((256, 256), (512,)),
            "frame_stack": (1, 4),
        },
    ),
    # sfujim/TD3_BC: main.py and TD3_BC.py
    "td3_bc": Source(
        same={
            "alpha": 2.5,
            "batch_size": 256,
            "n_step": 1,
            "standardise_observations": True,
            **SOFT,
            **TD3_NOISE,
            **ALL_RATES,
            **WIDE,
        },
        own={"online_alpha": None},
    ),
    # ikostrikov/implicit_q_learning: configs/mujoco_config.py, learner.py and actor.py; the decay lasts for the run
    "iql": Source(
        same={
            "expectile": 0.7,
            "beta": 3.0,
            "max_weight": 100.0,
            "batch_size": 256,
            "value_lr": 3e-4,
            "actor_decay_updates": None,
            "dropout": 0.0,
            **SOFT,
            **ALL_RATES,
            **WIDE,
            **OFFLINE,
        }
    ),
    # Ross et al. 2011, section 3.1, for β; imitation 1.0.1, algorithms/dagger.py, for the steps of an iteration; BC
    "dagger": Source(
        same={"beta_steps": 1, "iteration_steps": 500, **of("bc", without={"frame_stack", "standardise_observations"})},
        own={"updates_per_step": 1.0, "replay_steps": 1_000_000},
    ),
    # Mnih et al. 2015, table 1 (steps of 4 frames); van Hasselt et al. 2016; Wang et al. 2016; Schaul et al. 2016
    "dqn": Source(
        same={
            "double_q": True,
            "dueling": False,
            "prioritised": False,
            "priority_exponent": 0.6,
            "importance_exponent": 0.4,
            "importance_updates": None,
            "discount": 0.99,
            "tau": 1.0,
            "epsilon_start": 1.0,
            **PLAIN,
            "max_grad_norm": 10.0,
        },
        differs={
            "frame_stack": (1, 4),
            "batch_size": (64, 32),
            "lr": (1e-3, 2.5e-4),
            "target_period": (200, 10_000),
            "hidden_sizes": ((128, 128), (512,)),
            "epsilon_end": (0.05, 0.1),
            "epsilon_steps": (10_000, 250_000),
            "warmup_steps": (1_000, 12_500),
            "updates_per_step": (0.5, 0.25),
            "replay_steps": (100_000, 1_000_000),
        },
        own={"parameter_noise": False, "decay_steps": None},
    ),
    # Lillicrap et al. 2016, section 7
    "ddpg": Source(
        same={"discount": 0.99, "updates_per_step": 1.0, "replay_steps": 1_000_000, **PLAIN},
        differs={
            "tau": (0.005, 0.001),
            "exploration_noise": (0.1, 0.2),
            "batch_size": (256, 64),
            "actor_lr": (3e-4, 1e-4),
            "critic_lr": (3e-4, 1e-3),
            "hidden_sizes": ((256, 256), (400, 300)),
        },
        own={"parameter_noise": None, "warmup_steps": 1_000, "decay_steps": None},
    ),
    # sfujim/TD3: main.py and TD3.py
    "td3": Source(
        same={
            "exploration_noise": 0.1,
            "batch_size": 256,
            "updates_per_step": 1.0,
            "replay_steps": 1_000_000,
            **SOFT,
            **TD3_NOISE,
            **ALL_RATES,
            **WIDE,
            **PLAIN,
        },
        differs={"warmup_steps": (1_000, 25_000)},
        own={"parameter_noise": None, "decay_steps": None},
    ),
    # Haarnoja et al. 2018, appendix D; rail-berkeley/softlearning, examples/development/variants.py for the warm-up
    "sac": Source(
        same={
            "initial_temperature": 1.0,
            "tune_temperature": True,
            "target_entropy": None,
            "batch_size": 256,
            "temperature_lr": 3e-4,
            "warmup_steps": 1_000,
            "updates_per_step": 1.0,
            "replay_steps": 1_000_000,
            **SOFT,
            **ALL_RATES,
            **WIDE,
            **PLAIN,
        },
        own={"decay_steps": None},
    ),
    # Christodoulou 2019, table of hyperparameters; hard copies every 8,000 steps
    "discrete_sac": Source(
        same={"discount": 0.99, "initial_temperature": 1.0, "tune_temperature": True, "batch_size": 64, **PLAIN},
        differs={
            "tau": (0.005, 1.0),
            "entropy_share": (0.3, 0.98),
            "actor_lr": (1e-3, 3e-4),
            "critic_lr": (1e-3, 3e-4),
            "temperature_lr": (1e-3, 3e-4),
            "hidden_sizes": ((128, 128), (512,)),
            "frame_stack": (1, 4),
            "warmup_steps": (1_000, 20_000),
            "updates_per_step": (0.5, 0.25),
            "replay_steps": (100_000, 1_000_000),
        },
        own={"decay_steps": None},
    ),
    # Williams 1992 and Sutton & Barto 2018 give none.
    "reinforce": Source(
        own={
            "discount": 0.99,
            "baseline": True,
            "episodes_per_update": 4,
            "baseline_epochs": 5,
            "batch_size": 64,
            "normalise_advantages": True,
            "entropy_weight": 0.0,
            "lr": 3e-3,
            "baseline_lr": 3e-3,
            "max_grad_norm": None,
            "hidden_sizes": (64, 64),
            "initial_std": 1.0,
            **SWITCHED_OFF,
        }
    ),
    # openai/baselines, baselines/a2c/a2c.py and common/models.py; its value loss has no factor of ½
    "a2c": Source(
        same={
            "discount": 0.99,
            "trace": 1.0,
            "entropy_weight": 0.01,
            "rollout_steps": 5,
            "normalise_advantages": False,
            "max_grad_norm": 0.5,
            "hidden_sizes": (64, 64),
            "initial_std": 1.0,
            **SWITCHED_OFF,
        },
        differs={"value_weight": (0.5, 1.0), "lr": (1e-3, 7e-4), "decay_lr": (False, True)},
        own={"decay_steps": None},
    ),
    # Schulman et al. 2017, table 3; openai/baselines (ppo2) for what the paper leaves open, with its VecNormalize
    "ppo": Source(
        same={
            "discount": 0.99,
            "trace": 0.95,
            "clip": 0.2,
            "value_weight": 0.5,
            "entropy_weight": 0.0,
            "epochs": 10,
            "batch_size": 64,
            "normalise_advantages": True,
            "lr": 3e-4,
            "decay_lr": False,
            "max_grad_norm": 0.5,
            "hidden_sizes": (64, 64),
            "initial_std": 1.0,
        },
        differs={
            "rollout_steps": (256, 2_048),
            "normalise_observations": (False, True),
            "scale_rewards": (False, True),
        },
        own={"decay_steps": None},
    ),
    # Schulman et al. 2015 for γ, δ and the conjugate gradients; openai/spinningup (trpo.py) for the rest
    "trpo": Source(
        same={
            "discount": 0.99,
            "max_divergence": 0.01,
            "conjugate_steps": 10,
            "damping": 0.1,
            "backtracks": 10,
            "shrinkage": 0.8,
            "normalise_advantages": True,
            "critic_lr": 1e-3,
            "hidden_sizes": (64, 64),
            **SWITCHED_OFF,
        },
        differs={
            "trace": (0.95, 0.97),
            "rollout_steps": (256, 4_000),
            "critic_epochs": (10, 80),
            "batch_size": (64, 4_000),
            "initial_std": (1.0, 0.61),
        },
    ),
    # Div99/IQ-Learn, iq_learn: conf/config.yaml, conf/method/iq.yaml, conf/env/cartpole.yaml, agent/softq_models.py
    # (OfflineQNetwork) and scripts/run_offline.sh; actor's rate: scripts/run_mujoco.sh
    "iq_learn": Source(
        same={
            "value_term": "expert",
            "chi2": "expert",
            "chi2_scale": 0.5,
            "temperature": 0.001,
            "discount": 0.99,
            "tau": None,
            "critics": 1,
            "batch_size": 32,
            "critic_lr": 1e-4,
            "actor_lr": 3e-5,
            "hidden_sizes": (64, 64),
            "evaluate_by": None,
            "warmup_steps": 1_280,
            "updates_per_step": 1.0,
        },
        differs={"replay_steps": (500_000, 25_000)},
        own={"online": False, "standardise_observations": False},
    ),
    # robfiras/ls-iq: examples/01_LSIQ/04_episode_25/lsiq_experiments.py and 02_episode_5/launcher.py
    "ls_iq": Source(
        same={
            "regularisation": 0.5,
            "temperature": 1e-3,
            "critics": 1,
            "batch_size": 256,
            "critic_lr": 3e-4,
            "actor_lr": 3e-5,
            "warmup_steps": 10_000,
            "actor_warmup_steps": 15_000,
            "updates_per_step": 1.0,
            "replay_steps": 1_000_000,
            **WIDE,
            **SOFT,
        },
        differs={"policy_term": ("replay", "value"), "cap_entropy": (True, False)},
        own={"standardise_observations": False},
    ),
    # Reddy et al. 2020, arXiv:1905.11108, algorithm 1: soft Q-learning at α = 1; the rest is that of `sac`
    "sqil": Source(
        same={
            "temperature": 1.0,
            "tune_temperature": True,
            "batch_size": 128,
            "lr": 3e-4,
            **{name: of("sac")[name] for name in ("warmup_steps", "updates_per_step", "replay_steps")},
            **WIDE,
            **SOFT,
        }
    ),
    # openai/imitation: scripts/imitate_mj.py and policyopt/imitation.py, whose policy step is TRPO's
    "gail": Source(
        same={
            "reward_convention": "-log(1-D)",
            "reward_inputs": "state_action",
            "hidden_sizes": (100, 100),
            "standardise_observations": True,
        },
        differs={"discriminator_updates": (8, 1), "lr": (1e-3, 1e-2)},
        own={
            "ppo": PPOConfig(discount=0.995, trace=0.97, hidden_sizes=(100, 100)),
            "batch_size": 256,
            "gradient_penalty": 0.0,
            "old_rollouts": 0,
            "allow_variable_horizon": False,
        },
    ),
    # Fu et al. 2018 and justinjfu/inverse_rl: models/airl_state.py, models/architectures.py and scripts/ant_irl.py
    "airl": Source(
        same={
            "policy_reward": "f - log pi",
            "reward_inputs": "state_action",
            "hidden_sizes": (32, 32),
            "shaped": True,
            "shaping_sizes": (32, 32),
            "discriminator_updates": 10,
            "batch_size": 64,
            "lr": 1e-3,
            "old_rollouts": 20,
        },
        differs={"standardise_observations": (True, False)},
        own={"ppo": PPOConfig(), "allow_variable_horizon": False},
    ),
    # google-research/google-research, dac/{lfd_training_worker,ddpg_td3,gail}.py
    "dac": Source(
        same={
            "agent": "td3",
            "td3": TD3Config(
                discount=0.99,
                tau=0.005,
                actor_lr=1e-3,
                critic_lr=1e-3,
                hidden_sizes=(400, 300),
                batch_size=100,
                max_grad_norm=40.0,
                exploration_noise=0.1,
                warmup_steps=1_000,
                updates_per_step=1.0,
                **TD3_NOISE,
            ),
            "absorbing": True,
            "reward_convention": "logit",
            "reward_inputs": "state_action",
            "hidden_sizes": (256, 256),
            "lr": 1e-3,
            "gradient_penalty": 10.0,
            "halving_steps": 100_000,
        },
        own={"sac": SACConfig(), "allow_variable_horizon": False},
    ),
    # rll-research/BPref: config/train_PEBBLE.yaml, reward_model.py
    "preference_reward": Source(
        same={"teacher": "oracle", "inputs": "state_action", "members": 3, "discount": 1.0, "lr": 3e-4},
        differs={
            "segment_length": (64, 50),
            "pairs": (500, 1400),
            "batch_size": (64, 128),
            "bootstrap": (True, False),
            "hidden_sizes": ((64, 64), (256, 256, 256)),
            "standardise_observations": (True, False),
        },
        own={"anchor": 0.01},
    ),
    # jhejna/cpl: configs/mw_state_dense/cpl.yaml, research/algs/cpl.py
    "cpl": Source(
        same={"alpha": 0.1, "bias": 0.5, "lr": 1e-4, "batch_size": 96, "dropout": 0.25, "segment_length": 64},
        differs={
            "discount": (0.99, 1.0),
            "cloning_updates": (40_000, 200_000),
            "hidden_sizes": ((256, 256), (512, 512)),
            "standardise_observations": (True, False),
        },
        own={"teacher": "oracle", "pairs": 500},
    ),
    "independent_q": Source(
        same=EPYMARL,
        differs={**EPYMARL_DIFFERS, "reward_centring": (False, True), "team_reward": (False, True)},
        own={"horizon": None},
    ),
    "vdn": Source(same=EPYMARL, differs=EPYMARL_DIFFERS, own={"horizon": None}),
    "qmix": Source(
        same={**EPYMARL, "mixer_embedding": 32, "mixer_hidden": 64}, differs=EPYMARL_DIFFERS, own={"horizon": None}
    ),
    # EPyMARL, src/config/algs/maddpg.yaml; episodes of 25 steps, as in MPE
    "maddpg": Source(
        same={
            "discount": 0.99,
            "tau": 0.01,
            "actor_lr": 5e-4,
            "critic_lr": 5e-4,
            "max_grad_norm": 10.0,
            "logit_penalty": 1e-3,
            "temperature": 1.0,
            "agent_id": True,
            "reward_scaling": True,
            "steps_per_update": 25.0,
        },
        differs={
            "batch_size": (1_024, 400),
            "hidden_sizes": ((64, 64), (128, 128)),
            "sharing": ("kind", "all"),
            "warmup_steps": (1_024, 400),
            "replay_steps": (1_000_000, 1_250_000),
        },
        own={"exploration_noise": 0.1, "horizon": None},
    ),
    "matd3": Source(same=of("maddpg") | TD3_NOISE),
    "matd3_bc": Source(
        same={
            name: value
            for name, value in of("matd3").items()
            if name in {"discount", "tau", "batch_size", "actor_lr", "critic_lr", "hidden_sizes", "sharing", "agent_id"}
        }
        | {"alpha": 2.5, **TD3_NOISE},
        own={"centralised": True, "decay_lr": False, "decay_updates": None, "horizon": None},
    ),
    "qmix_cql": Source(
        same=of(
            "qmix",
            without={
                *("target_period", "tau", "epsilon_start", "epsilon_end", "epsilon_steps"),
                *("warmup_episodes", "episodes_per_update", "replay_steps"),
            },
        ),
        differs={"target_period": (1, 200), "tau": (0.005, 1.0)},
        own={"alpha": 1.0, "centralised": True, "joint_actions": None},
    ),
    # The paper gives neither a discount nor a step size; the form of the reward is its own.
    "maxent_irl": Source(
        same={"inputs": "state", "hidden_sizes": ()},
        differs={"discount": (0.99, 1.0)},
        own={"horizon": None, "lr": 0.01},
    ),
    # HumanCompatibleAI/imitation 1.0, src/imitation/algorithms/mce_irl.py: MCEIRL.__init__
    "mce_irl": Source(
        same={"inputs": "state", "lr": 0.01},
        differs={"discount": (0.99, 1.0)},
        own={"horizon": None, "hidden_sizes": ()},
    ),
}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_default_is_its_sources_or_a_deviation_that_is_listed(name: str) -> None:
    source = SOURCES[name]
    listed = [*source.same, *source.differs, *source.own]
    defaults = {f.name: f.default for f in fields(config_class(algorithm_class(name)))}
    assert sorted(listed) == sorted(defaults)  # each field once
    assert all(ours != theirs for ours, theirs in source.differs.values())
    assert defaults == {**source.same, **source.own, **{key: ours for key, (ours, _) in source.differs.items()}}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_page_lists_the_defaults_that_differ(name: str) -> None:
    """In the rows of the section on defaults: `field` ours, not the source's value."""
    section = PAGE.read_text(encoding="utf-8").split("## Defaults and their sources")[1].split("\n## ")[0]
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", section, re.MULTILINE)
    _, cell = row.rsplit("|", 1)
    said = {} if cell.strip() == "none" else dict(part.strip().split("` ", 1) for part in cell.split(";"))
    expected = {f"`{key}": f"{ours}, not {theirs}" for key, (ours, theirs) in SOURCES[name].differs.items()}
    assert said == expected
