"""What a state provider is, and the registry that finds one for a value.

A provider knows one kind of state: which tensors it consists of, which Python values belong to it, and how it takes
both back. How bytes move is none of its business. A value becomes one :class:`Section`, which the checkpointer keeps
for as long as its guard says that the same tensors are still the state.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from datastates.dtypes import dtype_name
from datastates.plan import Held, per_rank_name
from oneflow_sbp import Box, local_box

Json = Any
Undo = Callable[[], None]
COPIED = -1
"""Group of tensors that are copied before ``checkpoint()`` returns."""


class Context:
    """What providers may ask about the rest of the state: who writes a tensor, and what a parameter is called."""

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        optimizers: Iterable[torch.optim.Optimizer],
        rank: int = 0,
        lazy: Callable[[str], bool] = lambda name: False,
        restoring: Saved | None = None,
    ) -> None:
        self.modules = dict(modules)
        self.optimizers = list(optimizers)
        self.rank = rank
        self.declared_lazy = lazy
        self.restoring = restoring
        """The checkpoint for whose tensors places are collected; ``None`` where a state is collected to be stored."""
        self._releases: list[tuple[Callable[[], None], bool]] = []
        self._writer = {
            id(parameter): index
            for index, optimizer in enumerate(self.optimizers)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    @property
    def declared_group(self) -> int:
        """Group of tensors that the user declared lazy: every gate waits for them."""
        return len(self.optimizers)

    def release_later(self, release: Callable[[], None], when_copied: bool) -> None:
        """Have ``release`` called once this checkpoint no longer needs the memory of some state."""
        self._releases.append((release, when_copied))

    def take_releases(self) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
        """(those due when all that is copied at once has been, those due when everything has been copied)."""
        releases, self._releases = self._releases, []
        return [r for r, later in releases if not later], [r for r, later in releases if later]

    def group_of(self, tensor: torch.Tensor) -> int:
        """Index of the registered optimizer that writes ``tensor``, else :data:`COPIED`."""
        return self._writer.get(id(tensor), COPIED)


@dataclass
class Section:
    """The state of one value under one name, as its provider sees it now."""

    name: str
    held: list[Held] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    """[held] local tensors, the live ones."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Second names of tied tensors -> the name they are stored under."""
    python: Callable[[], Json] = lambda: None
    """Encodes the Python values as they are at the moment of the call."""
    guard: Callable[[], bool] | None = None
    """Cheap check that ``held`` and ``tensors`` still stand; ``None``: ask the provider every time."""
    parts: list[tuple[Any, torch.Tensor, int]] = field(default_factory=list)
    """(``DTensor``, its local tensor, that one's address) for those of :attr:`tensors` that are such parts."""
    wholes: dict[str, torch.Tensor] = field(default_factory=dict)
    """Name in :attr:`held` -> the ``DTensor``, for the same: what stands for that name in Python values."""
    transient: bool = False
    """Whether the tensors were made for this call, so that nobody else holds them."""
    owned: bool = False
    """Whether they were made for this call and nobody will write to them, so that they need no copy."""
    loads_afresh: bool = False
    """Whether ``apply`` takes tensors that do not fit the live ones, or have none, out of the decoded Python values."""


class SectionBuilder:
    """Collects a section. Handed to :meth:`StateProvider.collect`."""

    def __init__(self, name: str, context: Context, rank_alone: bool = False) -> None:
        self.section = Section(name)
        self.context = context
        self._rank_alone = rank_alone
        self._first_name: dict[int, str] = {}

    def tensor(self, name: str, tensor: torch.Tensor, group: int = COPIED) -> str:
        """Announce a tensor (or ``DTensor``) of the state; returns the name it is stored under.

        Args:
            name: fully qualified name, unique in the state.
            tensor: live value; a second announcement of one tensor makes ``name`` an alias.
            group: index of the optimizer that alone writes it, which makes it lazy; :data:`COPIED` otherwise.

        Raises:
            TypeError: a layout that has no contiguous bytes (sparse, quantised, meta).
        """
        if self._rank_alone:
            name = per_rank_name(self.context.rank, name)
        first = self._first_name.setdefault(id(tensor), name)
        if first != name:
            self.section.aliases[name] = first
            return first
        try:
            local, shape, box = local_box(tensor)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if self._rank_alone:  # its part is all that there is under this name
            shape = tuple(local.shape)
            box = Box.whole(shape)
        if local.layout != torch.strided or local.is_quantized or not (local.is_cpu or local.is_cuda):
            raise TypeError(
                f"{name} is a {local.layout} tensor of {local.dtype} on {local.device}; only dense tensors on CPU or "
                "CUDA can be stored: convert it, or give its owner state_dict()/load_state_dict() with dense tensors"
            )
        if group == COPIED and self.context.declared_lazy(name):
            group = self.context.declared_group
        if not local.is_contiguous() or local.is_conj() or local.is_neg():
            group = COPIED  # raw bytes of it do not exist: they are gathered when the checkpoint is taken
        self.section.held.append(Held(name, dtype_name(local.dtype), local.element_size(), shape, box, group))
        self.section.tensors.append(local)
        if local is not tensor:
            part: torch.Tensor = tensor._local_tensor  # type: ignore[attr-defined]
            self.section.parts.append((tensor, part, part.data_ptr()))
            self.section.wholes[name] = tensor
        return name


