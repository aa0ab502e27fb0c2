"""The domains there are. A new one is one file and one entry here."""

from __future__ import annotations

from herdbook.core.environments import EnvironmentSource, EnvironmentUnavailable
from herdbook.core.needs import Needs
from herdbook.experiments.domain import Data, Domain, Task
from herdbook.experiments.many_agents import ManyAgents
from herdbook.experiments.single_agent import SingleAgent

DOMAINS: tuple[Domain, ...] = (SingleAgent(), ManyAgents())


def domain_for(needs: Needs) -> Domain:
    """The domain of algorithms with these needs."""
    return next(domain for domain in DOMAINS if domain.serves(needs))


def domain_of(data: Data) -> Domain:
    """The domain of these episodes."""
    return next(domain for domain in DOMAINS if domain.holds(data))


def task_in(source: EnvironmentSource) -> Task:
    """The task of playing in an environment, in the first domain that it belongs to. Raises EnvironmentUnavailable."""
    *others, last = DOMAINS
    for domain in others:
        try:
            return Task(domain=domain, spec=domain.environment_spec(source, None, {}), environment=source)
        except EnvironmentUnavailable:
            continue
    return Task(domain=last, spec=last.environment_spec(source, None, {}), environment=source)
