"""Tensor names as paths of a Zarr hierarchy: groups at the dots. Pure functions.

``model.layers.0.weight`` is the array ``model/layers/0/weight``. A name that is also the beginning of another
(``a`` beside ``a.b``) cannot be array and group at once: its array is ``a/_self``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

SELF = "_self"
_PLAIN = " !#$&'()+,;=@[]^`{}~"
"""Characters that node names keep, besides letters, digits and ``_-.``: everything but ``/``, ``%`` and the like."""


def node_paths(names: Iterable[str]) -> dict[str, str]:
    """Tensor name -> path of its array, one to one.

    Segments that Zarr reserves or cannot have (empty, beginning with ``__``, with a slash) are percent-encoded.
    """
    paths = {name: "/".join(map(_segment, name.split("."))) for name in names}
    prefixes = groups_of(paths.values())
    taken = set(paths.values()) | prefixes
    for name, path in paths.items():
        if path in prefixes:
            new = f"{path}/{SELF}"
            while new in taken:
                new += "_"
            taken.add(new)
            paths[name] = new
    return paths


def groups_of(paths: Iterable[str]) -> set[str]:
    """Every group above the given arrays, the root (``""``) included."""
    groups = {""}
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent not in groups:
            groups.add(parent)
            parent = parent.rpartition("/")[0]
    return groups


def children_of(groups: Iterable[str], arrays: Iterable[str]) -> Mapping[str, list[str]]:
    """For every group, the names of the nodes right below it, sorted."""
    groups = set(groups)
    found: dict[str, list[str]] = {group: [] for group in groups}
    for path in [*(groups - {""}), *arrays]:
        parent, _, leaf = path.rpartition("/")
        found[parent].append(leaf)
    return {group: sorted(leaves) for group, leaves in found.items()}


def _segment(text: str) -> str:
    if not text:
        return "%"  # no encoded text is a lone percent sign
    encoded = quote(text, safe=_PLAIN)
    return f"%5F{encoded[1:]}" if encoded.startswith("__") else encoded
