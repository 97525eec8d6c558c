"""Values made of several parts that have providers of their own: a trainer with its model, optimizer and counters."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, NoReturn

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider


class CompositeProvider(StateProvider):
    """Inherit, say what the parts are, and register it: each part is stored under ``{name}.{part}`` by its provider.

    Nothing else is needed for many fragments to become few extents: the parts of all values, of whatever kind, are laid
    out together in one file per rank, small neighbours share an extent, and Python values are serialised while the
    engine copies the tensors.
    """

    @abc.abstractmethod
    def parts(self, value: Any) -> Mapping[str, Any]:
        """Name -> part; dicts of parts may be nested. The same objects for as long as they are the state."""

    def put(self, value: Any, part: str, now: Any) -> None:
        """Replace an immutable part, a number for one, by what was restored; by default the attribute of that name."""
        setattr(value, part, now)

    def collect(self, value: Any, out: SectionBuilder) -> NoReturn:
        raise TypeError(
            f"{out.section.name} is a {type(value).__qualname__}, whose parts are stored one by one; wrap the parts, "
            "not the whole, in datastates.per_rank(...)"
        )

    def apply(self, value: Any, name: str, context: Context, saved: Saved) -> NoReturn:
        raise AssertionError(f"{name}: the parts are restored one by one")


class Parts(dict[str, Any]):
    """The parts of one value; what is put in here goes into the value."""

    def __init__(self, provider: CompositeProvider, value: Any) -> None:
        super().__init__(provider.parts(value))
        self._provider = provider
        self._value = value

    def __setitem__(self, part: str, now: Any) -> None:
        super().__setitem__(part, now)
        self._provider.put(self._value, part, now)
