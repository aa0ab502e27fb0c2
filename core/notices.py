"""Notices: lines of the logger `herdbook`, which the command prints to standard error."""

from __future__ import annotations

import functools
import logging

logger = logging.getLogger("herdbook")


@functools.cache
def notice(text: str) -> None:
    """Log a notice, once in this process: environments are made many times in a run."""
    logger.warning("%s", text)
