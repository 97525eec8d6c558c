"""A tensor by itself, on any device, in any layout that has bytes."""

from __future__ import annotations

import torch

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider


class TensorProvider(StateProvider):
    """``state["ema"] = tensor``; restored in place."""

    handles = (torch.Tensor,)

    def collect(self, value: torch.Tensor, out: SectionBuilder) -> None:
        out.tensor(out.section.name, value, out.context.group_of(value))
        out.section.guard = lambda: True

    def apply(self, value: torch.Tensor, name: str, context: Context, saved: Saved) -> torch.Tensor:
        return value
