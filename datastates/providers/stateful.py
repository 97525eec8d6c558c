"""Objects with ``state_dict()`` and ``load_state_dict()``: schedulers, scalers, samplers, data loaders, yours."""

from __future__ import annotations

from typing import Any

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider
from datastates.typed_json import LARGE_BYTES, TensorOut, encode


class StatefulProvider(StateProvider):
    """The ``Stateful`` protocol of ``torch.distributed.checkpoint``."""

    def accepts(self, value: object) -> bool:
        return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))

    def collect(self, value: Any, out: SectionBuilder) -> None:
        out.section.loads_afresh = True
        saved, name = out.context.restoring, out.section.name
        is_stored = saved is not None and saved.python(name) is not None
        if saved and is_stored and (_is_loader(value) or not saved.referenced(name)):
            return  # without tensors there is nothing to ask for
        encoded = encode(value.state_dict(), name, _large_only(out) if _is_loader(value) else out.tensor)
        out.section.python = lambda: encoded
        out.section.transient = bool(out.section.tensors)  # perhaps copies; who knows

    def apply(self, value: Any, name: str, context: Context, saved: Saved) -> Any:
        stored = saved.python(name)
        if stored is not None:
            value.load_state_dict(saved.decode(stored))
        return value


def _is_loader(value: object) -> bool:
    """Loaders of torchdata make an iterator for ``state_dict()``; that of its nodes then ignores what it is given."""
    return any(base.__module__.partition(".")[0] == "torchdata" for base in type(value).__mro__)


def _large_only(out: SectionBuilder) -> TensorOut:
    """Keeps small tensors, such as a generator's state, with the Python values.

    They are made anew for every checkpoint, and every new tensor has the whole state assembled again: 80 ms in every
    call where the state has 8,000 tensors.
    """
    return lambda path, tensor: out.tensor(path, tensor) if tensor.nbytes >= LARGE_BYTES else None
