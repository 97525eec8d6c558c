"""State as nested dicts, as torch.save and DCP keep it, and back to names, tensors and typed JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datastates.convert.source import Entry, Source, Stream, names_for_rank
from datastates.reader import CheckpointReader
from datastates.typed_json import decode, encode, special_objects

Tree = dict[str, Any]
_OPTIMIZER = {"state", "param_groups"}


def state_tree(
    reader: CheckpointReader,
    names: Sequence[str],
    tensor_of: Callable[[str], torch.Tensor],
    rank: int = 0,
    allow_pickle: bool = False,
) -> Tree:
    """The saved state as nested dicts.

    A section of Python values comes back as it was, tensors inside included; an optimizer as
    ``get_optimizer_state_dict`` gives it, under the names of its parameters; a module as ``{section: state_dict}``.

    Args:
        reader: the checkpoint.
        names: which tensors, as rank ``rank`` calls them; sections of which none is asked for stay out, unless they
            hold no tensor and ``names`` are all there are.
        tensor_of: what stands for the tensor of a name.
        rank: whose Python state.
        allow_pickle: decode pickles inside the Python state.
    """
    tree: Tree = {}
    wanted = set(names)
    everything = wanted >= set(names_for_rank(reader, rank))
    used: set[str] = set()
    python = reader.encoded_python(rank)
    whole = wanted | set(python)
    for section, encoded in python.items():
        inside = names_inside(encoded, rank)
        if is_optimizer(encoded) and not inside:  # with tensors inside, it is a state_dict() in a dict of the user's
            state = [name for name in names if name.startswith(f"{section}.state.")]
            if state or everything:
                _put(tree, section, _optimizer(section, encoded, state, tensor_of, allow_pickle), whole)
                used.update(state)
        elif inside <= wanted and (inside or everything):
            found = decode(encoded, lambda name: tensor_of(name.removeprefix(f"per_rank.{rank}.")), allow_pickle)
            if isinstance(found, dict) and not inside:
                found = dict(found)  # extra state of a module: its tensors join it below
            _put(tree, section, found, whole)
            used |= inside
    for name in names:
        if name not in used:
            section, _, rest = name.partition(".")
            _put_tensor(tree, section, rest, tensor_of(name))
    return tree


def names_inside(encoded: Any, rank: int, kinds: Collection[str] | None = None) -> set[str]:
    """Names of the tensors in a section's Python values; only of those inside values of some ``kinds``, if given."""
    special = special_objects(encoded)
    if kinds is not None:
        special = [inner for item in special if item["$"] in kinds for inner in special_objects(item.get("v"))]
    return {item["name"].removeprefix(f"per_rank.{rank}.") for item in special if item["$"] == "tensor"}


def is_optimizer(value: Any) -> bool:
    """Whether a value is an optimizer's state dict, or what its provider stores."""
    return isinstance(value, dict) and _OPTIMIZER <= set(value) <= _OPTIMIZER | {"keys", "shared"}


def _optimizer(
    section: str, encoded: Any, state: Sequence[str], tensor_of: Callable[[str], torch.Tensor], allow_pickle: bool
) -> Tree:
    found: Tree = decode(encoded, None, allow_pickle)
    for name in state:
        parameter, _, key = name.removeprefix(f"{section}.state.").rpartition(".")
        found["state"].setdefault(parameter, {})[key] = tensor_of(name)
    keys = found.pop("keys", {})
    named = {p: {keys.get(text, text): item for text, item in items.items()} for p, items in found["state"].items()}
    shared = found.pop("shared", {})
    return {**found, "state": {**named, **shared}}


