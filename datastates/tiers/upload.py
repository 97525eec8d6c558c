"""Uploading one published checkpoint to one store.

    1  say what is being uploaded (uploading.json: the manifest's digest, and the files that are complete)
    2  data files, objects files; every byte verified as it is read; of what checkpoints share, only what is not there
    3  every file has its size; this job is still the one that writes here
    4  the manifest: the commit object, last
    5  the manifest reads back as it was written, the files are there: the copy is verified

An upload that was interrupted in 1 to 3 goes on where it was if the local checkpoint is still the same, and starts over
otherwise. A reader sees nothing before 4.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datastates import manifest
from datastates.directory import step_name
from datastates.errors import DamagedCheckpointError, ReplicationError
from datastates.tiers.pace import Pace
from datastates.tiers.plan import FilePlan, plan_files
from datastates.tiers.shelf import WHERE, Shelf, Stored, Where, dump, expected, missing, read_where, shared_object
from datastates.tiers.stores import Source, Store
from datastates.tiers.stores.base import Listing, complete_steps
from datastates.tiers.workers import Workers

logger = logging.getLogger("datastates")
JOURNAL = "uploading.json"


@dataclass(frozen=True)
class Uploaded:
    """What an upload did."""

    url: str
    size_bytes: int
    """Of the checkpoint's files."""
    sent_bytes: int
    """Less, if an interrupted upload had sent some already."""


def upload(
    store: Store,
    checkpoint: Path,
    step: int,
    *,
    shelf: Shelf,
    pace: Pace,
    threads: int,
    part_bytes: int,
    damaged: Collection[int] = (),
    check_writer: Callable[[], None] = lambda: None,
) -> Uploaded:
    """Copy a published checkpoint; once this returns, the copy is whole and verified.

    Args:
        store: where to.
        checkpoint: the published directory.
        step: its step.
        shelf: knows what the store has of files that checkpoints share.
        pace: bandwidth cap and retries.
        threads: files, and parts, under way at once.
        part_bytes: see :func:`datastates.tiers.plan.plan_files`.
        damaged: steps whose copies there are known to be damaged: one of this step makes way, and nothing is shared
            with any of them.
        check_writer: raises if another job has begun to write to the store.

    Raises:
        ReplicationError: another checkpoint of this step is there, or what others share with it; or the copy is not
            what was sent.
        DamagedCheckpointError: the local files are not what was written.
        Stopped: the job is ending.
    """
    raw = (checkpoint / manifest.FILE_NAME).read_bytes()
    files = plan_files(manifest.load(raw, str(checkpoint)), part_bytes)
    size_bytes = sum(file.stored_bytes for file in files)
    name = step_name(step)
    there = pace.retried(store.listing, f"listing {store.url}")
    whole = [other for other in complete_steps(there) if other != step and other not in damaged]
    needed = set() if store.has_links or name not in there else shelf.referenced(whole, there)
    if manifest.FILE_NAME in there.get(name, {}):
        is_same = pace.retried(lambda: store.get(f"{name}/{manifest.FILE_NAME}"), f"reading {name}") == raw
        if is_same and pace.retried(lambda: _has_all(store, name, files), f"listing {store.url}"):
            return Uploaded(store.step_url(name), size_bytes, 0)
        if step in damaged:  # the same one takes their place with the same bytes
            _refuse_if_needed(store, name, there, needed)
        _make_way(store, name, pace, step in damaged or is_same, needed)
        there.pop(name)
    journal = Journal.resume(store, store.staging(name), raw, there, pace, needed)
    where, linked = _share(store, files, journal, there, shelf, whole)
    sent = _send(store, checkpoint, [file for file in files if file.name not in linked], where, journal, pace, threads)
    if where:
        pace.retried(lambda: store.put(f"{journal.folder}/{WHERE}", dump(where)), f"writing {WHERE}")
    _check_sizes(store, journal.folder, files, where, pace)
    check_writer()
    pace.retried(lambda: store.commit(name, raw), f"committing {name} to {store.url}")
    _verify(store, name, raw, files, where, pace)
    pace.retried(lambda: store.drop(f"{name}/{JOURNAL}"), f"removing {JOURNAL} from {store.step_url(name)}")
    shelf.add(step, files, where)
    return Uploaded(store.step_url(name), size_bytes, sent)


