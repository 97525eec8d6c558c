"""Optimizers: state tensors and parameter groups, named after the parameters and not after their positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider, Undo
from datastates.providers.module import parameter_names
from datastates.typed_json import encode


class OptimizerProvider(StateProvider):
    """``{name}.state.{parameter}.{key}``, as ``get_optimizer_state_dict`` names them, without its first step.

    Python values: ``param_groups``; ``state``, the values that are not tensors; ``keys``, the keys that are not
    strings; ``shared``, the state that belongs to no parameter.
    """

    handles = (torch.optim.Optimizer,)

    def collect(self, value: torch.optim.Optimizer, out: SectionBuilder) -> None:
        name = out.section.name
        group = out.context.optimizers.index(value) if value in out.context.optimizers else -1
        names = _parameter_names(value, out.context)
        plain: list[tuple[str, torch.Tensor, Any]] = []  # values that are not tensors: encoded anew every time
        written: dict[str, Any] = {}
        for parameter, fqn in names:
            items = value.state.get(parameter, {})
            for key, item in items.items():
                if type(key) is not type(written.setdefault(str(key), key)):
                    raise ValueError(
                        f"{name}.state.{fqn} has the key {key!r} and others {written[str(key)]!r}; rename one"
                    )
                if isinstance(item, torch.Tensor) and not item.is_quantized:
                    out.tensor(f"{name}.state.{fqn}.{key}", item, group)
                else:
                    plain.append((fqn, parameter, key))
        fqns = [[fqn for _, fqn in part] for part in _split(names, value)]
        odd_keys = {text: encode(key, f"{name}.state") for text, key in written.items() if type(key) is not str}

        def python() -> Any:
            state: dict[str, Any] = {}
            for fqn, parameter, key in plain:
                item = value.state[parameter][key]  # of the dict that is there now: it may be another one at every step
                state.setdefault(fqn, {})[str(key)] = encode(item, f"{name}.state.{fqn}.{key}")
            encoded: dict[str, Any] = {"param_groups": _encode_groups(value, fqns, name), "state": state}
            if odd_keys:
                encoded["keys"] = odd_keys
            if shared := _shared_state(value):
                encoded["shared"] = encode(shared, f"{name}.state")
            return encoded

        out.section.python = python
        out.section.guard = _guard(value)

    def prepare(self, value: torch.optim.Optimizer, name: str, context: Context, saved: Saved) -> Undo:
        """Create the state tensors that the first ``step()`` would create; forget those of later first steps."""
        _check_groups(value, name, saved)
        created: list[tuple[torch.Tensor, Any]] = []
        parameters = {fqn: parameter for parameter, fqn in _parameter_names(value, context)}
        options = {id(p): group for group in value.param_groups for p in group["params"]}
        keys = _odd_keys(name, saved)
        prefix = f"{name}.state."
        for stored in saved.names(prefix):
            fqn, _, text = stored.removeprefix(prefix).rpartition(".")
            key = keys.get(text, text)
            parameter = parameters.get(fqn)
            if parameter is None or key in value.state.get(parameter, {}):
                continue
            dtype, shape = saved.dtype_and_shape(stored)
            value.state[parameter][key] = _new_state(parameter, options[id(parameter)], key, dtype, shape)
            created.append((parameter, key))
        forgotten = _forget_later_state(value, name, parameters, saved)

        def undo() -> None:
            for parameter, key in created:
                del value.state[parameter][key]
                if not value.state[parameter]:  # or the optimizer would think that it has been initialised
                    del value.state[parameter]
            value.state.update(forgotten)

        return undo

    def apply(self, value: torch.optim.Optimizer, name: str, context: Context, saved: Saved) -> torch.optim.Optimizer:
        python = saved.python(name)
        if python is None:
            return value
        parameters = {fqn: parameter for parameter, fqn in _parameter_names(value, context)}
        keys = _odd_keys(name, saved)
        for fqn, items in python["state"].items():
            if fqn in parameters:  # with strict=False the live optimizer may have fewer
                for text, item in items.items():
                    value.state[parameters[fqn]][keys.get(text, text)] = saved.decode(item)
        if "shared" in python:
            value.state.update(saved.decode(python["shared"]))
        for group, stored in zip(value.param_groups, python["param_groups"], strict=True):
            for key, item in stored.items():
                if key != "params":
                    _set_option(group, key, saved.decode(item))
        return value


def _shared_state(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    """What some optimizers keep beside the state of their parameters, under keys of their own."""
    return {key: item for key, item in optimizer.state.items() if not isinstance(key, torch.Tensor)}


def _odd_keys(name: str, saved: Saved) -> dict[str, Any]:
    """Text of a key in the names -> that key, where it is no string."""
    stored = (saved.python(name) or {}).get("keys", {})
    return {text: saved.decode(key) for text, key in stored.items()}


def _forget_later_state(
    optimizer: torch.optim.Optimizer, name: str, parameters: Mapping[str, torch.Tensor], saved: Saved
) -> dict[Any, Any]:
    """Take away the state of parameters that had none when the checkpoint was taken: their first step comes again.

    Returns:
        What was taken away.
    """
    python = saved.python(name)
    if python is None or not saved.strict:
        return {}
    prefix = f"{name}.state."
    stored = {found.removeprefix(prefix).rpartition(".")[0] for found in saved.names(prefix)} | set(python["state"])
    later: list[Any] = [
        parameter
        for fqn, parameter in parameters.items()
        if fqn not in stored and all(saved.wants(f"{prefix}{fqn}.{key}") for key in optimizer.state.get(parameter, {}))
    ]
    if "shared" not in python:
        later += _shared_state(optimizer)
    return {key: optimizer.state.pop(key) for key in later if key in optimizer.state}


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
    parameter: torch.Tensor, group: dict[str, Any], key: object, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    """A tensor laid out like the parameter if it has its shape; where ``Optimizer.load_state_dict`` would put it."""
    if tuple(parameter.shape) == shape and key != "step":
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    on_device = key != "step" or group.get("capturable") or group.get("fused")
    return torch.zeros(shape, dtype=dtype, device=parameter.device if on_device else "cpu")


def _guard(optimizer: torch.optim.Optimizer) -> Callable[[], bool]:
    """Whether the groups still hold these parameters, and every parameter's state these objects."""
    groups = [(group["params"], list(group["params"])) for group in optimizer.param_groups]
    states = [(p, dict(optimizer.state.get(p, {}))) for _, params in groups for p in params]
    held = [
        (
            p,
            {key: item for key, item in items.items() if isinstance(item, torch.Tensor)},
            [key for key, item in items.items() if not isinstance(item, torch.Tensor)],
            len(items),
        )
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
        for parameter, tensors, others, count in held:
            live = state.get(parameter, {})
            if len(live) != count:
                return False
            for key, item in tensors.items():
                if live.get(key) is not item:
                    return False
            for key in others:
                if key not in live:
                    return False
        return True

    return unchanged
