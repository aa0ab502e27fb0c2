"""The catalogue of algorithms: names to classes. Importing this module imports no algorithm."""

from __future__ import annotations

import difflib
import importlib
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herdbook.core.config import Config
    from herdbook.core.needs import Needs

ALGORITHMS = {
    "bc": "herdbook.offline.bc:BC",
    "bcq": "herdbook.offline.bcq:BCQ",
    "discrete_bcq": "herdbook.offline.discrete_bcq:DiscreteBCQ",
    "cql": "herdbook.offline.cql:CQL",
    "discrete_cql": "herdbook.offline.discrete_cql:DiscreteCQL",
    "td3_bc": "herdbook.offline.td3_bc:TD3BC",
    "iql": "herdbook.offline.iql:IQL",
    "preference_reward": "herdbook.irl.preference_reward:PreferenceReward",
    "cpl": "herdbook.irl.cpl:CPL",
    "dqn": "herdbook.online.dqn:DQN",
    "ddpg": "herdbook.online.ddpg:DDPG",
    "td3": "herdbook.online.td3:TD3",
    "sac": "herdbook.online.sac:SAC",
    "discrete_sac": "herdbook.online.discrete_sac:DiscreteSAC",
    "reinforce": "herdbook.online.reinforce:Reinforce",
    "a2c": "herdbook.online.a2c:A2C",
    "ppo": "herdbook.online.ppo:PPO",
    "trpo": "herdbook.online.trpo:TRPO",
    "iq_learn": "herdbook.irl.iq_learn:IQLearn",
    "ls_iq": "herdbook.irl.ls_iq:LSIQ",
    "sqil": "herdbook.irl.sqil:SQIL",
    "gail": "herdbook.irl.gail:GAIL",
    "airl": "herdbook.irl.airl:AIRL",
    "dagger": "herdbook.irl.dagger:DAgger",
    "dac": "herdbook.irl.dac:DAC",
    "independent_q": "herdbook.marl.independent_q:IndependentQ",
    "vdn": "herdbook.marl.vdn:VDN",
    "qmix": "herdbook.marl.qmix:QMIX",
    "maddpg": "herdbook.marl.maddpg:MADDPG",
    "matd3": "herdbook.marl.matd3:MATD3",
    "matd3_bc": "herdbook.marl.matd3_bc:MATD3BC",
    "qmix_cql": "herdbook.marl.qmix_cql:QMIXCQL",
    "maxent_irl": "herdbook.irl.maxent_irl:MaxEntIRL",
    "mce_irl": "herdbook.irl.mce_irl:MCEIRL",
}
SUMMARIES = {
    "bc": "behaviour cloning, continuous or discrete",
    "bcq": "batch-constrained Q-learning (Fujimoto et al. 2019)",
    "discrete_bcq": "batch-constrained Q-learning, discrete (Fujimoto et al. 2019)",
    "cql": "conservative Q-learning (Kumar et al. 2020)",
    "discrete_cql": "conservative Q-learning, discrete (Kumar et al. 2020)",
    "td3_bc": "TD3 with behaviour cloning (Fujimoto & Gu 2021)",
    "iql": "implicit Q-learning (Kostrikov et al. 2021)",
    "preference_reward": "a reward ensemble from preferences (Christiano et al. 2017), no policy",
    "cpl": "contrastive preference learning: a policy from preferences (Hejna et al. 2024)",
    "dqn": "deep Q-learning: double, dueling, prioritised, n-step (Mnih et al. 2015)",
    "ddpg": "deterministic policy gradients (Lillicrap et al. 2016)",
    "td3": "twin delayed DDPG (Fujimoto et al. 2018)",
    "sac": "soft actor-critic (Haarnoja et al. 2018)",
    "discrete_sac": "soft actor-critic, discrete (Christodoulou 2019)",
    "reinforce": "policy gradients of whole episodes (Williams 1992)",
    "a2c": "advantage actor-critic (Mnih et al. 2016)",
    "ppo": "proximal policy optimisation (Schulman et al. 2017)",
    "trpo": "trust region policy optimisation (Schulman et al. 2015)",
    "iq_learn": "inverse soft Q-learning from demonstrations (Garg et al. 2021)",
    "ls_iq": "least-squares inverse Q-learning from demonstrations (Al-Hafez et al. 2023)",
    "sqil": "soft Q imitation learning from demonstrations (Reddy et al. 2020)",
    "gail": "generative adversarial imitation learning on PPO (Ho & Ermon 2016)",
    "airl": "adversarial inverse reinforcement learning on PPO (Fu et al. 2018)",
    "dagger": "behaviour cloning in the states that the learner visits, labelled by an expert (Ross et al. 2011)",
    "dac": "discriminator-actor-critic, on TD3 or SAC (Kostrikov et al. 2019)",
    "independent_q": "independent Q-learning, many agents (Tan 1993; Mnih et al. 2015)",
    "vdn": "value decomposition, many agents (Sunehag et al. 2018)",
    "qmix": "monotonic value mixing, many agents (Rashid et al. 2018)",
    "maddpg": "actors with centralised critics, many agents (Lowe et al. 2017)",
    "matd3": "MADDPG with twin delayed critics (Ackermann et al. 2019)",
    "matd3_bc": "MATD3 with behaviour cloning, many agents, from a dataset",
    "qmix_cql": "QMIX with conservative Q-learning, many agents, from a dataset",
    "maxent_irl": "maximum entropy inverse RL, known dynamics (Ziebart et al. 2008)",
    "mce_irl": "maximum causal entropy inverse RL, known dynamics (Ziebart 2010)",
}


