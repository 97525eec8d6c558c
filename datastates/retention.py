"""Retention in a directory of checkpoints: what may go, and that only while what stays is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from datastates.directory import CheckpointDirectory, expired
from datastates.sight.bus import emit, sinks
from datastates.sight.events import Origin, Pruned

logger = logging.getLogger("datastates")


def prune(
    directory: CheckpointDirectory,
    published: Mapping[Path, int],
    *,
    keep_last: int | None,
    keep_every: int | None,
    damaged: Collection[int] = (),
    let_go: Callable[[list[int]], list[int]] = lambda steps: steps,
) -> None:
    """Remove the checkpoints that retention does not keep, if what was just published is there, whole.

    A failure is logged: the checkpoint is there all the same. The directory's lock must be held.

    Args:
        directory: of the checkpoints.
        published: files of the checkpoint that was just published, with their sizes, bytes.
        keep_last: how many of the newest stay; ``None``: all.
        keep_every: steps that this divides stay.
        damaged: steps that must not stand in for whole ones; they may be newer than all of those.
        let_go: which of the steps that may go nobody needs.
    """
    try:
        whole = [step for step in directory.steps() if step not in damaged]
        newest = {path.parent for path in published}  # an older run may have left steps with higher numbers
        old = [step for step in expired(whole, keep_last, keep_every) if directory.of_step(step) not in newest]
        old = let_go(old)
        if old and all(path.stat().st_size == size_bytes for path, size_bytes in published.items()):
            begun_s = time.monotonic()
            directory.remove(old)
            if sinks:
                origin = Origin(str(directory.path), 0)
                emit(Pruned(origin, steps=tuple(old), seconds=time.monotonic() - begun_s))
    except Exception:
        logger.exception("retention could not remove old checkpoints of %s", directory.path)
