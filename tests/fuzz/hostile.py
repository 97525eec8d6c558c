"""A checkpoint whose manifest and Python state were written by somebody hostile, and everything that reads them.

Digests and checksums are made right, so that nothing is refused for them alone. Reading must end in one of two ways:
it gives values, or it raises ``DamagedCheckpointError`` (``RestoreError``, or ``ValueError`` for a state that does not
fit, where it restores). It must not open files outside the checkpoint, nor fill memory with what is not there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from datastates import Checkpointer, DamagedCheckpointError, RestoreError, open_checkpoint

import _elastates

DELIBERATE = re.compile(r"this value is a pickle, which can run code|value of unknown kind|torch.save")
"""Of Python state that is whole, and not decoded on purpose."""
GROWTH_BYTES = 256 << 20
"""More resident memory than any reading of this checkpoint can need."""

_opened: list[str] | None = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink"):
        _opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "")


sys.addaudithook(_note_opened)


def signed(data: Any) -> bytes:
    """A manifest that says ``data``, with the right digest."""
    body = json.dumps({key: value for key, value in data.items() if key != "digest"})[:-1].encode()
    return signed_bytes(body)


def signed_bytes(body: bytes) -> bytes:
    """``body`` with its digest behind it, whatever it is."""
    return body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode()


def state() -> dict[str, Any]:
    return {
        "model": {"weight": torch.arange(12.0).reshape(3, 4), "scale": torch.tensor(2.0, dtype=torch.bfloat16)},
        "progress": {"epoch": 3, "seen": (1, 2.5, None), "bits": b"\x00\x01"},
    }


class Target:
    """One small checkpoint, to be overwritten again and again."""

    def __init__(self, scratch: Path) -> None:
        self.run = scratch / "run"
        with Checkpointer(self.run) as checkpoints:
            self.path = checkpoints.checkpoint(0, state()).durable.result(60)
        self.manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_bytes())
        self.objects = (self.path / "rank-00000.objects.json").read_bytes()

    def copy(self) -> dict[str, Any]:
        """The honest manifest, to be changed."""
        data: dict[str, Any] = json.loads(json.dumps(self.manifest))
        return data

    def read_with(self, manifest: bytes, objects: bytes | None = None) -> str:
        """Read everything; returns ``"read"`` or ``"refused"``."""
        (self.path / "manifest.json").write_bytes(manifest)
        (self.path / "rank-00000.objects.json").write_bytes(self.objects if objects is None else objects)
        with self._watched():
            self._restore()
            return self._read()

    def with_objects(self, content: bytes) -> str:
        """The same for Python state, the manifest saying that it is as it should be."""
        data = self.copy()
        data["objects"][0] |= {"size_bytes": len(content), "crc32c": _elastates.crc32c(content)}
        return self.read_with(signed(data), content)

    def _read(self) -> str:
        try:
            reader = open_checkpoint(self.path)
            damage = reader.verify()
            reader.read_many(dict.fromkeys(reader.names()))
            for rank in range(min(reader.manifest.num_ranks, 8)):
                reader.python(rank)
        except DamagedCheckpointError:
            return "refused"
        except ValueError as error:
            if not DELIBERATE.search(str(error)):
                raise
            return "refused"
        return "refused" if damage else "read"

    def _restore(self) -> None:
        with Checkpointer(self.run) as checkpoints:
            try:
                checkpoints.restore(state())
            except RestoreError:
                return
            except ValueError as error:
                if not str(error):
                    raise

    @contextmanager
    def _watched(self) -> Iterator[None]:
        global _opened
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _opened = []
        try:
            yield
        finally:
            opened, _opened = _opened, None
        outside = [
            path
            for path in opened
            if not path.startswith((f"{self.run}", "/proc/", "/sys/", sys.prefix, sys.base_prefix))
        ]
        assert not outside, outside
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < GROWTH_BYTES


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything inside a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def replace_at(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Put ``new`` there; ``DELETE`` takes away what is there."""
    *way, last = path
    for key in way:
        value = value[key]
    if new is DELETE:
        del value[last]
    else:
        value[last] = copy.deepcopy(new)  # places inside it may be next


DELETE = object()
HOSTILE_VALUES: tuple[Any, ...] = (
    *(DELETE, None, True, "", [], {}, -1, 0, 1, 7, 8, 4095, 4096, 4097, 0.5, 1e308, -0.0),
    *((1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200),
    *(
        "..",
        "../x",
        "/etc/hostname",
        "a/b",
        "a\0b",
        "\ud800",
        "x" * 300,
        ".",
        "manifest.json",
        "rank-00000.safetensors",
    ),
    *([[]], [{}], [-1], [1 << 62, 1 << 62], [1 << 40], [0, 1 << 62], {"$": "tensor"}, {"$": "pickle", "v": "gAQu"}),
    *("float64", "float8_e4m3fn", "complex128", "uint8", "torch.float32", "quint8", "__class__"),
)
HOSTILE_OBJECTS: tuple[Any, ...] = (
    *({"$": "tensor", "name": name} for name in ("model.weight", "none", 3, None, ["a"])),
    *(
        {"$": kind, "v": value}
        for kind in ("numpy", "float", "set", "dict", "deque", "bytes", "complex", "size")
        for value in (None, 3, "x", "nan", [], [[]], [[1]], {}, [1, 2, 3], [[{}, 1]])
    ),
    *(
        {"$": kind, "v": value}
        for kind in ("dtype", "device", "datetime", "path", "counter", "frozenset", "what", 3)
        for value in (None, 3, "x", "cuda:99", "meta", [], {"a": 1}, "../../etc/passwd")
    ),
    {"$": "numpy", "v": {"dtype": "O", "shape": [1], "data": "AAAAAAAAAAA="}},
    {"$": "numpy", "v": {"dtype": "<f8", "shape": [1 << 40], "data": ""}},
    {"$": "numpy", "v": {"dtype": "<f8", "shape": [-1], "data": "AAAAAAAAAAA="}},
    {"$": "numpy", "v": {"dtype": "V2000000000", "shape": [0], "data": ""}},
    {"$": "inline_tensor", "dtype": "float32", "shape": [1 << 40], "v": ""},
    {"$": "inline_tensor", "dtype": "float32", "shape": [0, 1 << 62, 1 << 62], "v": ""},
    {"$": "inline_tensor", "dtype": "float32", "shape": [1], "v": "AAA="},
    {"$": "inline_tensor", "dtype": "what", "shape": "x", "v": 7},
    {"$": "inline_tensor"},
    *(
        {"$": kind, "v": value, "axis": 0}
        for kind in ("torch_save", "quantized", "numpy_tensor")
        for value in (None, 3, "AAAA", "UEsDBA==", [], {"int_repr": 1}, "gAJLAS4=")
    ),
    {"$": "deque", "v": [-1, []]},
    {"$": None},
    {"$": []},
    {"$": {}},
)
