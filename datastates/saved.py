"""A checkpoint being restored: what it holds, as the providers of one rank see it, and which live tensor takes what."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from datastates.bulk import without_gc
from datastates.capture import collect, leaves, make_context
from datastates.directory import parse_objects, read_objects
from datastates.dtypes import dtype_of
from datastates.errors import DamagedCheckpointError
from datastates.loading import Target
from datastates.manifest import Manifest, TensorInfo
from datastates.plan import Held, per_rank_name
from datastates.providers import Context, Section, Undo, provider_for
from datastates.typed_json import decode, special_objects
from oneflow_sbp import Box


class SavedCheckpoint:
    """A checkpoint as the providers of one rank see it."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        rank: int,
        allow_pickle: bool = False,
        only: Sequence[str] | None = None,
        strict: bool = True,
    ) -> None:
        self.strict = strict
        self.is_overwriting = False
        """Whether live tensors may have values of this checkpoint already."""
        self.path = path
        self.manifest = manifest
        self.saved_rank = rank % manifest.num_ranks
        self._allow_pickle = allow_pickle
        self.only = only
        self._tensors = manifest.tensors
        self._undo: list[Undo] = []
        self._has_own_values = any(name.startswith("per_rank.") for name in manifest.tensors)
        self._python: dict[str, Any] = {}
        self._special_of: dict[str, list[dict[str, Any]]] = {}
        self._loaded: dict[str, torch.Tensor] = {}
        if manifest.objects:
            with without_gc():
                where = str(path / manifest.objects[self.saved_rank].name)
                self._python = parse_objects(self._objects_text(), where)

    def _objects_text(self) -> bytes:
        return read_objects(self.path, self.manifest.objects[self.saved_rank])

    def stored_name(self, name: str) -> str:
        """Where this rank's value of ``name`` is: its own, the common one, or the one it is tied to."""
        if not self._has_own_values and name in self._tensors:
            return name
        for candidate in (name, self.manifest.aliases.get(name, name)):
            if self._has_own_values and (mine := per_rank_name(self.saved_rank, candidate)) in self.manifest.tensors:
                return mine
            if candidate in self.manifest.tensors:
                return candidate
        return name

    def names(self, prefix: str) -> list[str]:
        mine = per_rank_name(self.saved_rank, "")
        plain = dict.fromkeys(name.removeprefix(mine) for name in (*self.manifest.tensors, *self.manifest.aliases))
        return [name for name in plain if name.startswith(prefix) and selected(name, self.only)]

    def wants(self, name: str) -> bool:
        return selected(name, self.only)

    def dtype_and_shape(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        info = self.manifest.tensors[self.stored_name(name)]
        return dtype_of(info.dtype), info.shape

    def python(self, name: str) -> Any | None:
        return self._python.get(name)

    def decode(self, value: Any) -> Any:
        return decode(value, self._loaded.__getitem__, self._allow_pickle)

    def provide(self, name: str, tensor: torch.Tensor) -> None:
        """Say which tensor holds the loaded values of ``name``."""
        self._loaded[name] = tensor

    def provides(self, name: str) -> bool:
        return name in self._loaded

    def referenced(self, section: str) -> list[str]:
        """Names of the tensors that the Python values of a section refer to."""
        return [found["name"] for found in self._special(section) if found["$"] == "tensor"]

    def check_trusted(self, section: str) -> None:
        """Raise unless the Python values of a section can be decoded without running code, or the user allows it."""
        if not self._allow_pickle and any(found["$"] == "pickle" for found in self._special(section)):
            raise ValueError(
                f"{section} holds a pickle in {self.path}, which can run code; pass allow_pickle=True if you trust the "
                "checkpoint"
            )

    def _special(self, section: str) -> list[dict[str, Any]]:
        if section not in self._special_of:
            self._special_of[section] = special_objects(self.python(section))
        return self._special_of[section]

    def prepare(self, state: Mapping[str, Any], context: Context) -> None:
        """Let every provider create what the checkpoint has and the state lacks; see :meth:`roll_back`."""
        for name, value, _, _ in leaves(state):
            if selected_section(name, self.only):
                self.check_trusted(name)
                undo = provider_for(value, name).prepare(value, name, context, self)
                if undo is not None:
                    self._undo.append(undo)

    def roll_back(self) -> None:
        """Remove what :meth:`prepare` created: an older checkpoint may not have it."""
        while self._undo:
            self._undo.pop()()


@without_gc()
def match(saved: SavedCheckpoint, state: Mapping[str, Any]) -> list[Target]:
    """Pair live tensors with stored ones; create what the checkpoint has and the state lacks.

    Raises:
        ValueError: names, shapes or dtypes do not fit, or ``only`` selects nothing; no live value has been changed.
        DamagedCheckpointError: the checkpoint contradicts itself.
    """
    only = saved.only
    context = make_context(state, saved.saved_rank, restoring=saved)
    saved.prepare(state, context)
    sections = [collect(name, value, context) for name, value, _, _ in leaves(state) if selected_section(name, only)]
    targets: list[Target] = []
    missing: list[str] = []
    used: set[str] = set()
    stored_tensors = saved.manifest.tensors
    for section in sections:
        for held, tensor in zip(section.held, section.tensors, strict=True):
            name = held.name
            if only is not None and not selected(name, only):
                continue
            stored = saved.stored_name(name)
            info = stored_tensors.get(stored)
            if info is None:
                missing.append(name)
                continue
            used.add(stored)
            if info.shape == held.shape and info.dtype == held.dtype:
                _refuse_expanded(name, tensor)
                targets.append(Target(stored, tensor, held.box))
                saved.provide(name, section.wholes.get(name, tensor) if section.wholes else tensor)
            elif not section.loads_afresh:
                raise _misfit(saved, info, held)
        for alias, name in section.aliases.items():
            if saved.stored_name(alias) not in saved.manifest.tensors:
                missing.append(f"{alias} (tied to {name})")
        if not section.held and saved.python(section.name) is None and section.python() is not None:
            missing.append(section.name)
        _add_referenced(saved, section, targets, used)
    if saved.strict:
        _check_names(saved, state, missing, used)
        if only is not None and not used and not any(saved.python(section.name) for section in sections):
            raise ValueError(f"only={list(only)} selects nothing that the state and {saved.path} both have")
    return targets


def _refuse_expanded(name: str, tensor: torch.Tensor) -> None:
    """Elements that share memory cannot take values of their own; torch would say so half way through the restore."""
    if not tensor.is_contiguous() and any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ):
        raise ValueError(f"{name} is an expanded tensor, whose elements share memory; restore into a clone() of it")


