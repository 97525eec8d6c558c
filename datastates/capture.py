"""Capture: from the user's state to held, watched memory, before ``checkpoint()`` returns.

What an optimizer of the state writes is held where it lies and copied behind the next forward and backward. Everything
else is copied here and now, because nothing announces that it is about to change. The structure (names, shapes, boxes)
is kept between checkpoints for as long as the providers' guards say that the state consists of the same tensors.
"""

from __future__ import annotations

import collections
import fnmatch
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from datastates.bulk import without_gc
from datastates.plan import Held
from datastates.providers import (
    COPIED,
    CompositeProvider,
    Context,
    Parts,
    Saved,
    Section,
    SectionBuilder,
    TreeProvider,
    provider_by_type,
    provider_for,
)
from datastates.typed_json import PLAIN_TYPES, Pickled
from oneflow_sbp import Box

import _elastates

_serials = itertools.count()
EVERYTHING = 2**64 - 1
"""``sample_bytes`` that checksums every watched byte."""


@dataclass(frozen=True)
class Structure:
    """What a rank holds: the part of a capture that stays the same from step to step."""

    held: tuple[Held, ...]
    aliases: Mapping[str, str]
    serial: int
    """Tells the structures of this process apart."""

    @classmethod
    def of(cls, held: Sequence[Held], aliases: Mapping[str, str]) -> Structure:
        return cls(tuple(held), dict(aliases), next(_serials))

    @cached_property
    def digest(self) -> str:
        """Equal on two ranks, or at two steps, only if the descriptions are equal."""
        return hashlib.sha256(describe(self.held, self.aliases)).hexdigest()

    @cached_property
    def num_groups(self) -> int:
        """Native groups: group ``g`` of :class:`Held` is ``g + 1``, and 0 is what has been copied."""
        return max((h.group for h in self.held), default=COPIED) + 2

    @cached_property
    def nbytes(self) -> int:
        return sum(h.nbytes for h in self.held)


@dataclass(frozen=True)
class Writers:
    """Whose steps write to what was captured: each checkpoint keeps the answer of its own state."""

    context: Context
    num_groups: int
    by_storage: Mapping[int, set[int]]
    """Address of a storage -> native groups with lazily copied tensors in it."""

    def groups_of(self, optimizer: torch.optim.Optimizer) -> set[int]:
        """Native groups with memory that ``optimizer`` writes, be it part of the state or not."""
        groups: set[int] = set()
        if self.context.declared_group + 2 <= self.num_groups:
            groups.add(self.context.declared_group + 1)
        groups.update(i + 1 for i, known in enumerate(self.context.optimizers) if optimizer in (known, _wrapped(known)))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                groups |= self.by_storage.get(_storage(parameter), set())
        return groups


@dataclass(frozen=True)
class Captured:
    """One checkpoint's state, held: independent of what Python does with the originals from now on."""

    structure: Structure
    refs: Any
    """``_elastates.TensorRefs``, parallel to ``structure.held``."""
    python: dict[str, Any]
    """Section name -> encoded Python values, for those that have any."""
    writers: Writers
    releases: list[Callable[[], None]] = field(default_factory=list)
    """What to call when everything has been copied, or never will be."""

    def let_go(self) -> None:
        """The live state is no longer needed. Idempotent."""
        while self.releases:
            self.releases.pop()()


def _wrapped(optimizer: torch.optim.Optimizer) -> object:
    """The optimizer that steps where ``optimizer`` is only a wrapper, as accelerate's is."""
    return getattr(optimizer, "optimizer", None)


def describe(held: Sequence[Held], aliases: Mapping[str, str]) -> bytes:
    """The description that ranks exchange."""
    rows = [[h.name, h.dtype, h.itemsize_bytes, h.shape, h.box.offsets, h.box.sizes, h.group] for h in held]
    return json.dumps([rows, dict(aliases)], separators=(",", ":")).encode()


def undescribe(raw: bytes) -> tuple[list[Held], dict[str, str]]:
    """The inverse of :func:`describe`."""
    rows, aliases = json.loads(raw)
    held = [
        Held(name, dtype, itemsize, tuple(shape), Box(tuple(offsets), tuple(sizes)), group)
        for name, dtype, itemsize, shape, offsets, sizes, group in rows
    ]
    return held, aliases


