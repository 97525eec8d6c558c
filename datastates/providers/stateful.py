"""Objects with ``state_dict()`` and ``load_state_dict()``: schedulers, scalers, samplers, data loaders, yours."""

from __future__ import annotations

from typing import Any

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider
from datastates.typed_json import encode


class StatefulProvider(StateProvider):
    """The ``Stateful`` protocol of ``torch.distributed.checkpoint``."""

    def accepts(self, value: object) -> bool:
        return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))

    def collect(self, value: Any, out: SectionBuilder) -> None:
        encoded = encode(value.state_dict(), out.section.name, out.tensor)
        out.section.python = lambda: encoded
        out.section.loads_afresh = True
        out.section.transient = bool(out.section.tensors)  # perhaps copies; who knows

    def apply(self, value: Any, name: str, context: Context, saved: Saved) -> Any:
        stored = saved.python(name)
        if stored is not None:
            value.load_state_dict(saved.decode(stored))
        return value
