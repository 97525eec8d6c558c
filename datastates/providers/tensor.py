"""A tensor by itself, on any device, in any layout that has bytes."""

from __future__ import annotations

import torch

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider
from datastates.providers.tree import replace_content
from datastates.typed_json import encode


class TensorProvider(StateProvider):
    """``state["ema"] = tensor``; restored in place. A quantised one is stored in parts, named by its Python value."""

    handles = (torch.Tensor,)

    def collect(self, value: torch.Tensor, out: SectionBuilder) -> None:
        if value.is_quantized:
            encoded = encode(value, out.section.name, out.tensor)
            out.section.python = lambda: encoded
        else:
            out.tensor(out.section.name, value, out.context.group_of(value))
            out.section.guard = lambda: True

    def apply(self, value: torch.Tensor, name: str, context: Context, saved: Saved) -> torch.Tensor:
        stored = saved.python(name)
        return value if stored is None else replace_content(value, saved.decode(stored))