def leaves(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """(name, value, container, key) of every value that has a provider of its own.

    Dicts are entered only where they hold such values, so that plain nested Python data stays one value.
    """
    for key, value in state.items():
        if not isinstance(key, str) or not key:
            raise TypeError(f"state keys must be non-empty strings, got {key!r}")
        name = f"{prefix}{key}"
        provider = None if isinstance(value, _PLAIN) else provider_by_type(value)
        if isinstance(provider, CompositeProvider):
            yield from leaves(Parts(provider, value), f"{name}.")
        elif _is_branch(value) and _holds_objects(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value, state, key


_PLAIN = (torch.Tensor, Pickled, *PLAIN_TYPES)
_VALUES = frozenset(TreeProvider.handles)
"""Types whose values may be another object at every step, and still the same part of the state: encoded every time."""


def _is_branch(value: object) -> bool:
    """Whether it is a dict that nobody has said is more than that: a subclass may have a provider of its own."""
    return type(value) is dict or (isinstance(value, dict) and type(provider_for(value, "")) is TreeProvider)


def _holds_objects(value: object) -> bool:
    if not _is_branch(value):
        return not isinstance(value, _PLAIN)
    assert isinstance(value, dict)
    if set(map(type, value.values())) <= set(_PLAIN):  # the quick way through a dict of ten thousand tensors
        return False
    return any(map(_holds_objects, value.values()))


def make_context(
    state: Mapping[str, Any], rank: int, lazy: Sequence[str] = (), restoring: Saved | None = None
) -> Context:
    """What the providers may know about the whole of ``state``."""
    from datastates.providers import PerRank

    found = [(name, v.value if isinstance(v, PerRank) else v) for name, v, _, _ in leaves(state)]
    if len({name for name, _ in found}) != len(found):
        twice, _ = collections.Counter(name for name, _ in found).most_common(1)[0]
        raise ValueError(f"two values of the state have one name: {twice}; rename a key of the state")
    if any(name.partition(".")[0] == "per_rank" for name, _ in found):
        raise ValueError("a key of the state is 'per_rank', which names the tensors of single ranks; rename it")
    return Context(
        modules={name: value for name, value in found if isinstance(value, torch.nn.Module)},
        optimizers=[value for _, value in found if isinstance(value, torch.optim.Optimizer)],
        rank=rank,
        lazy=lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in lazy) if lazy else False,
        restoring=restoring,
    )


def collect(name: str, value: Any, context: Context) -> Section:
    """The section of one value."""
    builder = SectionBuilder(name, context)
    provider_for(value, name).collect(value, builder)
    return builder.section


class StateCapture:
    """Takes captures of a state, quickly when it is the state of the last time.

    Used by the training thread alone.
    """

    def __init__(self, rank: int, lazy: Sequence[str] = (), copied_warning_bytes: int = 256 << 20) -> None:
        self._rank = rank
        self._lazy = lazy
        self._copied_warning_bytes = copied_warning_bytes
        self._warned = False
        self._values: list[tuple[str, Any]] = []
        self._sections: list[Section] = []
        self._context = Context({}, [])
        self._structure = Structure.of((), {})
        self._tensors: list[torch.Tensor] = []
        self._gathered: list[int] = []  # tensors to copy that the native side does not copy by itself
        self._owned: list[int] = []  # tensors to copy that nobody else has, so that they need not be
        self._set: Any = None  # _elastates.TensorSet
        self._devices: list[int] = []
        self._writers = Writers(self._context, 0, {})
        self._tied: list[tuple[torch.Tensor, Section, tuple[Any, ...]]] = []

    def take(self, state: Mapping[str, Any], sample_begin: int, sample_bytes: int) -> Captured:
        """Hold everything in ``state``.

        Args:
            state: names to modules, optimizers, tensors, stateful objects or plain Python values.
            sample_begin: where, in the ring of all lazily copied bytes, the checksummed window begins.
            sample_bytes: its length; :data:`EVERYTHING` for the whole ring.
        """
        try:
            return self._take(state, sample_begin, sample_bytes)
        except BaseException:
            _call(*self._context.take_releases())
            raise

    def _take(self, state: Mapping[str, Any], sample_begin: int, sample_bytes: int) -> Captured:
        self._refresh(state)
        python = {s.name: encoded for s in self._sections if (encoded := s.python()) is not None}
        copies = [(index, _own_copy(self._tensors[index])) for index in self._gathered]
        copies += [(index, self._tensors[index]) for index in self._owned]
        refs = self._set.hold(copies, sample_begin, sample_bytes, _streams(self._devices))
        if any(s.transient for s in self._sections):
            self._drop_transient()
        at_once, when_copied = self._context.take_releases()
        _call(at_once)
        return Captured(self._structure, refs, python, self._writers, when_copied)

    def forget(self) -> None:
        """Let go of the state; the next :meth:`take` begins anew."""
        self._values, self._sections, self._tensors, self._tied, self._set = [], [], [], [], None
        self._context = Context({}, [])
        self._writers = Writers(self._context, 0, {})

    @without_gc()
    def _refresh(self, state: Mapping[str, Any]) -> None:
        values = [(name, value) for name, value, _, _ in leaves(state)]
        same = len(values) == len(self._values) and all(
            name == old_name and (value is old or (type(value) in _VALUES and type(value) is type(old)))
            for (name, value), (old_name, old) in zip(values, self._values, strict=True)
        )
        if not same or self._stale():
            self._context = make_context(state, self._rank, self._lazy)
            self._sections = [collect(name, value, self._context) for name, value in values]
            self._values = values
            self._assemble()
        elif any(s.guard is None for s in self._sections):
            self._values = values
            before = self._sections
            self._sections = [
                s if s.guard is not None else collect(s.name, value, self._context)
                for s, (_, value) in zip(before, values, strict=True)
            ]
            if not all(map(_same_tensors, self._sections, before)):
                self._assemble()

    def _stale(self) -> bool:
        """Whether the values consist of other tensors than last time, or of the same with other memory or form."""
        return (
            any(s.guard is not None and not s.guard() for s in self._sections)
            or (self._set is not None and self._set.moved())
            or any(_form(tensor) != form for tensor, _, form in self._tied)
            or any(
                whole._local_tensor is not part or part.data_ptr() != address
                for s in self._sections
                for whole, part, address in s.parts
            )
        )

    def _drop_transient(self) -> None:
        """Tensors made for one call belong to its checkpoint alone; go on watching the others."""
        for section in self._sections:
            if section.transient:
                section.tensors.clear()
                section.parts.clear()
                section.wholes.clear()
        self._tensors = [tensor for section in self._sections for tensor in section.tensors]
        self._tied = [tie for tie in self._tied if not tie[1].transient]
        self._set = _elastates.TensorSet(self._tensors, np.zeros(len(self._tensors), dtype=np.uint32))

    def _assemble(self) -> None:
        """Join the sections: one name, one tensor; a tensor met again under another name is an alias."""
        held: list[Held] = []
        tensors: list[torch.Tensor] = []
        aliases: dict[str, str] = {}
        owned: set[int] = set()
        by_memory: dict[object, str] = {}
        self._tied = []
        for section in self._sections:
            aliases |= section.aliases
            for item, tensor in zip(section.held, section.tensors, strict=True):
                # A transposed or conjugated view has the same memory, but other values.
                memory = (item.dtype, item.shape, item.box, *_view(tensor))
                first = by_memory.setdefault(memory, item.name) if item.nbytes else item.name
                if first != item.name:
                    aliases[item.name] = first
                    self._tied.append((tensor, section, _form(tensor)))
                else:
                    if section.owned:
                        owned.add(len(held))
                    held.append(item)
                    tensors.append(tensor)
        names = [h.name for h in held]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(
                f"two tensors of the state have one name: {', '.join(twice[:5])}; rename a key of the state"
            )
        aliases = {alias: aliases.get(name, name) for alias, name in aliases.items()}
        self._tensors = tensors
        if list(self._structure.held) != held or self._structure.aliases != aliases:
            self._structure = Structure.of(held, aliases)
        copied = [i for i, h in enumerate(held) if h.group == COPIED]
        self._gathered = [i for i in copied if not _is_plain_memory(tensors[i])]
        self._owned = [i for i in copied if i in owned and _is_plain_memory(tensors[i])]
        self._set = _elastates.TensorSet(tensors, np.array([h.group + 1 for h in held], dtype=np.uint32))
        self._devices = sorted({t.get_device() for t in tensors if t.is_cuda})
        by_storage: dict[int, set[int]] = {}
        for item, tensor in zip(held, tensors, strict=True):
            if item.group != COPIED:
                by_storage.setdefault(_storage(tensor), set()).add(item.group + 1)
        self._writers = Writers(self._context, self._structure.num_groups, by_storage)
        self._warn_if_much_is_copied(held)

    def _warn_if_much_is_copied(self, held: Sequence[Held]) -> None:
        copied = [h for h in held if h.group == COPIED]
        total = sum(h.nbytes for h in copied)
        if total > self._copied_warning_bytes and not self._warned:
            self._warned = True
            largest = max(copied, key=lambda h: h.nbytes)
            warnings.warn(
                f"{total / 1e6:.0f} MB of the state are written by no optimizer of the state and are copied inside "
                f"every checkpoint() call (largest: {largest.name}, {largest.nbytes / 1e6:.0f} MB); what you do not "
                'write to before the next gate() can be declared: Checkpointer(lazy=["model.frozen.*"])',
                stacklevel=5,
            )


def _call(*releases: Sequence[Callable[[], None]]) -> None:
    for release in itertools.chain(*releases):
        release()


def _same_tensors(now: Section, before: Section) -> bool:
    if now is before:
        return True
    return (
        now.held == before.held
        and now.aliases == before.aliases
        and len(now.tensors) == len(before.tensors)
        and all(a is b for a, b in zip(now.tensors, before.tensors, strict=True))
    )


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _view(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors of one type and shape only if they are the same values in the same memory."""
    return tensor.data_ptr(), tensor.stride(), tensor.is_conj(), tensor.is_neg()


def _is_plain_memory(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _storage(tensor: torch.Tensor) -> int:
    local = getattr(tensor, "_local_tensor", tensor)
    return int(local.untyped_storage().data_ptr())


def _streams(devices: Sequence[int]) -> list[tuple[int, int]]:
    """(device, cudaStream_t) of the work that produces the values."""
    return [(device, torch.cuda.current_stream(device).cuda_stream) for device in devices]
