"""Optimizers: state tensors and parameter groups, named after the parameters and not after their positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider, Undo
from datastates.providers.module import parameter_names
from datastates.typed_json import encode


class OptimizerProvider(StateProvider):
    """``{name}.state.{parameter}.{key}``, as ``get_optimizer_state_dict`` names them, without its first step."""

    handles = (torch.optim.Optimizer,)

    def collect(self, value: torch.optim.Optimizer, out: SectionBuilder) -> None:
        name = out.section.name
        group = out.context.optimizers.index(value) if value in out.context.optimizers else -1
        names = _parameter_names(value, out.context)
        plain: list[tuple[str, dict[Any, Any], Any]] = []  # values that are not tensors: encoded anew every time
        for parameter, fqn in names:
            items = value.state.get(parameter, {})
            for key, item in items.items():
                if isinstance(item, torch.Tensor):
                    out.tensor(f"{name}.state.{fqn}.{key}", item, group)
                else:
                    plain.append((fqn, items, key))
        fqns = [[fqn for _, fqn in part] for part in _split(names, value)]

        def python() -> Any:
            state: dict[str, Any] = {}
            for fqn, items, key in plain:
                state.setdefault(fqn, {})[str(key)] = encode(items[key], f"{name}.state.{fqn}.{key}")
            return {"param_groups": _encode_groups(value, fqns, name), "state": state}

        out.section.python = python
        out.section.guard = _guard(value)

    def prepare(self, value: torch.optim.Optimizer, name: str, context: Context, saved: Saved) -> Undo:
        """Create the state tensors that the first ``step()`` would create."""
        _check_groups(value, name, saved)
        created: list[tuple[torch.Tensor, str]] = []
        parameters = {fqn: parameter for parameter, fqn in _parameter_names(value, context)}
        options = {id(p): group for group in value.param_groups for p in group["params"]}
        prefix = f"{name}.state."
        for stored in saved.names(prefix):
            fqn, _, key = stored.removeprefix(prefix).rpartition(".")
            parameter = parameters.get(fqn)
            if parameter is None or key in value.state.get(parameter, {}):
                continue
            dtype, shape = saved.dtype_and_shape(stored)
            value.state[parameter][key] = _new_state(parameter, options[id(parameter)], key, dtype, shape)
            created.append((parameter, key))

        def undo() -> None:
            for parameter, key in created:
                del value.state[parameter][key]
                if not value.state[parameter]:  # or the optimizer would think that it has been initialised
                    del value.state[parameter]

        return undo

    def apply(self, value: torch.optim.Optimizer, name: str, context: Context, saved: Saved) -> torch.optim.Optimizer:
        python = saved.python(name)
        if python is None:
            return value
        parameters = {fqn: parameter for parameter, fqn in _parameter_names(value, context)}
        for fqn, items in python["state"].items():
            if fqn in parameters:  # with strict=False the live optimizer may have fewer
                for key, item in items.items():
                    value.state[parameters[fqn]][key] = saved.decode(item)
        for group, stored in zip(value.param_groups, python["param_groups"], strict=True):
            for key, item in stored.items():
                if key != "params":
                    _set_option(group, key, saved.decode(item))
        return value


def _check_groups(optimizer: torch.optim.Optimizer, name: str, saved: Saved) -> None:
    python = saved.python(name)
    if python is not None and len(python["param_groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"{name} has {len(optimizer.param_groups)} parameter groups, the checkpoint {len(python['param_groups'])}; "
            "build the optimizer with the same groups"
        )


def _set_option(group: dict[str, Any], key: str, item: Any) -> None:
    """In place for tensors (``lr`` of a capturable optimizer), which others may hold."""
    live = group.get(key)
    if isinstance(live, torch.Tensor) and isinstance(item, torch.Tensor):
        live.copy_(item)
    else:
        group[key] = item


def _parameter_names(optimizer: torch.optim.Optimizer, context: Context) -> list[tuple[torch.Tensor, str]]:
    """(parameter, name) in the order of the groups.

    Names are those within the module; of several modules, the module's own name comes first. A parameter of no module
    is named by its position, and so are only those.
    """
    ordered = [(g, i, p) for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])]
    found: dict[int, tuple[str, str]] = {}
    for module_name, module in context.modules.items():
        for key, fqn in parameter_names(module).items():
            found.setdefault(key, (module_name, fqn))
    owners = {found[id(p)][0] for _, _, p in ordered if id(p) in found}
    names = []
    for g, i, parameter in ordered:
        owner, fqn = found.get(id(parameter), ("", f"group{g}.param{i}"))
        names.append((parameter, fqn if len(owners) < 2 or not owner else f"{owner}.{fqn}"))
    return names


def _split(
    names: list[tuple[torch.Tensor, str]], optimizer: torch.optim.Optimizer
) -> list[list[tuple[torch.Tensor, str]]]:
    parts, at = [], 0
    for group in optimizer.param_groups:
        parts.append(names[at : at + len(group["params"])])
        at += len(group["params"])
    return parts


def _encode_groups(optimizer: torch.optim.Optimizer, fqns: list[list[str]], name: str) -> list[dict[str, Any]]:
    encoded = []
    for index, (group, params) in enumerate(zip(optimizer.param_groups, fqns, strict=True)):
        path = f"{name}.param_groups.{index}"
        options = {key: encode(item, f"{path}.{key}") for key, item in group.items() if key != "params"}
        encoded.append({**options, "params": params})
    return encoded


def _new_state(
    parameter: torch.Tensor, group: dict[str, Any], key: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    """A tensor laid out like the parameter if it has its shape; else on the host, as ``step`` is by default."""
    if tuple(parameter.shape) == shape and key != "step":
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    on_device = group.get("capturable") or group.get("fused")
    return torch.zeros(shape, dtype=dtype, device=parameter.device if on_device else "cpu")


def _guard(optimizer: torch.optim.Optimizer) -> Callable[[], bool]:
    """Whether the groups still hold these parameters, and every parameter's state these objects."""
    groups = [(group["params"], list(group["params"])) for group in optimizer.param_groups]
    states = [(p, dict(optimizer.state.get(p, {}))) for _, params in groups for p in params]
    tensors = [
        (p, {key: item for key, item in items.items() if isinstance(item, torch.Tensor)}, len(items))
        for p, items in states
    ]

    def unchanged() -> bool:
        if len(groups) != len(optimizer.param_groups):
            return False
        for group, (params, seen) in zip(optimizer.param_groups, groups, strict=True):
            if group["params"] is not params or len(params) != len(seen):
                return False
            for now, then in zip(params, seen):  # noqa: B905  (hot: same lengths by the line above)
                if now is not then:
                    return False
        state = optimizer.state
        for parameter, items, count in tensors:
            live = state.get(parameter, {})
            if len(live) != count:
                return False
            for key, item in items.items():
                if live.get(key) is not item:
                    return False
        return True

    return unchanged