class UserError(ValueError):
    """A mistake of the user. The message says what was expected, what came and what to do."""


def algorithm_class(name: str) -> type[Any]:
    """The class of a catalogue name or of `module:Class`.

    Raises UserError for an unknown name (with the nearest) and for what cannot be imported.
    """
    if name in ALGORITHMS:
        return typing.cast(type[Any], import_name(ALGORITHMS[name]))
    if ":" not in name:
        raise UserError(
            f"unknown algorithm {name!r}{nearest(name, ALGORITHMS)}; there are {', '.join(ALGORITHMS)}, "
            "or name your own as module:Class"
        )
    try:
        found = import_name(name)
    except (ImportError, ValueError) as error:  # ValueError: no name before the colon
        raise UserError(f"{name}: cannot be imported: {error}") from error
    except AttributeError as error:
        raise UserError(f"{name}: {error}") from error
    if not isinstance(found, type):
        raise UserError(f"{name}: expected a class, got {type(found).__name__}")
    needs_of(found)
    return found


def needs_of(algorithm: type[Any]) -> Needs:
    """The declaration of a class. Raises UserError, with the line to write, if `needs` is missing or wrong."""
    from herdbook.core.needs import Needs

    found = next((vars(base)["needs"] for base in algorithm.__mro__ if "needs" in vars(base)), None)
    if not isinstance(found, Needs):
        raise UserError(
            f"{algorithm.__qualname__}: expected a class attribute that declares what it learns from, got "
            f"{'none' if found is None else repr(found)}; write, with `from herdbook.core.needs import Needs`:\n"
            "    needs = Needs(data=True)  # it learns from a dataset; environment=True: it plays while it learns"
        )
    expected = {
        "updates_due": bool(found.environment),
        "round_steps": bool(found.environment) and found.interaction != "episodes",
        "go_online": found.goes_online,
        "reward": found.reward,
        "policy": found.policy,
    }
    for method, wanted in expected.items():
        if wanted is not (method in dir(algorithm)):
            raise UserError(
                f"{algorithm.__qualname__}: expected {'a' if wanted else 'no'} method {method} beside {found}; "
                "change its needs, or its methods as the protocols in core/types.py say"
            )
    return found


def config_class(algorithm: type[Any]) -> type[Config]:
    """The config class of an algorithm. Raises UserError, with the line to write, if the constructor names none."""
    import dataclasses

    from herdbook.core.config import Config

    try:
        found = typing.get_type_hints(algorithm.__init__).get("config")
    except NameError as error:
        raise UserError(f"{algorithm.__qualname__}: its constructor's annotations cannot be read: {error}") from error
    if not isinstance(found, type) or not dataclasses.is_dataclass(found) or not issubclass(found, Config):
        raise UserError(
            f"{algorithm.__qualname__}: expected `__init__(self, config: MyConfig, spec, *, seeds, device)` with a "
            f"frozen dataclass `class MyConfig(herdbook.core.config.Config)`, got {found!r} for config"
        )
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; did you mean 'cql'?"`, or an empty string if no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def import_name(name: str) -> Any:
    """The object `module:name`. Raises ImportError, AttributeError or ValueError if there is none."""
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found
