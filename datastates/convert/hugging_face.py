"""Hugging Face directories: ``model.safetensors``, or shards and ``model.safetensors.index.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datastates.convert.publish import new_directory
from datastates.convert.safetensors_file import safetensors_source, write_safetensors
from datastates.convert.source import Progress, Source

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"
DEFAULT_SHARD_BYTES = 5 * 10**9


def export_hugging_face(
    source: Source,
    path: Path,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    config: Path | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a directory that ``from_pretrained`` loads.

    Args:
        source: the model's tensors under the model's own names.
        path: the new directory.
        max_shard_bytes: size of a file's tensors; more only where one tensor is larger.
        config: a ``config.json`` to put beside them; without one, ``from_pretrained`` has to be told the configuration.
        metadata: put into the header of every file.
        progress: called with bytes done and bytes in all.

    Raises:
        FileExistsError: there is something at ``path``.
    """
    configuration = None if config is None else config.read_bytes()
    shards = list(plan_shards(source, max_shard_bytes))
    total = source.nbytes
    done = 0

    def report(in_shard: int, of_shard: int) -> None:
        if progress is not None:
            progress(done + in_shard, total)

    with new_directory(path) as directory:
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, start=1):
            file = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with open(directory / file, "wb") as stream:
                write_safetensors(stream, source, names, metadata or {}, report)
            done += sum(source.entries[name].nbytes for name in names)
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
        if configuration is not None:
            (directory / CONFIG_NAME).write_bytes(configuration)


def plan_shards(source: Source, max_shard_bytes: int) -> Iterator[list[str]]:
    """Names in groups of at most ``max_shard_bytes``, in order; at least one group."""
    group: list[str] = []
    size_bytes = 0
    for name, entry in source.entries.items():
        if group and size_bytes + entry.nbytes > max_shard_bytes:
            yield group
            group, size_bytes = [], 0
        group.append(name)
        size_bytes += entry.nbytes
    yield group


def hugging_face_files(directory: Path) -> Sequence[Path]:
    """The safetensors files of a directory, as its index names them.

    Raises:
        ValueError: there is none, or the index is none, or names a file outside the directory.
    """
    index = directory / INDEX_NAME
    if index.exists():
        return [directory / name for name in sorted(set(_weight_map(index).values()))]
    found = sorted(directory.glob("*.safetensors"))
    if not found:
        raise ValueError(f"{directory} has neither {INDEX_NAME} nor a .safetensors file")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Name of every tensor -> its file's."""
    found = json.loads(index.read_text())
    files = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f"{index} has no weight_map of tensors and files")
    if outside := sorted({name for name in files.values() if Path(name).name != name or name == ".."}):
        raise ValueError(f"{index} names files that are not in its directory: {', '.join(outside)}")
    return files


def hugging_face_source(directory: Path) -> tuple[Source, dict[str, str]]:
    """The tensors of a Hugging Face directory, and the metadata of its first file.

    Raises:
        ValueError: as :func:`hugging_face_files`; or a file lacks a tensor that the index says it has.
    """
    source, metadata = safetensors_source(hugging_face_files(directory))
    index = directory / INDEX_NAME
    if index.exists() and (lost := sorted(set(_weight_map(index)) - set(source.entries))):
        raise ValueError(f"{index} names {len(lost)} tensors that are in none of its files, such as {lost[0]}")
    return source, metadata
