"""The one knob of failure handling, and every time that follows from it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping

from elaswave.errors import LaunchError


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """All waits of a job, derived from how long a silent process is believed to be well."""

    failure_timeout_s: float = 30.0
    """the knob: how long a training thread may make no mark inside a step, or an agent say nothing to the others"""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.failure_timeout_s) and self.failure_timeout_s > 0):
            raise ValueError(f"failure_timeout_s must be a positive number of seconds, got {self.failure_timeout_s!r}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Timeouts:
        """As ``ELASWAVE_FAILURE_TIMEOUT_S`` says, else the default.

        Raises:
            LaunchError: it is no positive number of seconds.
        """
        text = environment.get("ELASWAVE_FAILURE_TIMEOUT_S")
        try:
            return cls(float(text)) if text else cls()
        except ValueError:
            raise LaunchError(
                f"ELASWAVE_FAILURE_TIMEOUT_S must be a positive number of seconds, got {text!r}"
            ) from None

    @property
    def hang_check_s(self) -> float:
        """Between two looks at the progress marks; adds to the time in which a hang is found."""
        return min(0.5, self.failure_timeout_s / 60)

    @property
    def hang_answer_s(self) -> float:
        """How long ranks that were told of a hang have to make a mark, before the silent ones are killed."""
        return max(0.35, self.failure_timeout_s / 20)

    @property
    def heartbeat_s(self) -> float:
        """Between two signs of life from one agent to another."""
        return self.failure_timeout_s / 6

    @property
    def stop_grace_s(self) -> float:
        """From asking workers to end (SIGTERM) to SIGKILL: time for a last checkpoint."""
        return 5 * self.failure_timeout_s

    @property
    def meeting_s(self) -> float:
        """How long the agents, and then the ranks, of a job wait for each other at the start."""
        return 10 * self.failure_timeout_s

    def describe(self) -> str:
        """One line with all of them, for the log."""
        names = ("failure_timeout_s", "hang_check_s", "hang_answer_s", "heartbeat_s", "stop_grace_s", "meeting_s")
        return ", ".join(f"{name}={getattr(self, name):g}" for name in names)
