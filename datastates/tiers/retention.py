"""What a tier lets go of: old checkpoints, and what uploads that ended left behind."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection

from datastates.directory import expired, step_name
from datastates.manifest import FILE_NAME
from datastates.tiers.config import Tier
from datastates.tiers.pace import Pace
from datastates.tiers.stores import Store
from datastates.tiers.stores.base import Listing

logger = logging.getLogger("datastates")
_STEP = re.compile(r"step-(\d{8,})")
_UPLOAD = re.compile(r"(\.up-)?step-\d{8,}")


def complete_steps(listing: Listing) -> list[int]:
    """Steps that have a manifest, ascending; says nothing about damage."""
    found = (_STEP.fullmatch(folder) for folder, files in listing.items() if FILE_NAME in files)
    return sorted(int(match[1]) for match in found if match)


def leaving(listing: Listing, tier: Tier, verified: int, damaged: Collection[int]) -> list[str]:
    """Folders to remove, pure: what retention does not keep, and uploads that were given up.

    Args:
        listing: of the tier's store.
        tier: what it keeps.
        verified: the step just uploaded and verified; it stays, whatever its number.
        damaged: steps that must not stand in for whole ones.
    """
    steps = complete_steps(listing)
    whole = [step for step in steps if step not in damaged]
    old = [step_name(step) for step in expired(whole, tier.keep_last, tier.keep_every) if step != verified]
    complete = {step_name(step) for step in steps}
    given_up = [folder for folder in listing if _UPLOAD.fullmatch(folder) and folder not in complete]
    return old + given_up


def prune(store: Store, tier: Tier, verified: int, damaged: Collection[int], pace: Pace) -> None:
    """Remove what is :func:`leaving`. Called after an upload, when none is under way."""
    listing = pace.retried(store.listing, f"listing {store.url}")
    for folder in leaving(listing, tier, verified, damaged):
        pace.retried(lambda folder=folder: store.remove(folder), f"removing {folder} from {store.url}")  # type: ignore[misc]
    pace.retried(store.sweep, f"removing unfinished uploads from {store.url}")
