"""S3Store: S3, or a server that speaks its protocol, through s3fs.

A file of several pieces is one multipart upload, found again by its key after an interruption: parts whose size and MD5
are those of our piece are not sent again. Every part carries its MD5, so a server that checks it stores what we read.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from datastates.manifest import FILE_NAME
from datastates.tiers.pace import Pace
from datastates.tiers.plan import Piece
from datastates.tiers.stores.base import Listing, Source, Store
from datastates.tiers.workers import Workers

_OURS = re.compile(r"(step-\d{8,}|shared)/")


class Part(NamedTuple):
    """A part that the server has."""

    size_bytes: int
    etag: str


class S3Store(Store):
    """See :class:`Store`."""

    def __init__(self, url: str, fs: Any, root: str) -> None:
        self.url = url
        self._fs = fs
        self._fs.retries = 1  # retries are our caller's
        self._bucket, _, prefix = root.partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def listing(self, folder: str | None = None) -> Listing:
        found: Listing = {}
        prefix = self._prefix if folder is None else self._key(f"{folder}/")
        for item in self._pages("list_objects_v2", "Contents", "ContinuationToken", Prefix=prefix):
            where, _, file = item["Key"].removeprefix(self._prefix).rpartition("/")
            found.setdefault(where, {})[file] = int(item["Size"])
        return found

    def get(self, name: str, begin: int = 0, end: int | None = None) -> bytes:
        if begin == end:
            return b""
        content: bytes = self._fs.cat_file(f"{self._bucket}/{self._key(name)}", start=begin, end=end)
        return content

    def put(self, name: str, content: bytes) -> None:
        self._call("put_object", name, Body=content, ContentMD5=_base64_md5(content))

    def send(self, name: str, source: Source, pace: Pace, parts: Workers) -> int:
        pieces = source.plan.pieces
        if len(pieces) == 1:
            content = source.read(pieces[0])
            pace.take(len(content))
            pace.retried(lambda: self.put(name, content), f"sending {name} to {self.url}")
            return len(content)
        upload_id, have = pace.retried(lambda: self._open_upload(name), f"opening {name} of {self.url}")

        def send_part(number: int, piece: Piece) -> tuple[Part, int]:
            content = source.read(piece)
            expected = Part(len(content), f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"')
            if have.get(number) == expected:
                return expected, 0
            pace.take(len(content))
            what = f"sending part {number} of {name} to {self.url}"
            return pace.retried(lambda: self._send_part(name, upload_id, number, content), what), len(content)

        sent = parts.map(send_part, range(1, len(pieces) + 1), pieces)
        whole = {"Parts": [{"PartNumber": n, "ETag": part.etag} for n, (part, _) in enumerate(sent, 1)]}
        pace.retried(lambda: self._complete(name, upload_id, whole, source.plan.stored_bytes), f"completing {name}")
        return sum(num_bytes for _, num_bytes in sent)

    def remove(self, folder: str, keep: Collection[str] = ()) -> None:
        files = self.listing(folder).get(folder, {})
        for file in sorted(files, key=lambda file: file != FILE_NAME):
            if f"{folder}/{file}" not in keep:
                self.drop(f"{folder}/{file}")

    def drop(self, name: str) -> None:
        self._call("delete_object", name)

    def sweep(self) -> None:
        for key, upload_id in self._uploads(self._prefix):
            if not _OURS.match(key.removeprefix(self._prefix)):
                continue  # somebody else's: the prefix may be the whole bucket
            self._fs.call_s3("abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=upload_id)

    # ---- multipart uploads

    def _open_upload(self, name: str) -> tuple[str, dict[int, Part]]:
        """The upload that an interrupted :meth:`send` of this file left, with the parts it has; or a new one."""
        left = [upload_id for key, upload_id in self._uploads(self._key(name)) if key == self._key(name)]
        if not left:
            return self._call("create_multipart_upload", name)["UploadId"], {}
        upload_id = left[-1]
        found = self._pages(
            "list_parts", "Parts", "PartNumberMarker", "NextPartNumberMarker", Key=self._key(name), UploadId=upload_id
        )
        return upload_id, {int(part["PartNumber"]): Part(int(part["Size"]), part["ETag"]) for part in found}

    def _uploads(self, prefix: str) -> list[tuple[str, str]]:
        """(key, upload id) of the unfinished uploads under ``prefix``, oldest first."""
        found = self._pages("list_multipart_uploads", "Uploads", "KeyMarker", "NextKeyMarker", Prefix=prefix)
        return [(up["Key"], up["UploadId"]) for up in sorted(found, key=lambda up: up["Initiated"])]

    def _send_part(self, name: str, upload_id: str, number: int, content: bytes) -> Part:
        answer = self._call(
            "upload_part",
            name,
            UploadId=upload_id,
            PartNumber=number,
            Body=content,
            ContentMD5=_base64_md5(content),
        )
        return Part(len(content), answer["ETag"])

    def _complete(self, name: str, upload_id: str, whole: dict[str, Any], size_bytes: int) -> None:
        try:
            self._call("complete_multipart_upload", name, UploadId=upload_id, MultipartUpload=whole)
        except FileNotFoundError:  # no such upload: perhaps the answer to an attempt that succeeded was lost
            folder, _, file = name.rpartition("/")
            if self.listing(folder).get(folder, {}).get(file) != size_bytes:
                raise

    # ---- requests

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _call(self, method: str, name: str, **arguments: Any) -> Any:
        return self._fs.call_s3(method, Bucket=self._bucket, Key=self._key(name), **arguments)

    def _pages(self, method: str, member: str, token: str, next_token: str = "", **arguments: Any) -> list[Any]:
        """All items of a listing that comes in pages."""
        found: list[Any] = []
        while True:
            page = self._fs.call_s3(method, Bucket=self._bucket, **arguments)
            found += page.get(member, [])
            if not page.get("IsTruncated"):
                return found
            arguments[token] = page[next_token or f"Next{token}"]


def _base64_md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
