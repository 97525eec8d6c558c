"""State that belongs to one rank alone: never taken for a replica of another rank's."""

from __future__ import annotations

from typing import Any

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider, Undo, provider_for


class PerRank:
    """See :func:`per_rank`."""

    def __init__(self, value: Any) -> None:
        self.value = value


def per_rank(value: Any) -> PerRank:
    """Mark state as this rank's own, although other ranks use the same name.

    Its tensors are stored for every rank, under ``per_rank.<rank>.<name>``, and come back to the same rank.
    """
    return PerRank(value)


class PerRankProvider(StateProvider):
    """Asks the provider of the wrapped value, and keeps its tensors under names of this rank."""

    handles = (PerRank,)

    def collect(self, value: PerRank, out: SectionBuilder) -> None:
        inner = SectionBuilder(out.section.name, out.context, rank_alone=True)
        wrapped = value.value
        provider_for(wrapped, out.section.name).collect(wrapped, inner)
        out.section = inner.section
        if (guard := inner.section.guard) is not None:
            out.section.guard = lambda: value.value is wrapped and guard()

    def comes_last(self, value: PerRank) -> bool:
        return provider_for(value.value, "").comes_last(value.value)

    def prepare(self, value: PerRank, name: str, context: Context, saved: Saved) -> Undo | None:
        return provider_for(value.value, name).prepare(value.value, name, context, saved)

    def apply(self, value: PerRank, name: str, context: Context, saved: Saved) -> PerRank:
        value.value = provider_for(value.value, name).apply(value.value, name, context, saved)
        return value