class Journal:
    """What an upload says about itself, in the store: whose bytes they are, and which files are complete."""

    def __init__(self, store: Store, folder: str, digest: str, complete: dict[str, int], pace: Pace) -> None:
        self.folder = folder
        self.complete = complete
        self._store = store
        self._digest = digest
        self._pace = pace
        self._lock = threading.Lock()

    @classmethod
    def resume(
        cls, store: Store, folder: str, raw: bytes, there: Listing, pace: Pace, needed: Collection[str] = ()
    ) -> Journal:
        """Of the upload in ``folder`` if it is of the same checkpoint; else what is there is removed first."""
        digest = raw[-67:-3].decode()  # of the manifest, which has the checksums of everything else
        left = there.get(folder, {})
        if JOURNAL in left:
            said = _read_journal(pace.retried(lambda: store.get(f"{folder}/{JOURNAL}"), f"reading {JOURNAL}"))
            if said.get("manifest") == digest:
                complete = {name: size for name, size in said["complete"].items() if left.get(name) == size}
                return cls(store, folder, digest, complete, pace)
        if left:
            _refuse_if_needed(store, folder, there, needed)
            pace.retried(lambda: store.remove(folder), f"removing what another upload left in {folder}")
        pace.retried(store.sweep, f"removing unfinished uploads from {store.url}")
        journal = cls(store, folder, digest, {}, pace)
        journal._write()
        return journal

    def add(self, file: FilePlan) -> None:
        """``file`` is complete."""
        with self._lock:
            self.complete[file.name] = self._store.size_bytes(file)
            self._write()

    def _write(self) -> None:
        content = json.dumps({"manifest": self._digest, "complete": self.complete}).encode()
        self._pace.retried(lambda: self._store.put(f"{self.folder}/{JOURNAL}", content), f"writing {JOURNAL}")


def _read_journal(raw: bytes) -> dict[str, Any]:
    """What an upload said about itself; nothing, if it is not to be understood."""
    try:
        said = json.loads(raw)
        return said if isinstance(said["complete"], dict) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _share(
    store: Store, files: Collection[FilePlan], journal: Journal, there: Listing, shelf: Shelf, whole: Collection[int]
) -> tuple[dict[str, Stored], set[str]]:
    """Where the files go that are shared with other checkpoints, and which of them are there already as links."""
    where: dict[str, Stored] = {}
    linked: set[str] = set()
    for file in files:
        if not file.is_source:
            continue
        found = shelf.find(file, whole, there)
        if not store.has_links:
            where[file.name] = next(found, shared_object(file))
        elif any(store.adopt(f"{journal.folder}/{file.name}", file, stored.object) for stored in found):
            linked.add(file.name)
    return where, linked


def _send(
    store: Store,
    checkpoint: Path,
    files: Collection[FilePlan],
    where: Where,
    journal: Journal,
    pace: Pace,
    threads: int,
) -> int:
    shared = expected(store, journal.folder, [file for file in files if file.name in where], where)
    unsent = pace.retried(lambda: missing(store, shared), f"listing {store.url}")
    complete = {*journal.complete, *(name for name, stored in where.items() if stored.object not in unsent)}

    with Workers(threads, "ds-upload-part") as parts, Workers(threads, "ds-upload-file") as pool:

        def send(file: FilePlan) -> int:
            pace.check()
            if file.name in complete:
                return 0
            name = where[file.name].object if file.name in where else f"{journal.folder}/{file.name}"
            sent = store.send(name, Source(checkpoint / file.name, file), pace, parts)
            if len(file.pieces) > 1 and file.name not in where:  # smaller ones are sent again sooner than noted
                journal.add(file)
            return sent

        return sum(pool.map(send, files))


def _has_all(store: Store, name: str, files: Collection[FilePlan]) -> bool:
    """Whether the files of a checkpoint that has a manifest are there, too."""
    try:
        where = read_where(store, name, files, store.get)
    except DamagedCheckpointError:
        return False
    return not missing(store, expected(store, name, files, where))


def _refuse_if_needed(store: Store, folder: str, there: Listing, needed: Collection[str]) -> None:
    """Files that other checkpoints refer to must not go, and none of other content may take their names."""
    if theirs := [file for file in there[folder] if f"{folder}/{file}" in needed]:
        raise ReplicationError(
            f"{store.step_url(folder)} has files that other checkpoints there refer to ({', '.join(theirs[:8])}), and "
            "nothing is ever overwritten; remove those checkpoints, or give this run another URL"
        )


def _make_way(store: Store, name: str, pace: Pace, replaces_damaged: bool, needed: Collection[str]) -> None:
    if not replaces_damaged:
        raise ReplicationError(
            f"{store.step_url(name)} is there already with other content, and nothing is ever overwritten; remove it, "
            "or give this run another URL"
        )
    logger.warning("%s is damaged and is replaced", store.step_url(name))
    pace.retried(lambda: store.remove(name, needed), f"removing the damaged {name} from {store.url}")


def _check_sizes(store: Store, folder: str, files: Collection[FilePlan], where: Where, pace: Pace) -> None:
    sizes = expected(store, folder, files, where)
    if wrong := pace.retried(lambda: missing(store, sizes), f"listing {store.url}"):
        raise ReplicationError(f"{store.url} has not what was sent: {', '.join(list(wrong.values())[:8])}")


def _verify(store: Store, name: str, raw: bytes, files: Collection[FilePlan], where: Where, pace: Pace) -> None:
    there = pace.retried(lambda: store.get(f"{name}/{manifest.FILE_NAME}"), f"reading {name} of {store.url}")
    if there != raw:
        raise ReplicationError(f"{store.step_url(name)}: the manifest is not the one that was sent")
    _check_sizes(store, name, files, where, pace)