def _put(tree: Tree, section: str, value: Any, whole: Collection[str]) -> None:
    """Nested, unless something on the way is a value of the state itself."""
    *outer, last = section.split(".")
    if any(".".join(outer[:length]) in whole for length in range(1, len(outer) + 1)):
        tree[section] = value
        return
    for key in outer:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _put_tensor(tree: Tree, section: str, rest: str, tensor: torch.Tensor) -> None:
    if not rest:
        tree[section] = tensor
        return
    inner = tree.setdefault(section, {})
    if isinstance(inner, dict):
        inner[rest] = tensor
    else:
        tree[f"{section}.{rest}"] = tensor


@dataclass(frozen=True)
class NamedState:
    """A state taken apart as a checkpoint keeps it."""

    tensors: Mapping[str, torch.Tensor]
    python: Mapping[str, Any]
    """Section -> typed JSON."""
    aliases: Mapping[str, str]
    """Tied names -> the name of the tensor."""


@dataclass(frozen=True)
class Incoming:
    """State on its way into a checkpoint."""

    source: Source
    """Under the names that the checkpoint gives them."""
    python: Mapping[str, Any]
    """Section -> typed JSON."""
    aliases: Mapping[str, str]
    """Tied names -> the name of the tensor."""


def in_memory(state: NamedState) -> Incoming:
    """A state whose tensors can be read at any time: in memory, or mapped."""
    entries = {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.tensors.items()}

    def stream(names: Sequence[str]) -> Stream:
        return ((name, state.tensors[name]) for name in names)

    return Incoming(Source(entries, stream), state.python, state.aliases)


def named_state(tree: Mapping[str, Any], prefix: str) -> NamedState:
    """Nested dicts of tensors and Python values, named as a checkpoint of the same state would name them.

    Args:
        tree: a key for every section of the state, or one module's ``state_dict()``.
        prefix: put in front of every name.

    Raises:
        TypeError: a value that typed JSON does not know.
        ValueError: two tensors would have one name, or an optimizer's parameters have numbers and no names.
    """
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}

    def tensor_out(name: str, tensor: torch.Tensor) -> str:
        if name in tensors or name in aliases:
            raise ValueError(f"two tensors would have the name {name}; rename a key of the state")
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} is a {tensor.layout} tensor; only dense ones can be stored: convert it before")
        same = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
        known = first.setdefault(same, name) if tensor.numel() and not tensor.is_meta else name
        if known == name:
            tensors[name] = tensor
        else:
            aliases[name] = known
        return known

    python = {}
    for section, value in _sections(tree, prefix):
        if section in python:
            raise ValueError(f"two values would have the name {section}; rename a key of the state")
        if is_optimizer(value) and isinstance(value["param_groups"], list):
            encoded = _without_tensors(encode(_taken_apart(named_optimizer(value, tree, section)), section, tensor_out))
        else:
            encoded = encode(value, section, tensor_out)
        if not _only_tensors(encoded):
            python[section] = encoded
    return NamedState(tensors, python, aliases)


def tied(incoming: Incoming, ties: Mapping[str, str]) -> Incoming:
    """The same, with repeated tensors (further name -> the tensor's first) as aliases."""
    entries = incoming.source.entries
    known = {a: b for a, b in ties.items() if b not in ties and a in entries and entries.get(b) == entries[a]}
    left = {name: entry for name, entry in entries.items() if name not in known}
    return Incoming(Source(left, incoming.source.stream), incoming.python, {**incoming.aliases, **known})


def parse_ties(text: str) -> dict[str, str]:
    """Tied names -> the tensor's, as an export noted them.

    Raises:
        ValueError: it is something else.
    """
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"expected the names of tied tensors as JSON, got {text!r:.100}")
    return found


def default_prefix(tree: Mapping[str, Any], prefix: str | None) -> str:
    """``model.`` for one module's state, nothing for a dict of sections, unless the user says otherwise."""
    if prefix is not None:
        return prefix
    return "model." if tree and all(isinstance(value, torch.Tensor) for value in tree.values()) else ""


