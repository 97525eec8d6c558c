"""GenericStore: any other URL that fsspec knows (``gs://``, ``abfs://``, ``sftp://``, ...); files travel whole.

fsspec has no common notion of a part, so an interrupted upload goes on with the next file, not within one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

from datastates.manifest import FILE_NAME
from datastates.tiers.pace import Pace
from datastates.tiers.stores.base import Listing, Source, Store
from datastates.tiers.workers import Workers


class GenericStore(Store):
    """See :class:`Store`."""

    def __init__(self, url: str, fs: Any, root: str) -> None:
        self.url = url
        self._fs = fs
        self._root = root.rstrip("/")

    def listing(self, folder: str | None = None) -> Listing:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._root if folder is None else f"{self._root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        listing: Listing = {}
        for path, info in found.items():
            where, _, file = path.removeprefix(f"{self._root}/").rpartition("/")
            listing.setdefault(where, {})[file] = int(info["size"])
        return listing

    def get(self, name: str, begin: int = 0, end: int | None = None) -> bytes:
        if begin == end:
            return b""
        content: bytes = self._fs.cat_file(f"{self._root}/{name}", start=begin, end=end)
        return content

    def put(self, name: str, content: bytes) -> None:
        self._make_folder(name)
        self._fs.pipe_file(f"{self._root}/{name}", content)

    def send(self, name: str, source: Source, pace: Pace, parts: Workers) -> int:
        def send_whole() -> int:
            self._make_folder(name)
            stream = self._fs.open(f"{self._root}/{name}", "wb")
            try:
                for piece in source.plan.pieces:
                    content = source.read(piece)
                    pace.take(len(content))
                    stream.write(content)
            except BaseException:
                if hasattr(stream, "discard"):
                    stream.discard()
                raise
            stream.close()
            return source.plan.stored_bytes

        return pace.retried(send_whole, f"sending {name} to {self.url}")

    def remove(self, folder: str, keep: Collection[str] = ()) -> None:
        files = self.listing(folder).get(folder, {})
        for file in sorted(files, key=lambda file: file != FILE_NAME):
            if f"{folder}/{file}" not in keep:
                self.drop(f"{folder}/{file}")
        if not keep and self._fs.isdir(f"{self._root}/{folder}"):  # where folders are real
            self._fs.rm(f"{self._root}/{folder}", recursive=True)

    def drop(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def _make_folder(self, name: str) -> None:
        self._fs.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
