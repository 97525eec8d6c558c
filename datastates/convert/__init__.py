"""Other formats: exports of a checkpoint and imports into one. One file per format; all go through sources and trees.

reader = datastates.open_checkpoint("runs/gpt")
convert.export(reader, Path("model.safetensors"), to="safetensors", only=["model.*"], dtype=torch.bfloat16)
convert.import_state(Path("old.pt"), Path("runs/gpt"), step=1000)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from datastates.convert.checkpoint import write_checkpoint
from datastates.convert.hugging_face import DEFAULT_SHARD_BYTES, export_hugging_face, hugging_face_source
from datastates.convert.publish import refuse_existing
from datastates.convert.safetensors_file import STEP_KEY, TIES_KEY, export_safetensors, safetensors_source
from datastates.convert.source import Progress, Source, cast, checkpoint_source, renamed, ties_of
from datastates.convert.torch_file import export_torch, gathered, torch_state
from datastates.convert.tree import Incoming, names_inside, parse_ties, state_tree, tied
from datastates.reader import CheckpointReader

EXPORTS = ("safetensors", "hf", "dcp", "torch")
IMPORTS = ("safetensors", "hf", "dcp", "torch")
STORED_WHOLE = ("tuple", "set", "frozenset", "deque", "numpy_tensor", "quantized")
"""Kinds of Python values that DCP pickles together with the tensors inside."""

__all__ = ["EXPORTS", "IMPORTS", "detect", "export", "import_state"]


def export(
    reader: CheckpointReader,
    path: Path,
    *,
    to: str,
    only: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    strip: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    config: Path | None = None,
    rank: int = 0,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint in another format: whole and synced, or not at all; nothing is ever overwritten.

    Args:
        reader: the checkpoint.
        path: a new file (``safetensors``, ``torch``) or directory (``hf``, ``dcp``).
        to: one of :data:`EXPORTS`.
        only: name patterns; all tensors if empty, for ``hf`` those of ``model.*``.
        dtype: what floating-point tensors become; ``None``: as they are. The parts of quantised tensors, and NumPy
            arrays that are stored as tensors, stay as they are.
        strip: taken away from the front of every name that has it; by default ``model.`` for ``hf``. For
            ``safetensors`` and ``hf``.
        max_shard_bytes: of the files of ``hf``.
        config: a ``config.json`` to put into an ``hf`` directory.
        rank: whose values, of those that every rank has of its own.
        allow_pickle: decode pickles in the Python state, for ``dcp`` and ``torch``.
        progress: called with bytes done and bytes in all.

    Raises:
        FileExistsError: there is something at ``path``.
        ValueError: a pattern selects nothing, or the format cannot hold what is selected.
        DamagedCheckpointError: bytes are not what was written.
    """
    if to not in EXPORTS:
        raise ValueError(f"cannot export to {to!r}, expected one of {', '.join(EXPORTS)}")
    refuse_existing(path)
    if to == "hf":
        only, strip = only or ["model.*"], "model." if strip is None else strip
    source = checkpoint_source(reader, only, rank)
    if dtype is not None:
        source = cast(source, dtype, names_inside(reader.encoded_python(rank), rank, ("numpy_tensor", "quantized")))
    ties = ties_of(reader, source.entries, rank)
    if to in ("hf", "safetensors"):
        source = renamed(source, _stripped(source, strip or ""))
        stripped = {a.removeprefix(strip or ""): b.removeprefix(strip or "") for a, b in ties.items()}
        metadata = {TIES_KEY: json.dumps(stripped)} if ties else {}
    if to == "hf":
        export_hugging_face(
            source, path, max_shard_bytes=max_shard_bytes, config=config, metadata=metadata, progress=progress
        )
    elif to == "safetensors":
        metadata |= {} if strip else {STEP_KEY: str(reader.manifest.step)}
        export_safetensors(source, path, metadata, progress)
    elif to == "dcp":
        from datastates.convert.dcp import export_dcp

        found = {name: torch.empty(e.shape, dtype=e.dtype, device="meta") for name, e in source.entries.items()}
        inside = names_inside(reader.encoded_python(rank), rank, STORED_WHOLE) & set(found)
        found |= gathered(renamed(source, {name: name for name in inside}), path.parent)
        tree = state_tree(reader, list(found), found.__getitem__, rank, allow_pickle)
        export_dcp(tree, source, path, ties, progress)
    else:
        names = list(source.entries)
        tensors = gathered(renamed(source, {name: name for name in names if name not in ties}), path.parent, progress)
        tree = state_tree(reader, names, lambda name: tensors[ties.get(name, name)], rank, allow_pickle)
        export_torch(tree, path)


def _stripped(source: Source, prefix: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in source.entries:
        other = names.setdefault(name.removeprefix(prefix), name)
        if other != name:
            raise ValueError(f"{other} and {name} would both be called {name.removeprefix(prefix)}; strip less")
    return names


def detect(path: Path) -> str:
    """Which of :data:`IMPORTS` a path looks like.

    Raises:
        ValueError: none of them.
    """
    if path.is_dir():
        return "dcp" if (path / ".metadata").exists() else "hf"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return "safetensors" if path.suffix == ".safetensors" else "torch"


def import_state(
    path: Path,
    directory: Path,
    *,
    step: int = 0,
    format: str | None = None,
    prefix: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make a checkpoint of ours from a file or directory of another format; returns where it is.

    Args:
        path: what to read.
        directory: a directory of checkpoints; made if there is none.
        step: the step that the state was taken after: ``restore()`` will return the next.
        format: one of :data:`IMPORTS`; found out if ``None``.
        prefix: put in front of every name; ``None``: ``model.`` where the state is one module's, else nothing.
        allow_pickle: read values that only pickle can read, which can run code.
        progress: called with bytes done and bytes in all.

    Raises:
        FileExistsError: the step is there already.
        ValueError: the file is not of that format, or holds what a checkpoint cannot; or a bad step.
    """
    if step < 0:
        raise ValueError(f"step is {step}, expected 0 or more")
    format = format or detect(path)
    if format not in IMPORTS:
        raise ValueError(f"cannot import {format!r}, expected one of {', '.join(IMPORTS)}")
    if format == "torch":
        incoming = torch_state(path, prefix, allow_pickle)
    elif format == "dcp":
        from datastates.convert.dcp import dcp_state

        incoming = dcp_state(path, prefix, allow_pickle)
    elif format == "hf":
        incoming = _tensors_alone(*hugging_face_source(path), prefix)
    else:
        incoming = _tensors_alone(*safetensors_source([path]), prefix)
    return write_checkpoint(incoming, directory, step, {"imported_from": path.name}, progress)


def _tensors_alone(source: Source, metadata: dict[str, str], prefix: str | None) -> Incoming:
    if prefix is None:
        prefix = "" if STEP_KEY in metadata else "model."
    ties = {f"{prefix}{a}": f"{prefix}{b}" for a, b in parse_ties(metadata.get(TIES_KEY, "{}")).items()}
    return tied(Incoming(renamed(source, {f"{prefix}{name}": name for name in source.entries}), {}, {}), ties)
