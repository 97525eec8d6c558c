"""safetensors files: one, written in a stream; and as a source."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from datastates.convert.publish import new_file
from datastates.convert.source import Entry, Progress, Source, Stream, raw_bytes, row_boxes
from datastates.dtypes import SAFETENSORS_NAMES, dtype_name

ALIGNMENT_BYTES = 8
STEP_KEY = "elastates_step"
"""In the metadata of a file that holds tensors under the names they have in a checkpoint of ours."""
TIES_KEY = "elastates_ties"
"""In the metadata: JSON of tied names -> the tensor's; values are repeated, because no other reader knows of it."""
_DTYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}


def export_safetensors(
    source: Source, path: Path, metadata: Mapping[str, str], progress: Progress | None = None
) -> None:
    """Write all tensors of ``source`` to one new safetensors file.

    Raises:
        FileExistsError: there is something at ``path``.
        ValueError: an element type that safetensors has no name for.
    """
    with new_file(path) as stream:
        write_safetensors(stream, source, list(source.entries), metadata, progress)


def write_safetensors(
    stream: BinaryIO,
    source: Source,
    names: Sequence[str],
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> int:
    """Header and values of ``names``; returns the bytes written."""
    # Larger elements first: then each is aligned, as the header ends on ALIGNMENT_BYTES.
    ordered = sorted(names, key=lambda name: -source.entries[name].dtype.itemsize)
    header = _header(source, ordered, metadata)
    stream.write(header)
    done, total = 0, sum(source.entries[name].nbytes for name in ordered)
    for _, piece in source.stream(ordered):
        done += stream.write(raw_bytes(piece))
        if progress is not None:
            progress(done, total)
    if done != total:
        raise ValueError(f"the source gave {done} bytes for {len(ordered)} tensors of {total}")
    return len(header) + done


def _header(source: Source, ordered: Sequence[str], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in ordered:
        entry = source.entries[name]
        if entry.dtype not in SAFETENSORS_NAMES:
            raise ValueError(
                f"{name} is {dtype_name(entry.dtype)}, which safetensors has no name for; leave it out with --only, or "
                "export to dcp or torch"
            )
        begin, end = end, end + entry.nbytes
        entries[name] = {
            "dtype": SAFETENSORS_NAMES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text


def safetensors_source(paths: Sequence[Path]) -> tuple[Source, dict[str, str]]:
    """The tensors of one or several files, and the metadata of the first.

    Raises:
        ValueError: a file is no safetensors file, or two files have one name.
    """
    from safetensors import SafetensorError, safe_open

    file_of: dict[str, Path] = {}
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                if path == paths[0]:
                    metadata = dict(file.metadata() or {})
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    if name in file_of:
                        raise ValueError(f"{file_of[name]} and {path} both have {name}")
                    part = file.get_slice(name)
                    entries[name] = Entry(_dtype(part.get_dtype(), name, path), tuple(part.get_shape()))
                    file_of[name] = path
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file: {error}") from error

    def stream(names: Sequence[str]) -> Stream:
        with contextlib.ExitStack() as stack:
            files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}
            for name in names:
                file = files[file_of[name]]
                for box in row_boxes(entries[name]):
                    if box.sizes == entries[name].shape:
                        yield name, file.get_tensor(name)
                    else:
                        yield name, file.get_slice(name)[box.offsets[0] : box.offsets[0] + box.sizes[0]]

    return Source(entries, stream), metadata


def _dtype(name: str, tensor: str, path: Path) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"{path}: {tensor} is of the type {name}, which torch {torch.__version__} cannot hold here")
    return _DTYPES[name]
