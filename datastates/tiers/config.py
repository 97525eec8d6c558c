"""Tier: a place that keeps copies of published checkpoints, as users declare it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

MIN_PART_BYTES = 5 << 20
"""The smallest part that S3 takes, except for the last one."""


@dataclass(frozen=True)
class Tier:
    """Where published checkpoints are copied to, behind training.

    ``Checkpointer(directory, replicate_to="s3://bucket/run")`` means ``replicate_to=Tier("s3://bucket/run")``.
    """

    url: str
    """A directory (a path or ``file://``), ``s3://bucket/prefix``, or any URL that fsspec knows (extra ``remote``)."""
    _: KW_ONLY
    every: int | None = None
    """Take a checkpoint whose step is at least so many behind the last one taken; ``None``: as often as the bandwidth
    allows. While one is under way only the newest waits."""
    keep_last: int | None = 3
    """How many of the newest checkpoints stay; ``None``: all."""
    keep_every: int | None = None
    """Checkpoints of steps that this divides stay forever."""
    bandwidth_mb_s: float | None = None
    """Cap on what is sent, MB/s on average; ``None``: none."""
    threads: int = 4
    """Parts under way at once."""
    part_mb: float = 16.0
    """Size of a part, MB: what is sent, verified and, after an interruption, not sent again."""
    retry_for_s: float = 300.0
    """How long one operation is tried again, with growing pauses, before the copy fails, seconds."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold credentials
    """What fsspec's file system is made with: ``{"endpoint_url": ..., "key": ..., "secret": ...}`` for S3."""

    def __post_init__(self) -> None:
        if not isinstance(self.url, str | os.PathLike) or not os.fspath(self.url):
            raise ValueError(f"a tier's url is {self.url!r}, expected a path or a URL such as s3://bucket/run")
        object.__setattr__(self, "url", os.fspath(self.url))
        for name in ("every", "keep_last", "keep_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} of tier {self.url} is {getattr(self, name)}, expected at least 1, or None")
        if self.bandwidth_mb_s is not None and not self.bandwidth_mb_s > 0:
            raise ValueError(
                f"bandwidth_mb_s of tier {self.url} is {self.bandwidth_mb_s}, expected more than 0, or None"
            )
        if self.threads < 1:
            raise ValueError(f"threads of tier {self.url} is {self.threads}, expected at least 1")
        if self.part_bytes < MIN_PART_BYTES:
            raise ValueError(f"part_mb of tier {self.url} is {self.part_mb}, expected at least 5.25: S3 takes no less")
        if not self.retry_for_s >= 0:
            raise ValueError(f"retry_for_s of tier {self.url} is {self.retry_for_s}, expected at least 0")

    @property
    def part_bytes(self) -> int:
        return int(self.part_mb * 1e6)


def tiers_of(value: Any) -> tuple[Tier, ...]:
    """Tiers from what users and YAML write: ``None``, a URL, a path, a mapping of fields, a :class:`Tier`, or a list.

    Raises:
        TypeError: something else, or an unknown field, which is named together with those that exist.
    """
    if value is None:
        return ()
    if isinstance(value, Tier | str | os.PathLike | Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise TypeError(f"replicate_to is {value!r}, expected a URL, a Tier, or a list of those")
    tiers = tuple(_tier(one) for one in value)
    if len({tier.url for tier in tiers}) != len(tiers):
        raise ValueError(f"replicate_to names a tier twice: {', '.join(tier.url for tier in tiers)}")
    return tiers


def _tier(value: Any) -> Tier:
    if isinstance(value, Tier):
        return value
    if isinstance(value, Mapping):
        known = [f.name for f in fields(Tier)]
        if unknown := sorted(set(value) - set(known)):
            raise TypeError(f"unknown field {', '.join(unknown)} of a tier; known are {', '.join(known)}")
        return Tier(**value)
    if isinstance(value, str | os.PathLike):
        return Tier(os.fspath(value))
    raise TypeError(f"a tier is {value!r}, expected a URL, a path or a datastates.Tier")
