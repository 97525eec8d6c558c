"""What a tier lets go of: old checkpoints, and what uploads that ended left behind."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection

from datastates.directory import expired, step_name
from datastates.tiers.config import Tier
from datastates.tiers.pace import Pace
from datastates.tiers.shelf import SHARED, Shelf
from datastates.tiers.stores import Store
from datastates.tiers.stores.base import Listing, complete_steps

logger = logging.getLogger("datastates")
_UPLOAD = re.compile(r"(\.up-)?step-\d{8,}")


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


def prune(store: Store, shelf: Shelf, tier: Tier, verified: int, damaged: Collection[int], pace: Pace) -> None:
    """Remove what is :func:`leaving`, but for what others refer to. Called after an upload, when none is under way."""
    listing = pace.retried(store.listing, f"listing {store.url}")
    folders = leaving(listing, tier, verified, damaged)
    keep = shelf.referenced([step for step in complete_steps(listing) if step_name(step) not in folders], listing)
    for folder in folders:
        if any(f"{folder}/{file}" not in keep for file in listing[folder]):
            what = f"removing {folder} from {store.url}"
            pace.retried(lambda folder=folder: store.remove(folder, keep), what)  # type: ignore[misc]
    for name in (f"{SHARED}/{file}" for file in listing.get(SHARED, {})):
        if name not in keep:
            pace.retried(lambda name=name: store.drop(name), f"removing {name} from {store.url}")  # type: ignore[misc]
    pace.retried(store.sweep, f"removing unfinished uploads from {store.url}")
