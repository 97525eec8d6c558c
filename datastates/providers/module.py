"""Modules: parameters, buffers and extra state, under the names of ``torch.distributed.checkpoint.state_dict``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider
from datastates.providers.tree import replace_content
from datastates.typed_json import encode

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names; not part of a fully qualified name."""


class ModuleProvider(StateProvider):
    """``{name}.{fully qualified name}``; lazy where an optimizer of the state writes the parameter."""

    handles = (torch.nn.Module,)

    def collect(self, value: torch.nn.Module, out: SectionBuilder) -> None:
        state = value.state_dict(keep_vars=True)
        canonical = name_cleaner(value)
        tensors = [item for item in state.values() if _is_plain(item)]
        extra = {}
        for key, item in state.items():
            name = f"{out.section.name}.{canonical(key)}"
            if _is_plain(item):
                out.tensor(name, item, out.context.group_of(item))
            else:
                extra[canonical(key)] = encode(item, name, out.tensor)
        out.section.python = lambda: extra or None
        guard = _guard(value, tensors)
        out.section.transient = (guard is None and bool(tensors)) or any(map(_is_made_anew, state.values()))
        if not extra:
            out.section.guard = guard

    def apply(self, value: torch.nn.Module, name: str, context: Context, saved: Saved) -> torch.nn.Module:
        extra = saved.python(name)
        if extra:
            canonical = name_cleaner(value)
            owners = {
                canonical(f"{path}._extra_state" if path else "_extra_state"): m for path, m in value.named_modules()
            }
            others = {key: saved.decode(item) for key, item in extra.items() if key not in owners}
            for key, item in extra.items():
                if key in owners:
                    owners[key].set_extra_state(saved.decode(item))
            if others:
                _load_others(value, others, canonical)
        return value


def _is_plain(item: object) -> bool:
    return isinstance(item, torch.Tensor) and not item.is_quantized


def _is_made_anew(item: object) -> bool:
    """Whether tensors inside are made by every ``state_dict()``, as far as one can tell: parts of quantised ones."""
    return isinstance(item, (tuple, list)) or (isinstance(item, torch.Tensor) and item.is_quantized)


def _load_others(module: torch.nn.Module, stored: dict[str, Any], canonical: Callable[[str], str]) -> None:
    """Take back what ``state_dict()`` hands out beside plain tensors and extra state: quantised and packed weights.

    Only ``load_state_dict`` knows where a packed weight goes; it gets the live tensors for all the rest.
    """
    state = module.state_dict(keep_vars=True)
    for key, item in state.items():
        if (found := stored.get(canonical(key))) is not None:
            state[key] = replace_content(item, found) if isinstance(item, torch.Tensor) else found
    if any(not isinstance(item, torch.Tensor) and canonical(key) in stored for key, item in state.items()):
        module.load_state_dict(state)


def parameter_names(module: torch.nn.Module) -> dict[int, str]:
    """id of every parameter -> its fully qualified name within ``module``."""
    canonical = name_cleaner(module)
    return {id(parameter): canonical(name) for name, parameter in module.named_parameters()}


def name_cleaner(module: torch.nn.Module) -> Callable[[str], str]:
    """A function from ``state_dict`` keys of ``module`` to fully qualified names: without the wrappers' parts."""
    hidden = {
        f"{path}.module".lstrip(".")
        for path, child in module.named_modules()
        if isinstance(child, (DistributedDataParallel, DataParallel))
    }

    def canonical(key: str) -> str:
        parts = key.split(".")
        return ".".join(
            part
            for i, part in enumerate(parts)
            if part not in _WRAPPERS and (part != "module" or ".".join(parts[: i + 1]) not in hidden)
        )

    return canonical


def _guard(module: torch.nn.Module, tensors: list[torch.Tensor]) -> Callable[[], bool] | None:
    """Whether every submodule still has the children, parameters and buffers it has now."""
    tables: list[dict[str, Any]] = []
    for child in module.modules():
        tables += [child._modules, child._parameters, child._buffers]
    members = {id(item) for table in tables for item in table.values()}
    if any(id(tensor) not in members for tensor in tensors):
        return None  # made by a hook: another one every time
    empty = [table for table in tables if not table]
    seen = [(table, list(table), list(table.values())) for table in tables if table]

    def unchanged() -> bool:
        if any(empty):  # a leaf has been given a child, or its first buffer
            return False
        for table, names, items in seen:
            if list(table) != names:  # one parameter may have another name, as torch.nn.utils.prune does it
                return False
            for now, then in zip(table.values(), items):  # noqa: B905  (hot: same lengths by the line above)
                if now is not then:
                    return False
        return True

    return unchanged
