"""How ranks agree to take a checkpoint, and on who writes what.

One small exchange per checkpoint tells everyone that all ranks take the same step, whether all have room, and what
differs between them; descriptions of the state travel only when a structure is new.

    every rank:  begin = {step, structure digest, checksums of copied tensors, samples, ready, attempt directory, bases}
    all:         the same answers, hence the same decision: go, skip, or fail with a message that names ranks
    all:         if some digest is new, exchange descriptions; the same plan everywhere
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from datastates.bulk import without_gc
from datastates.capture import Captured, describe, undescribe
from datastates.coordination import Channel
from datastates.data_file import DataFilePlan, plan_data_file
from datastates.delta import common_base
from datastates.errors import ArenaExhaustedError, CheckpointError, CheckpointSkipped, CoordinationError
from datastates.manifest import Shard, TensorInfo, tensors_json
from datastates.plan import Held, plan_job
from datastates.providers import COPIED
from oneflow_sbp import Box


@dataclass(frozen=True)
class SavePlan:
    """Who writes what, for checkpoints of one structure."""

    files: tuple[DataFilePlan, ...]
    """By rank."""
    tensors: Mapping[str, TensorInfo]
    tensors_text: str
    aliases: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @cached_property
    def layout(self) -> str:
        """Equal for two plans only if the same bytes of the same files mean the same, in the same extents."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.header)
            digest.update(file.extent_ends.tobytes())
        return digest.hexdigest()


class Agreed(NamedTuple):
    """What all ranks will do."""

    plan: SavePlan
    attempt: str
    """Name of the attempt directory."""
    base: int | None
    """The step that the checkpoint is a delta to, if it is one."""