class Saved(Protocol):
    """A checkpoint that is being restored, as providers see it."""

    def names(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix`` of the tensors that are to be restored, as this rank calls them."""

    def dtype_and_shape(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Of one of :meth:`names`, global."""

    def python(self, name: str) -> Json | None:
        """Encoded Python values of the section ``name``; ``None`` if the checkpoint has none."""

    def decode(self, value: Json) -> Any:
        """Decode, with tensors resolved to loaded ones."""

    def referenced(self, section: str) -> list[str]:
        """Names of the tensors inside the Python values of a section."""

    def wants(self, name: str) -> bool:
        """Whether what is called ``name`` is to be restored at all; ``only=`` may leave it out."""

    @property
    def strict(self) -> bool:
        """Whether the state is to become what was saved, and not just to take what both have."""


class StateProvider(abc.ABC):
    """Knows one kind of state. Stateless; one instance serves all values of its types."""

    handles: ClassVar[tuple[type, ...]] = ()
    exact: ClassVar[bool] = False
    """Whether a subclass of what it handles that says for itself how it is saved goes to another provider."""
    applies_last: ClassVar[bool] = False
    """Whether ``apply`` must come after all others, whatever the order of the state; see :meth:`comes_last`."""

    @abc.abstractmethod
    def collect(self, value: Any, out: SectionBuilder) -> None:
        """Announce the tensors of ``value`` to ``out``, and set ``out.section.python`` and ``.guard``."""

    def comes_last(self, value: Any) -> bool:
        """Whether ``apply`` of ``value`` must come after all others."""
        return self.applies_last

    def prepare(self, value: Any, name: str, context: Context, saved: Saved) -> Undo | None:
        """Before a restore collects: create tensors that the checkpoint has and ``value`` does not have yet.

        Returns:
            What removes them again, should this checkpoint turn out not to fit, or to be damaged.

        Raises:
            ValueError: the checkpoint does not fit ``value``; nothing was created.
        """
        return None

    @abc.abstractmethod
    def apply(self, value: Any, name: str, context: Context, saved: Saved) -> Any:
        """After all tensors have been loaded in place: take the Python values back.

        Returns:
            The object that stands for ``value`` now; ``value`` itself unless it is immutable.
        """


_registry: list[StateProvider] = []
_by_type: dict[type, StateProvider] = {}


def register_provider(provider: StateProvider) -> None:
    """Make ``provider`` serve the types it ``handles``, and their subclasses.

    The most specific type wins, whatever the order of registration; for one type, the last one registered.
    """
    _registry.insert(0, provider)
    _by_type.update(dict.fromkeys(provider.handles, provider))


def provider_for(value: object, name: str) -> StateProvider:
    """The provider for ``value``.

    Raises:
        TypeError: none is registered; the message says how to do that.
    """
    by_type = provider_by_type(value)
    if by_type is not None and not (by_type.exact and type(value) not in by_type.handles):
        return by_type
    for provider in _registry:
        if provider_accepts(provider, value):
            return provider
    if by_type is not None:
        return by_type
    raise TypeError(
        f"state[{name!r}] is a {type(value).__module__}.{type(value).__qualname__}, which no state provider handles; "
        "give it state_dict() and load_state_dict(), or register a provider with datastates.register_provider(...)"
    )


def provider_by_type(value: object) -> StateProvider | None:
    """That of the value's nearest base class; abstract classes that only ``isinstance`` knows about come last."""
    for base in type(value).__mro__:
        if base in _by_type:
            return _by_type[base]
    return next((provider for provider in _registry if isinstance(value, provider.handles)), None)


def provider_accepts(provider: StateProvider, value: object) -> bool:
    """Whether a provider takes ``value`` for what it can do rather than for its type."""
    accepts = getattr(provider, "accepts", None)
    return bool(accepts and accepts(value))
