"""State that is not torch's: what a user writes to have a foreign library's memory checkpointed.

    sizes()    what there is: name of a chunk -> bytes
    chunks()   the buffers, in that order; they stay valid and unchanged until
    release()  when their bytes have been copied, or never will be
    load()     all chunks as they were saved, every byte verified

``docs/providers.md`` shows one in twenty lines.
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from datastates.providers.base import COPIED, Context, Saved, SectionBuilder, StateProvider


class ChunkedState(abc.ABC):
    """State made of named buffers. Inherit, and put an instance into the state."""

    tier: ClassVar[Literal["device", "host", "python"]] = "host"
    """Where the chunks are. ``"host"``: the library's live memory, copied before ``checkpoint()`` returns.
    ``"device"``: the same on an accelerator. ``"python"``: bytes that :meth:`chunks` makes for this call; they are
    taken over without a copy. ``Checkpointer(lazy=["table.*"])`` declares live memory that nobody writes to before the
    next gate: it is copied behind training."""

    @abc.abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Name of every chunk -> its size in bytes. The tensor ``{key of the state}.{name}`` holds it."""

    @abc.abstractmethod
    def chunks(self) -> Iterable[Any]:
        """The buffers, in the order of :meth:`sizes`: NumPy arrays, tensors, anything with the buffer protocol or
        DLPack. Their element types and shapes are kept; bytes become ``uint8``."""

    def release(self) -> None:  # noqa: B027  (nothing to do is the common case)
        """Called once after every :meth:`chunks`, when its buffers are no longer needed: within ``checkpoint()`` for
        host memory, else later and from another thread."""

    @abc.abstractmethod
    def load(self, chunks: Mapping[str, torch.Tensor]) -> None:
        """Take the state back: name of every chunk -> its values in host memory, yours to keep (``.numpy()``)."""


class ChunkedProvider(StateProvider):
    """Every chunk is a tensor; the Python value lists them."""

    handles = (ChunkedState,)

    def collect(self, value: ChunkedState, out: SectionBuilder) -> None:
        out.section.loads_afresh = True
        if out.context.restoring is not None:
            out.section.python = dict
            return  # nothing is loaded in place: the live state is whole until load() replaces it
        sizes = dict(value.sizes())
        chunks = value.chunks()
        try:
            stored = dict(_announced(sizes, iter(chunks), value.tier, out))
        except BaseException:
            value.release()
            raise
        out.section.transient = True
        out.section.owned = value.tier == "python"
        # Memory of the host that nothing holds on to is copied within checkpoint(); all other is read later.
        later = value.tier != "host" or any(held.group != COPIED for held in out.section.held)
        out.context.release_later(value.release, when_copied=later)
        python = {"tier": value.tier, "chunks": {key: {"$": "tensor", "name": name} for key, name in stored.items()}}
        out.section.python = lambda: python

    def apply(self, value: ChunkedState, name: str, context: Context, saved: Saved) -> ChunkedState:
        stored = saved.python(name)
        if stored is not None:
            value.load(saved.decode(stored["chunks"]))
        return value


def _announced(
    sizes: Mapping[str, int], chunks: Iterator[Any], tier: str, out: SectionBuilder
) -> Iterator[tuple[str, str]]:
    """(name of a chunk, stored name), having announced each as a tensor of the promised size."""
    for key, size_bytes in sizes.items():
        name = f"{out.section.name}.{key}"
        tensor = _as_tensor(next(chunks, b""), name)
        if tensor.nbytes != size_bytes:
            raise ValueError(f"{name}: chunks() gave {tensor.nbytes} bytes, sizes() announced {size_bytes}")
        if tensor.is_cpu == (tier == "device"):
            raise ValueError(f"{name} is on {tensor.device}, but its tier is {tier!r}")
        yield key, out.tensor(name, tensor)
    if next(chunks, None) is not None:
        raise ValueError(f"{out.section.name}: chunks() gave more than the {len(sizes)} chunks of sizes()")


def _as_tensor(chunk: Any, name: str) -> torch.Tensor:
    """The chunk's own memory as a tensor."""
    if isinstance(chunk, torch.Tensor):
        return chunk
    if hasattr(chunk, "__cuda_array_interface__") or (hasattr(chunk, "__dlpack__") and not _is_array(chunk)):
        return torch.from_dlpack(chunk)
    array = chunk if _is_array(chunk) else np.asarray(memoryview(chunk))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it may not be written to; nobody does
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: {error}; hand it out as bytes, or as a view of another type") from None


def _is_array(chunk: Any) -> bool:
    return isinstance(chunk, np.ndarray)