def _sections(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """What becomes a section each: the values of the outermost dict, or all of it under the prefix."""
    section = prefix.rstrip(".")
    if section:
        yield section, tree
    else:
        for key, value in tree.items():
            yield str(key), value


def _only_tensors(encoded: Any) -> bool:
    """Whether nothing but tensors is in it: a module's state, which has no Python values."""
    if isinstance(encoded, dict):
        return encoded.get("$") == "tensor" or ("$" not in encoded and all(map(_only_tensors, encoded.values())))
    return False


def _taken_apart(optimizer: Tree) -> Tree:
    """As the optimizer's provider names it: keys that are no strings, and state of no parameter, beside the rest."""
    parameters = {name for group in optimizer["param_groups"] for name in group["params"]}
    state = {name: items for name, items in optimizer["state"].items() if name in parameters}
    keys = {str(key): key for items in state.values() for key in items if not isinstance(key, str)}
    found: Tree = {name: {str(key): item for key, item in items.items()} for name, items in state.items()}
    apart = {"state": found, "param_groups": optimizer["param_groups"]}
    shared = {key: item for key, item in optimizer["state"].items() if key not in parameters}
    return {**apart, **({"keys": keys} if keys else {}), **({"shared": shared} if shared else {})}


def _without_tensors(optimizer: Tree) -> Tree:
    """As the optimizer's provider writes it: the tensors are known by their names."""
    plain = {
        parameter: {key: item for key, item in items.items() if not _is_tensor(item)}
        for parameter, items in optimizer["state"].items()
    }
    return {**optimizer, "state": {parameter: items for parameter, items in plain.items() if items}}


def _is_tensor(item: Any) -> bool:
    return isinstance(item, dict) and item.get("$") == "tensor"


def named_optimizer(value: Tree, tree: Mapping[str, Any], section: str) -> Tree:
    """An optimizer's state under the names of its parameters, where it has them under numbers.

    Names come from the groups' ``param_names``, else from the only module in ``tree`` whose tensors fit in order.
    """
    numbers = [number for group in value["param_groups"] for number in group["params"]]
    if not any(isinstance(number, int) for number in numbers):
        return value
    names = [name for group in value["param_groups"] for name in group.get("param_names", ())]
    if len(names) != len(numbers):
        names = _names_by_shape(value, numbers, tree, section)
    name_of = dict(zip(numbers, names, strict=True))
    groups = [
        {**{k: v for k, v in group.items() if k != "param_names"}, "params": [name_of[n] for n in group["params"]]}
        for group in value["param_groups"]
    ]
    return {"state": {name_of.get(n, n): items for n, items in value["state"].items()}, "param_groups": groups}


def _names_by_shape(value: Tree, numbers: Sequence[int], tree: Mapping[str, Any], section: str) -> list[str]:
    """Parameters in the order of a module's tensors, buffers passed over: the moments' shapes say which those are."""
    shapes = [_moment_shape(value["state"].get(number, {})) for number in numbers]
    fits = []
    for module in tree.values():
        if isinstance(module, dict) and module and all(isinstance(item, torch.Tensor) for item in module.values()):
            floating = {
                name: tuple(tensor.shape)
                for name, tensor in module.items()
                if tensor.is_floating_point() and not name.endswith((".running_mean", ".running_var"))
            }
            if len(floating) == len(numbers) and all(
                expected in (None, shape) for expected, shape in zip(shapes, floating.values(), strict=True)
            ):
                fits.append(list(floating))
    if len(fits) != 1:
        raise ValueError(
            f"{section} is an optimizer whose {len(numbers)} parameters have numbers, and {len(fits)} modules beside "
            "it fit them; save get_optimizer_state_dict(), or build the optimizer with model.named_parameters()"
        )
    return fits[0]


def _moment_shape(items: Mapping[str, Any]) -> tuple[int, ...] | None:
    shapes = [tuple(item.shape) for key, item in items.items() if isinstance(item, torch.Tensor) and key != "step"]
    return shapes[0] if shapes else None
