"""Checkpoints behind a URL, for who only reads: listed where they are, and fetched whole to a temporary directory.

What tiers have written (``Checkpointer(replicate_to=...)``), and anything of the same form that was copied somewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datastates import manifest as manifests
from datastates.directory import CheckpointDirectory, read_manifest, step_name
from datastates.errors import DamagedCheckpointError
from datastates.manifest import Manifest
from datastates.reader import CheckpointReader, open_checkpoint
from datastates.tiers.config import Tier
from datastates.tiers.fetch import fetch
from datastates.tiers.pace import Pace
from datastates.tiers.plan import plan_files
from datastates.tiers.shelf import expected, missing, read_where
from datastates.tiers.stores import open_store
from datastates.tiers.stores.base import complete_steps
from datastates.tiers.stores.directory import local_path

RETRY_FOR_S = 30.0
_STEP = re.compile(r"(.*)/step-(\d{8,})/?")


def open_url(url: str, storage_options: Mapping[str, Any] | None = None, **options: Any) -> CheckpointReader:
    """See :func:`datastates.open_checkpoint`; one of this machine's file systems (``file://``) is read where it is."""
    path = local_path(url)
    if path is not None:
        return open_checkpoint(path, **options)
    return RemoteCheckpoints(url, storage_options).newest(**options)


class RemoteCheckpoints:
    """A URL of a directory of checkpoints, or of one of them.

    Args:
        url: ``s3://bucket/run``, ``s3://bucket/run/step-00000012``, or any URL that fsspec knows (extra ``remote``).
        storage_options: what fsspec's file system is made with; by default what the environment says.

    Raises:
        ImportError: the URL needs a package that is not installed.
        ValueError: nobody knows this kind of URL.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        one = _STEP.fullmatch(url)
        self._only = int(one[2]) if one else None
        tier = Tier(one[1] if one else url, storage_options=storage_options or {}, retry_for_s=RETRY_FOR_S)
        self._tier = tier
        self._store = open_store(tier)
        self._pace = Pace(None, RETRY_FOR_S)

    def steps(self) -> list[int]:
        """Steps that have a manifest, ascending."""
        found = complete_steps(self._pace.retried(self._store.listing, f"listing {self._store.url}"))
        return found if self._only is None else [step for step in found if step == self._only]

    def url_of(self, step: int) -> str:
        return self._store.step_url(step_name(step))

    def size_bytes(self, step: int) -> int:
        """What the files in the folder of a checkpoint take."""
        folder = step_name(step)
        found = self._pace.retried(lambda: self._store.listing(folder), f"listing {self.url_of(step)}")
        return sum(found.get(folder, {}).values())

    def manifest(self, step: int) -> Manifest:
        """A manifest, after checking that the files are there and of their sizes.

        Raises:
            DamagedCheckpointError: they are not.
        """
        folder, url = step_name(step), self.url_of(step)
        found = manifests.load(self._get(step, manifests.FILE_NAME), f"{url}/{manifests.FILE_NAME}")
        if found.step != step:
            raise DamagedCheckpointError(f"{url} is of step {found.step}")
        files = plan_files(found, self._tier.part_bytes)
        where = read_where(self._store, folder, files, self._store.get)
        if wrong := missing(self._store, expected(self._store, folder, files, where)):
            raise DamagedCheckpointError(f"{url}: {', '.join(list(wrong.values())[:8])}")
        return found

    def outline(self, step: int) -> CheckpointReader:
        """Manifest and Python state alone; reading a tensor finds no file.

        Raises:
            DamagedCheckpointError: files are missing, or not of their sizes.
        """
        found = self.manifest(step)
        directory = _temporary()
        path = directory / step_name(step)
        path.mkdir()
        for objects in found.objects:
            (path / objects.name).write_bytes(self._get(step, objects.name))
        return _reader(path, found, directory)

    def open(self, step: int, **options: Any) -> CheckpointReader:
        """A checkpoint, fetched and verified; the copy goes when nobody holds the reader any more.

        Raises:
            DamagedCheckpointError: what is there is not what was written.
            StorageFullError: the temporary directory (``TMPDIR``) lacks the space.
        """
        directory = _temporary()
        try:
            path = fetch(
                self._store,
                CheckpointDirectory(directory),
                step,
                pace=self._pace,
                threads=self._tier.threads,
                part_bytes=self._tier.part_bytes,
            )
            return _reader(path, read_manifest(path), directory, **options)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def newest(self, **options: Any) -> CheckpointReader:
        """The newest checkpoint that is whole, as :meth:`open` gives it.

        Raises:
            FileNotFoundError: there is none.
            DamagedCheckpointError: none is whole.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                return self.open(step, **options)
            except DamagedCheckpointError as error:
                damaged.append(str(error))
        if damaged:
            raise DamagedCheckpointError(f"no checkpoint of {self._store.url} is whole: {'; '.join(damaged)}")
        raise FileNotFoundError(f"{self._store.url} holds no checkpoint")

    def _get(self, step: int, file: str) -> bytes:
        try:
            return self._pace.retried(lambda: self._store.get(f"{step_name(step)}/{file}"), f"reading {file}")
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{self.url_of(step)}/{file} is missing") from error


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="elastates-"))


def _reader(path: Path, manifest: Manifest, directory: Path, **options: Any) -> CheckpointReader:
    reader = CheckpointReader(path, manifest, **options)
    weakref.finalize(reader, _remove, directory, os.getpid())
    return reader


def _remove(directory: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child, whose parent may still read
        shutil.rmtree(directory, ignore_errors=True)
