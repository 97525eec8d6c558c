"""Library: what is where. The local directory and all tiers, as :meth:`Checkpointer.restore` and ``latest()`` see them.

A step that several places have is taken from the first of them: the local directory, then the tiers in their order.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from datastates import manifest
from datastates.directory import CheckpointDirectory, read_manifest, step_name
from datastates.errors import DamagedCheckpointError, RestoreError
from datastates.tiers.config import Tier
from datastates.tiers.fetch import fetch
from datastates.tiers.pace import Pace
from datastates.tiers.plan import plan_files
from datastates.tiers.shelf import expected, missing, read_where
from datastates.tiers.stores import Store, open_store
from datastates.tiers.stores.base import complete_steps
from datastates.tiers.stores.directory import local_path

logger = logging.getLogger("datastates")

LOCAL = -1
PATIENCE_S = 30.0
"""How long a tier that does not answer is asked again what it has, seconds."""


class Place(NamedTuple):
    """A checkpoint somewhere: in the local directory, or in a tier by its number."""

    step: int
    tier: int = LOCAL


class Library:
    """Looks up and fetches; keeps nothing in mind. Used by the training thread."""

    def __init__(self, directory: CheckpointDirectory, tiers: Sequence[Tier]) -> None:
        for tier in tiers:
            path = local_path(tier.url)
            if path is not None and path.resolve() == directory.path.resolve():
                raise ValueError(f"replicate_to names {path}, where the checkpoints are already; choose another place")
        self._directory = directory
        self._tiers = tiers
        self._stores: dict[int, Store] = {}

    def __str__(self) -> str:
        return ", ".join([str(self._directory.path), *(tier.url for tier in self._tiers)])

    @property
    def path(self) -> Path:
        """The local directory."""
        return self._directory.path

    def path_of(self, step: int) -> Path:
        """Where a step is, or will be, in the local directory."""
        return self._directory.of_step(step)

    def places(self) -> list[Place]:
        """Every checkpoint everywhere, in the order in which to try them: newest first, local first.

        Raises:
            RestoreError: a tier does not answer and nothing is here: what there is to restore cannot be known.
        """
        found = [Place(step) for step in self._directory.steps()]
        for number, tier in enumerate(self._tiers):
            try:
                found += [Place(step, number) for step in self._tier_steps(number)]
            except Exception as error:
                text = f"{tier.url} does not say what it has ({type(error).__name__}: {error})"
                if not found:
                    raise RestoreError(f"{text}, and {self._directory.path} has no checkpoint") from error
                logger.warning("%s; only what other places have can be restored", text)
        return sorted(found, key=lambda place: (-place.step, place.tier))

    def fetch(self, place: Place, damaged: Collection[int]) -> Path:
        """Rank 0: bring a tier's checkpoint into the local directory; see :func:`datastates.tiers.fetch.fetch`."""
        tier = self._tiers[place.tier]
        logger.info("fetching %s", self.store(place.tier).step_url(step_name(place.step)))
        self._directory.lock()
        return fetch(
            self.store(place.tier),
            self._directory,
            place.step,
            pace=Pace(None, tier.retry_for_s),
            threads=tier.threads,
            part_bytes=tier.part_bytes,
            damaged_steps=damaged,
        )

    def latest(self) -> Path | str | None:
        """The newest checkpoint anywhere whose manifest and file sizes are intact: its path, or its URL in a tier."""
        for place in self.places() if self._tiers else map(Place, reversed(self._directory.steps())):
            try:
                return self._look_at(place)
            except DamagedCheckpointError as error:
                logger.warning("passed over: %s", error)
        return None

    def _look_at(self, place: Place) -> Path | str:
        if place.tier == LOCAL:
            path = self._directory.of_step(place.step)
            read_manifest(path)
            return path
        store, folder, pace = self.store(place.tier), step_name(place.step), self._impatient(place.tier)
        url = store.step_url(folder)

        def get(name: str) -> bytes:
            return pace.retried(lambda: store.get(name), f"reading {name} of {store.url}")

        try:
            found = manifest.load(get(f"{folder}/{manifest.FILE_NAME}"), url)
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{url} has gone") from error
        files = plan_files(found, self._tiers[place.tier].part_bytes)
        sizes = expected(store, folder, files, read_where(store, folder, files, get))
        if wrong := pace.retried(lambda: missing(store, sizes), f"listing {store.url}"):
            raise DamagedCheckpointError(f"{url}: {', '.join(list(wrong.values())[:8])}")
        return url

    def _impatient(self, number: int) -> Pace:
        return Pace(None, min(PATIENCE_S, self._tiers[number].retry_for_s))

    def _tier_steps(self, number: int) -> list[int]:
        store = self.store(number)
        return complete_steps(self._impatient(number).retried(store.listing, f"listing {store.url}"))

    def store(self, number: int) -> Store:
        """The store of a tier; one for all, for what S3 stores keep in memory is no trifle (30 MB)."""
        if number not in self._stores:
            self._stores[number] = open_store(self._tiers[number])
        return self._stores[number]
