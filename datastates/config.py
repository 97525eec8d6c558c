"""Configuration of a checkpointer: one frozen dataclass, from keywords, YAML or the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch

from datastates.tiers.config import Tier, tiers_of

import _elastates

Policy = Literal["wait", "skip", "error"]
OnFailure = Literal["warn", "raise"]
Verify = Literal["off", "sample", "full"]
Backend = Literal["auto", "threads", "io_uring"]
MB = 10**6
COPY_AHEAD_MB = 96


@dataclass(frozen=True, kw_only=True)
class CheckpointerConfig:
    """How checkpoints are taken and kept."""

    arena_mb: int | None = None
    """Host memory for bytes on their way to storage, MB; ``None``: as much as one checkpoint of this rank takes, at
    most an eighth of the machine's memory."""
    policy: Policy = "wait"
    """When storage is slower than training and the arena is full: ``wait`` at the gate, ``skip`` the checkpoint on all
    ranks and count it, or ``error``."""
    on_failure: OnFailure = "warn"
    """A failed checkpoint is logged, counted and raised by its futures; ``raise``: by the next gate or call, too."""
    max_consecutive_failures: int = 3
    """After so many in a row every gate and call raises, whatever ``on_failure`` says."""
    keep_last: int | None = 3
    """How many of the newest checkpoints stay; ``None``: all."""
    keep_every: int | None = None
    """Checkpoints of steps that this divides stay forever."""
    replicate_to: tuple[Tier, ...] = ()
    """Where published checkpoints are copied to behind training, and restored from if they are newer than those here:
    a path, a URL such as ``s3://bucket/run``, a :class:`datastates.Tier`, or a list of those; see ``docs/tiers.md``."""
    full_every: int | None = None
    """Every so many checkpoints at least is a full one; those between are deltas, which hold only what changed since an
    earlier one (``docs/deltas.md``). ``None``: all are full, and nothing is compared."""
    delta_extent_bytes: int = 64 << 10
    """How finely deltas tell what changed, bytes, a multiple of 4096; doubled until a file has at most 65536."""
    verify_immutability: Verify = "sample"
    """Which lazily copied bytes are checksummed at the call and again when copied: a rotating window of
    :attr:`sample_bytes`, all of them (the only mode that promises to see every write past the counters), or none."""
    sample_bytes: int = 1 << 20
    """Size of the rotating window, bytes."""
    lazy: tuple[str, ...] = ()
    """Name patterns (``model.frozen.*``) of tensors that no optimizer writes and nobody else before the next gate."""
    alone: bool = False
    """This process saves and restores by itself, although ``torch.distributed`` is initialised: for state that every
    rank holds whole and one of them keeps. A second process that saves to the directory meanwhile is refused."""
    commit_timeout_s: float = 120.0
    """Longest wait for the other ranks, seconds, in each exchange."""
    copy_threads: int = 2
    """Threads that copy host memory."""
    copy_ahead_mb: int | None = None
    """How far copies run ahead of storage while nobody waits for them, MB; ``None``: 96 where training occupies every
    core that this process may use, so that copies come evenly and stay in the caches until they are written, else as
    far as the arena goes."""
    copy_nice: int = 0
    """Their nice value while nobody waits for them. On two busy cores a short burst at 0 disturbed training least
    (best of three rounds: +8 % a step; +11 % at 10, +10 % at 19), within noise; jobs differ. Where a process may not
    take a nice value back, they are scheduled as batch work instead."""
    read_threads: int = 4
    """Reads in flight while restoring."""
    write_backend: Backend = "auto"
    """``auto``: io_uring where it was found at build time and the kernel allows it, else writer threads."""
    write_depth: int = 4
    """Blocks being written at once."""
    chunk_bytes: int = 8 << 20
    """Size of an arena block and of one write, bytes."""
    direct_io: bool = True
    """Bypass the page cache where the file system allows it."""
    events: str | None = None
    """File that this checkpointer's events are appended to, as JSON lines; among several ranks each has its own, with
    ``-rank-00000`` in its name. ``None``: what the environment variable ``ELASTATES_EVENTS`` says, if it is set."""
    stall_warning_share: float | None = 0.1
    """Log a line that says why, when training has waited at gates for more than this share of the time; ``None``:
    never."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("policy", Policy),
            ("on_failure", OnFailure),
            ("verify_immutability", Verify),
            ("write_backend", Backend),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}")
        for name in ("arena_mb", "copy_ahead_mb", "keep_last", "keep_every", "full_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1, or None")
        for name in ("max_consecutive_failures", "sample_bytes", "copy_threads", "read_threads", "write_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.commit_timeout_s > 0:  # NaN included
            raise ValueError(f"commit_timeout_s is {self.commit_timeout_s}, expected more than 0")
        if self.chunk_bytes < 4096 or self.chunk_bytes % 4096:
            raise ValueError(f"chunk_bytes is {self.chunk_bytes}, expected a multiple of 4096")
        if self.delta_extent_bytes < 4096 or self.delta_extent_bytes % 4096:
            raise ValueError(f"delta_extent_bytes is {self.delta_extent_bytes}, expected a multiple of 4096")
        if isinstance(self.lazy, str):  # would become one pattern per letter, "*" perhaps among them
            raise ValueError(f"lazy is {self.lazy!r}, expected a list of patterns")
        if self.stall_warning_share is not None and not self.stall_warning_share >= 0:
            raise ValueError(f"stall_warning_share is {self.stall_warning_share}, expected at least 0, or None")
        object.__setattr__(self, "lazy", tuple(self.lazy))
        object.__setattr__(self, "replicate_to", tiers_of(self.replicate_to))

    @property
    def fine_extent_bytes(self) -> int | None:
        """Size of the extents that deltas compare; ``None`` where there are no deltas."""
        return None if self.full_every is None else self.delta_extent_bytes

    @classmethod
    def of(cls, options: dict[str, Any]) -> CheckpointerConfig:
        """From keywords; an unknown one is named together with those that exist."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise TypeError(f"unknown option {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**options)

    def arena_bytes(self, file_bytes: int) -> int:
        """Size of the arena for data files of ``file_bytes``."""
        if self.arena_mb is not None:
            return self.arena_mb * MB
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(2 * self.chunk_bytes, min(file_bytes, memory // 8 // _local_ranks()))

    def copy_ahead_bytes(self) -> int:
        """How far copies run ahead of storage while nobody waits for them; 0: as far as the arena goes."""
        if self.copy_ahead_mb is not None:
            return self.copy_ahead_mb * MB
        has_spare_cores = torch.get_num_threads() * _local_ranks() < len(os.sched_getaffinity(0))
        return 0 if has_spare_cores or torch.cuda.is_available() else COPY_AHEAD_MB * MB

    def make_engine(self, file_bytes: int) -> Any:
        """The native engine."""
        return _elastates.Engine(
            arena_bytes=self.arena_bytes(file_bytes),
            block_bytes=self.chunk_bytes,
            copy_threads=self.copy_threads,
            copy_ahead_bytes=self.copy_ahead_bytes(),
            copy_nice=self.copy_nice,
            write_backend=self.write_backend,
            write_depth=self.write_depth,
            pinned=_elastates.build_info()["has_cuda"] and torch.cuda.is_available(),
            allow_direct=self.direct_io,
        )


def _local_ranks() -> int:
    """Ranks of the job on this machine, as its launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclass(frozen=True, kw_only=True)
class CheckpointStats:
    """What a checkpointer has done so far."""

    num_begun: int = 0
    num_durable: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    """By ``policy="skip"``."""
    call_s_total: float = 0.0
    """Time spent inside ``checkpoint()``, seconds."""
    gate_wait_s_total: float = 0.0
    """Time the training thread waited at gates, seconds."""
    last_durable_step: int | None = None
    last_durable_mb_s: float = 0.0
    """Size of the last published checkpoint, all ranks, over the time from the call to durable; MB/s."""
    bytes_published_total: int = 0
    """Data files of all ranks, bytes."""
    bytes_written_total: int = 0
    """What of them was written, bytes: deltas refer to earlier files for the rest."""
    num_deltas: int = 0
    """How many of the durable ones refer to earlier files."""
    arena_bytes: int = field(default=0)
    num_replicated: int = 0
    """Copies made, in all tiers."""
    num_replications_failed: int = 0
    num_replications_passed_over: int = 0
    """Checkpoints that a tier did not take: not due, or a newer one came first."""
    num_replication_retries: int = 0
    """Operations on a tier that were tried again."""
    bytes_replicated_total: int = 0
    """Bytes sent to tiers."""
    last_replicated_step: int | None = None
