"""The ``.metadata`` of a DCP directory, which is a pickle: read without running code of the file."""

from __future__ import annotations

import pickle
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

_NAMES = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "Path"},
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}
"""Module -> what DCP's own metadata consists of: classes that hold values, and nothing that acts."""


def read_metadata(path: Path, allow_pickle: bool) -> Metadata:
    """The metadata.

    Raises:
        ValueError: it is none, asks for code without ``allow_pickle``, or names files outside its directory.
    """
    with open(path, "rb") as file:
        try:
            found = pickle.load(file) if allow_pickle else _Unpickler(file, path).load()
        except _Refused as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # whatever a damaged pickle makes the classes raise
            raise ValueError(f"{path} is no metadata of torch.distributed.checkpoint: {error!r}") from error
    files = getattr(found, "storage_data", None)
    if not isinstance(found, Metadata) or not isinstance(files, dict):
        raise ValueError(f"{path} is no metadata of torch.distributed.checkpoint")
    for item in files.values():
        name = getattr(item, "relative_path", None)
        if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{path} names a file that is not in its directory: {name!r}")
    return found


class DirectoryReader(dcp.FileSystemReader):
    """Stock DCP's reader, with metadata that has been read already: its own would unpickle it."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self.metadata = metadata
        metadata.storage_meta = metadata.storage_meta or StorageMeta()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata


class _Refused(Exception):
    pass


class _Unpickler(pickle._Unpickler):  # the one in Python, whose steps can be refused
    """Makes the classes of :data:`_NAMES` and no others, and changes none of them."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        known = getattr(torch, name, None) if module == "torch" else None
        if isinstance(known, torch.dtype) or name in _NAMES.get(module, ()):
            return super().find_class(module, name)
        raise _Refused(
            f"{self._path} asks for {module}.{name}, which only pickle can give it and which can run code; pass "
            "--allow-pickle (allow_pickle=True) if you trust it"
        )

    def load_build(self) -> None:
        changed = self.stack[-2]  # type: ignore[attr-defined]
        if callable(changed):
            raise _Refused(f"{self._path} would change {changed!r}, which is no value of it")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build
