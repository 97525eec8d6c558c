"""Tiers: copies of published checkpoints elsewhere, made behind training; restore looks through them.

config      Tier: where, how often, how fast, how long                                    frozen, for users
plan        which ranges of which files travel together, and their checksums              pure
pace        bandwidth cap, retries, the end of waiting                                    used by the two below
stores      what a tier must be able to do; a directory, S3, any fsspec URL               the only ones that do I/O
upload      one checkpoint to one store, resumable, the manifest last
fetch       one checkpoint from one store into the local directory, verified on the way
retention   what a tier lets go of
replicator  the lanes that upload behind training
library     what is where: the local directory and all tiers, as restore sees them
"""

from datastates.tiers.config import Tier, tiers_of

__all__ = ["Tier", "tiers_of"]