def _misfit(saved: SavedCheckpoint, info: TensorInfo, held: Held) -> ValueError:
    """Containers and stateful objects may have changed shape since; modules and optimizers must not have."""
    return ValueError(
        f"{held.name} is {held.dtype}{list(held.shape)} in the live state but {info.dtype}{list(info.shape)} in "
        f"{saved.path}; build the model as it was saved, or restore a part with only="
    )


def _add_referenced(saved: SavedCheckpoint, section: Section, targets: list[Target], used: set[str]) -> None:
    """Tensors inside Python values that no live tensor takes are loaded into new host tensors."""
    for name in saved.referenced(section.name):
        if saved.provides(name):
            continue
        stored = saved.stored_name(name)
        if stored not in saved.manifest.tensors:
            raise DamagedCheckpointError(
                f"{saved.path}: {section.name} refers to the tensor {name}, which is not stored"
            )
        used.add(stored)
        dtype, shape = saved.dtype_and_shape(stored)
        tensor = torch.empty(shape, dtype=dtype)
        targets.append(Target(stored, tensor, Box.whole(shape)))
        saved.provide(name, tensor)


def _check_names(saved: SavedCheckpoint, state: Mapping[str, Any], missing: list[str], used: set[str]) -> None:
    """Raise if either side has names that the other lacks."""
    unused = [] if len(used) == len(saved.manifest.tensors) else _unused(saved, used)
    sections = {name for name, _, _, _ in leaves(state)}
    unused += [name for name in saved._python if name not in sections and selected_section(name, saved.only)]
    problems = []
    if missing:
        problems.append(f"not in the checkpoint: {_some(missing)}")
    if unused:
        problems.append(f"not in the live state: {_some(unused)}")
    if problems:
        raise ValueError(
            f"{saved.path} does not match the state: {'; '.join(problems)}. Pass strict=False to restore what both "
            "have, or only= to restore a part"
        )


def _unused(saved: SavedCheckpoint, used: set[str]) -> list[str]:
    """Stored names that no live tensor takes; other ranks' own values of a name that is taken do not count."""
    known = {_plain(name) for name in used}
    return [name for name in saved.manifest.tensors if _plain(name) not in known and selected(name, saved.only)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _plain(name: str) -> str:
    """Without ``per_rank.<rank>.``."""
    return name.split(".", 2)[2] if name.startswith("per_rank.") and name.count(".") > 1 else name


def selected(name: str, only: Sequence[str] | None) -> bool:
    """Whether some pattern selects the tensor ``name``."""
    return only is None or any(fnmatch.fnmatchcase(_plain(name), pattern) for pattern in only)


def selected_section(name: str, only: Sequence[str] | None) -> bool:
    """Whether a pattern can select anything under ``name``."""
    if only is None:
        return True
    return any(
        fnmatch.fnmatchcase(name, pattern)
        or all(fnmatch.fnmatchcase(a, b) for a, b in zip(name.split("."), pattern.split("."), strict=False))
        for pattern in only
    )
