"""``elastates ckpt show``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datastates import cli
from datastates.cli.location import location
from datastates.cli.output import age_text, bar, print_json, size_text, table
from datastates.convert.tree import is_optimizer
from datastates.dtypes import dtype_of
from datastates.errors import DamagedCheckpointError
from datastates.manifest import Manifest, TensorInfo
from datastates.reader import CheckpointReader, open_checkpoint
from datastates.remote import RemoteCheckpoints
from oneflow_sbp import Box

MAX_CHILDREN = 12
"""Of a module; the smaller ones are shown as one."""


@dataclass
class Node:
    """A module of the saved names' tree, and what is below it."""

    size_bytes: int = 0
    num_tensors: int = 0
    children: dict[str, Node] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Show a checkpoint's metadata and where its bytes are: by module, by section of the state, by "
        "element type and by rank."
    )
    parser.add_argument("path", type=location, help="a checkpoint, or a directory of checkpoints: its newest whole one")
    parser.add_argument("--depth", type=int, default=3, help="of the tree of modules (%(default)s)")
    parser.add_argument("--tensors", action="store_true", help="also list every tensor")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the picture."""
    reader, where = _outline(options.path)
    manifest = reader.manifest
    sections = sections_of(reader)
    if options.json:
        print_json(_document(reader, where, sections, options.depth))
        return cli.OK
    _print_head(reader, where)
    total = sum(map(tensor_bytes, manifest.tensors.values()))
    _print_bars("module", _rows(tree_of(manifest), options.depth), total)
    _print_bars("section", [(f"{name} ({kind})", size) for name, (kind, size) in sections.items()], total)
    _print_bars("type", sorted(_types(manifest).items(), key=lambda item: -item[1]), total)
    _print_bars("rank", [(file.name, file.size_bytes - file.header_bytes) for file in manifest.files], total)
    if options.tensors:
        rows = [
            [name, f"{info.dtype}{list(info.shape)}", str(len(info.shards)), size_text(tensor_bytes(info))]
            for name, info in manifest.tensors.items()
        ]
        print("\n" + table(("tensor", "type", "boxes", "size"), rows, right=(2, 3)))
    return cli.OK


def _outline(place: Path | str) -> tuple[CheckpointReader, str]:
    """A checkpoint, and where it is; of one behind a URL, manifest and Python state alone."""
    if isinstance(place, Path):
        reader = open_checkpoint(place)
        return reader, str(reader.path)
    remote = RemoteCheckpoints(place)
    steps = remote.steps()
    if not steps:
        raise FileNotFoundError(f"{place} holds no checkpoint")
    return remote.outline(steps[-1]), remote.url_of(steps[-1])


def tensor_bytes(info: TensorInfo) -> int:
    """Bytes of the whole tensor."""
    return Box.whole(info.shape).numel * dtype_of(info.dtype).itemsize


def tree_of(manifest: Manifest) -> Node:
    """Tensor names cut at dots."""
    root = Node()
    for name, info in manifest.tensors.items():
        size_bytes, node = tensor_bytes(info), root
        for part in ["", *name.split(".")]:
            node = node.children.setdefault(part, Node()) if part else node
            node.size_bytes += size_bytes
            node.num_tensors += 1
    return root


def _rows(node: Node, depth: int, indent: str = "") -> list[tuple[str, int]]:
    rows: list[tuple[str, int]] = []
    ordered = sorted(node.children.items(), key=lambda item: -item[1].size_bytes)
    for name, child in ordered[:MAX_CHILDREN]:
        rows.append((f"{indent}{name}", child.size_bytes))
        if depth > 1:
            rows += _rows(child, depth - 1, indent + "  ")
    if rest := ordered[MAX_CHILDREN:]:
        rows.append((f"{indent}({len(rest)} more)", sum(child.size_bytes for _, child in rest)))
    return rows


def sections_of(reader: CheckpointReader) -> dict[str, tuple[str, int]]:
    """Section of the state -> (what kind of value, bytes of its tensors), largest first.

    A section with Python values is known by its name; tensors of others go by the first part of theirs.
    """
    kinds: dict[str, str] = {}
    for rank in range(reader.manifest.num_ranks):
        try:
            python = reader.encoded_python(rank)
        except DamagedCheckpointError:
            continue  # what can be shown is shown; 'verify' names the damage
        for name, value in python.items():
            kinds.setdefault(name, "optimizer" if is_optimizer(value) else "Python values")
    sizes = dict.fromkeys(kinds, 0)
    for stored, info in reader.manifest.tensors.items():
        name = stored.split(".", 2)[2] if stored.startswith("per_rank.") and stored.count(".") > 1 else stored
        section = next((s for s in kinds if name == s or name.startswith(f"{s}.")), name.partition(".")[0])
        kinds.setdefault(section, "tensors")
        if kinds[section] == "Python values":
            kinds[section] = "Python values and tensors"
        sizes[section] = sizes.get(section, 0) + tensor_bytes(info)
    return {name: (kinds[name], size) for name, size in sorted(sizes.items(), key=lambda item: -item[1])}


def _types(manifest: Manifest) -> Mapping[str, int]:
    sizes: dict[str, int] = {}
    for info in manifest.tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + tensor_bytes(info)
    return sizes


def _print_head(reader: CheckpointReader, where: str) -> None:
    manifest = reader.manifest
    extents = sum(len(file.extent_ends) for file in manifest.files)
    age = age_text(time.time() - manifest.created_unix_s)
    ranks = "1 rank" if manifest.num_ranks == 1 else f"{manifest.num_ranks} ranks"
    python = sum(objects.size_bytes for objects in manifest.objects)
    print(where)
    print(f"  step {manifest.step}, saved {age} ago by {ranks}")
    print(f"  {size_text(manifest.data_bytes)} in {len(manifest.tensors):,} tensors, {extents:,} extents; ", end="")
    print(f"Python state {size_text(python)}")
    if manifest.aliases:
        print(f"  tied: {', '.join(f'{alias} = {name}' for alias, name in list(manifest.aliases.items())[:8])}")
    if manifest.metadata:
        print(f"  metadata: {json.dumps(manifest.metadata)}")


def _print_bars(title: str, rows: list[tuple[str, int]], total: int) -> None:
    if not rows:
        return
    cells = [[name, size_text(size), f"{size / total:.0%}" if total else "", bar(size, total)] for name, size in rows]
    print("\n" + table((title, "size", "share", ""), cells, right=(1, 2)))


def _document(
    reader: CheckpointReader, where: str, sections: Mapping[str, tuple[str, int]], depth: int
) -> dict[str, Any]:
    manifest = reader.manifest
    return {
        "path": where,
        "step": manifest.step,
        "num_ranks": manifest.num_ranks,
        "created_unix_s": manifest.created_unix_s,
        "metadata": manifest.metadata,
        "aliases": manifest.aliases,
        "data_bytes": manifest.data_bytes,
        "modules": _node_json(tree_of(manifest), depth),
        "sections": {name: {"kind": kind, "size_bytes": size} for name, (kind, size) in sections.items()},
        "types": _types(manifest),
        "files": [
            {"name": file.name, "size_bytes": file.size_bytes, "extents": len(file.extent_ends)}
            for file in manifest.files
        ],
        "tensors": {
            name: {"dtype": info.dtype, "shape": info.shape, "boxes": len(info.shards)}
            for name, info in manifest.tensors.items()
        },
    }


def _node_json(node: Node, depth: int) -> dict[str, Any]:
    children = {name: _node_json(child, depth - 1) for name, child in node.children.items()} if depth else {}
    return {"size_bytes": node.size_bytes, "num_tensors": node.num_tensors, "children": children}
