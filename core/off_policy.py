"""What algorithms share that learn from a replay while they play: a state of several parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herdbook.core.learner import Learner
from herdbook.core.parameter_noise import ParameterNoise
from herdbook.core.units import RunningUnits


def whole_state(learner: Learner, units: RunningUnits, noise: ParameterNoise | None = None) -> dict[str, Any]:
    """The learner's state, and under their names that of the units and of the noise."""
    return {
        **learner.state_dict(),
        "units": units.state_dict(),
        "noise": None if noise is None else noise.state_dict(),
    }


def restore_state(
    state: Mapping[str, Any], learner: Learner, units: RunningUnits, noise: ParameterNoise | None = None
) -> None:
    """Restore what `whole_state` gave. One without units or noise is of an algorithm that has neither.

    Raises:
        ValueError: the state is of another algorithm, other networks, seeds or options; nothing is changed then.
    """
    units.check(state)
    saved = state.get("noise")
    if (saved is None) != (noise is None):
        raise ValueError(f"the state does not fit: it is {'without' if saved is None else 'with'} noise on parameters")
    learner.load_state_dict(state)
    units.load_state_dict(state.get("units", {}))
    if noise is not None and saved is not None:
        noise.load_state_dict(saved)
