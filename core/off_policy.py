"""State of online off-policy algorithms, which has several parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herdbook.core.learner import Learner
from herdbook.core.parameter_noise import ParameterNoise
from herdbook.core.units import RunningUnits


def whole_state(learner: Learner, units: RunningUnits, noise: ParameterNoise | None = None) -> dict[str, Any]:
    """The learner's state, with the entries `units` and `noise`."""
    return {**learner.state_dict(), "units": units.state_dict(), "noise": None if noise is None else noise.state_dict()}


def restore_state(
    state: Mapping[str, Any], learner: Learner, units: RunningUnits, noise: ParameterNoise | None = None
) -> None:
    """Restore a `whole_state`. Older states lack the units and noise of algorithms that used neither.

    Raises ValueError, and changes nothing, if the algorithm, networks, seeds or options differ.
    """
    units.check(state)
    saved = state.get("noise")
    if (saved is None) != (noise is None):
        raise ValueError(f"the state does not fit: it is {'without' if saved is None else 'with'} noise on parameters")
    learner.load_state_dict(state)
    units.load_state_dict(state.get("units", {}))
    if noise is not None and saved is not None:
        noise.load_state_dict(saved)
