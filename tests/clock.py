"""Promises in seconds, on machines that also do something else."""

from __future__ import annotations

import os


def waited(seconds: float) -> float:
    """What `seconds` of a machine of its own become on this one: as many times longer as processes of the last
    minute shared a core. A run that hangs takes longer than that."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
