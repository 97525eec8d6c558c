"""Stores: the places a tier can be, behind one small interface."""

from __future__ import annotations

from datastates.tiers.config import Tier
from datastates.tiers.stores.base import Source, Store
from datastates.tiers.stores.directory import DirectoryStore, local_path

S3 = ("s3://", "s3a://")

__all__ = ["Source", "Store", "open_store"]


def open_store(tier: Tier) -> Store:
    """The store of a tier. Asks nobody anything yet.

    Raises:
        ImportError: the URL needs a package that is not installed; names it and the extra.
        ValueError: nobody knows this kind of URL.
    """
    path = local_path(tier.url)
    if path is not None:
        return DirectoryStore(path)
    fs, root = _file_system(tier)
    if tier.url.startswith(S3):
        from datastates.tiers.stores.s3 import S3Store

        return S3Store(tier.url, fs, root)
    from datastates.tiers.stores.generic import GenericStore

    return GenericStore(tier.url, fs, root)


def _file_system(tier: Tier) -> tuple[object, str]:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(
            f"the tier {tier.url} needs fsspec, which is not installed: pip install 'elastates[remote]'; "
            "a directory as a tier needs nothing"
        ) from error
    # Not from fsspec's cache of instances: one that another thread or a parent process used has its event loop.
    options = {"skip_instance_cache": True, "use_listings_cache": False, **tier.storage_options}
    if tier.url.startswith(S3):  # retries are ours: counted, bounded, and ended with the job
        once = {"retries": {"max_attempts": 0}}
        options["config_kwargs"] = once | options.get("config_kwargs", {})
    try:
        fs, root = fsspec.core.url_to_fs(tier.url, **options)
    except ImportError as error:
        raise ImportError(
            f"the tier {tier.url} needs a package that fsspec names so: {error}; pip install it beside "
            "'elastates[remote]'"
        ) from error
    return fs, root