@dataclass(frozen=True)
class Begin:
    """What one rank says before a checkpoint."""

    step: int
    digest: str
    ready: bool
    attempt: str
    problem: str
    """Why this rank cannot take part; empty if it can."""
    copied_crc32c: list[int]
    """Of every tensor copied at the call, in the order of the structure."""
    samples: list[tuple[int, int, int, int]]
    """(tensor, begin, end, crc32c) of the sampled stretches of the others."""
    known: str = ""
    """The exchange in which this rank learned what all hold; differs after one that not everybody heard the end of."""
    bases: list[int] = field(default_factory=list)
    """Steps that this rank could build a delta on."""

    def dump(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @classmethod
    def load(cls, raw: bytes) -> Begin:
        return cls(**json.loads(raw))


def begin_message(
    captured: Captured, step: int, ready: bool, attempt: str, problem: str, alone: bool, bases: Sequence[int] = ()
) -> Begin:
    """This rank's :class:`Begin`; without the checksums if there is nobody to compare with."""
    held = captured.structure.held
    copied = [] if alone else [i for i, h in enumerate(held) if h.group == COPIED]
    return Begin(
        step=step,
        digest=str(captured.structure.serial) if alone else captured.structure.digest,
        ready=ready,
        attempt=attempt,
        problem=problem,
        copied_crc32c=captured.refs.crc32c(copied),
        samples=[] if alone else captured.refs.samples(),
        bases=list(bases),
    )


def refusal(step: int, problem: str) -> Begin:
    """What a rank says that cannot take part in the checkpoint of ``step``."""
    return Begin(step, digest="", ready=True, attempt="", problem=problem, copied_crc32c=[], samples=[])


class Planner:
    """Turns everyone's :class:`Begin` into a :class:`SavePlan`; keeps the last plan. Used by one thread."""

    def __init__(
        self, channel: Channel, chunk_bytes: int, timeout_s: float, fine_extent_bytes: int | None = None
    ) -> None:
        self._channel = channel
        self._chunk_bytes = chunk_bytes
        self._fine_extent_bytes = fine_extent_bytes
        self._timeout_s = timeout_s
        self._digests: tuple[str, ...] = ()
        self._known = ""
        self._held: list[list[Held]] = []
        self._aliases: dict[str, str] = {}
        self._own: tuple[frozenset[int], ...] = ()
        self._plan: SavePlan | None = None

    def file_bytes(self, captured: Captured) -> int:
        """What this rank will write, as far as it can tell before the agreement: its share if the structure stays."""
        rank = self._channel.rank
        if self._plan is not None and self._channel.num_ranks > 1 and self._digests[rank] == captured.structure.digest:
            return self._plan.files[rank].size_bytes
        return captured.structure.nbytes

    def agree(self, captured: Captured | None, begin: Begin, key: str, policy: str) -> Agreed:
        """Collective.

        Args:
            captured: what this rank holds; ``None`` where ``begin`` says that it cannot take part.
            begin: what this rank has to say.
            key: the same on all ranks and new every time.
            policy: what happens if some rank has no room.

        Raises:
            CheckpointSkipped: some rank has no room, under ``policy="skip"``.
            ArenaExhaustedError: the same under ``policy="error"``.
            CheckpointError: some rank has a problem, or ranks hold what does not go together.
        """
        begin = replace(begin, known=self._known)
        answers = [Begin.load(raw) for raw in self._channel.gather(f"begin/{key}", begin.dump(), self._timeout_s)]
        check_answers(answers, policy)
        assert captured is not None
        digests = tuple(answer.digest for answer in answers)
        if digests != self._digests or len({answer.known for answer in answers}) > 1:
            self._learn(captured, digests, key)
        check_replicas(self._held, [answer.samples for answer in answers])
        own = diverging(self._held, [answer.copied_crc32c for answer in answers])
        if self._plan is None or own != self._own:
            self._plan = make_save_plan(self._held, self._aliases, own, self._chunk_bytes, self._fine_extent_bytes)
            self._own = own
        return Agreed(self._plan, answers[0].attempt, common_base([answer.bases for answer in answers]))

    def _learn(self, captured: Captured, digests: tuple[str, ...], key: str) -> None:
        """Exchange descriptions, unless all ranks hold the same."""
        self._plan = None
        held, aliases = list(captured.structure.held), dict(captured.structure.aliases)
        if len(set(digests)) == 1:
            self._held = [held] * len(digests)
        else:
            mine = describe(held, aliases)
            described = [undescribe(raw) for raw in self._channel.gather(f"describe/{key}", mine, self._timeout_s)]
            self._held = [held for held, _ in described]
            aliases = {alias: name for _, theirs in reversed(described) for alias, name in theirs.items()}
        self._aliases = aliases
        self._digests = digests
        self._known = key


def check_answers(answers: Sequence[Begin], policy: str) -> None:
    """Raise what all ranks raise on the same answers, unless all can go."""
    problems = [f"rank {rank}: {answer.problem}" for rank, answer in enumerate(answers) if answer.problem]
    if problems:
        raise CheckpointError("; ".join(problems))
    steps = {answer.step for answer in answers}
    if len(steps) > 1:
        taken = ", ".join(f"rank {rank}: {answer.step}" for rank, answer in enumerate(answers))
        raise CoordinationError(
            f"ranks took checkpoints of different steps ({taken}); call checkpoint() on all ranks alike"
        )
    full = [str(rank) for rank, answer in enumerate(answers) if not answer.ready]
    if full and policy == "skip":
        raise CheckpointSkipped(f"skipped: no arena room on rank {', '.join(full)}, storage is slower than training")
    if full and policy == "error":
        raise ArenaExhaustedError(
            f"no arena room on rank {', '.join(full)}; checkpoint less often, enlarge arena_mb, or use policy='wait'"
        )


def check_replicas(held: Sequence[Sequence[Held]], samples: Sequence[Sequence[Sequence[int]]]) -> None:
    """Raise if the sampled bytes of two replicas differ: storing either would lose the other."""
    seen: dict[object, tuple[int, int]] = {}
    for rank, theirs in enumerate(samples):
        for tensor, begin, end, crc in theirs:
            item = held[rank][tensor]
            first_rank, first = seen.setdefault((item.name, item.box, begin, end), (rank, crc))
            if first != crc:
                raise CheckpointError(
                    f"{item.name} differs between ranks {first_rank} and {rank}, but looks like a replica; if every "
                    "rank has its own, wrap its owner in datastates.per_rank(...) or make it a DTensor"
                )


def diverging(held: Sequence[Sequence[Held]], copied_crc32c: Sequence[Sequence[int]]) -> tuple[frozenset[int], ...]:
    """For every rank, which copied tensors differ from those of the lowest rank that holds the same box.

    Batch-norm statistics and the like: each rank's own values are kept, so that it resumes exactly where it was.
    """
    if len(held) == 1:
        return (frozenset(),)
    first: dict[object, int] = {}
    own = []
    for tensors, crcs in zip(held, copied_crc32c, strict=True):
        copied = [i for i, h in enumerate(tensors) if h.group == COPIED]
        mine = set()
        for index, crc in zip(copied, crcs, strict=True):
            item = tensors[index]
            if first.setdefault((item.name, item.box), crc) != crc:
                if item.box != Box.whole(item.shape):
                    raise CheckpointError(
                        f"{item.name} differs between ranks that hold the same part {item.box} of it; make its "
                        "replicas equal, or wrap its owner in datastates.per_rank(...)"
                    )
                mine.add(index)
        own.append(frozenset(mine))
    return tuple(own)


@without_gc()
def make_save_plan(
    held: Sequence[Sequence[Held]],
    aliases: Mapping[str, str],
    own: Sequence[frozenset[int]],
    chunk_bytes: int,
    fine_extent_bytes: int | None = None,
) -> SavePlan:
    """Pure: the same on every rank."""
    job = plan_job(held, own)
    files = tuple(
        plan_data_file(held[rank], pieces, chunk_bytes, fine_extent_bytes) for rank, pieces in enumerate(job.pieces)
    )
    shards: dict[str, list[Shard]] = {}
    kinds: dict[str, Held] = {}
    for rank, file in enumerate(files):
        for stored in file.stored:
            piece = stored.piece
            shards.setdefault(piece.name, []).append(Shard(rank, stored.begin, stored.end, piece.box))
            kinds.setdefault(piece.name, held[rank][piece.index])
    tensors = {name: TensorInfo(kinds[name].dtype, kinds[name].shape, tuple(found)) for name, found in shards.items()}
    return SavePlan(files, tensors, tensors_json(tensors), dict(aliases))
