"""What tests of tiers share: one S3 server for all that do not kill it, a bucket and a run's directory for each."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Proxy, S3Server

from datastates import Checkpointer, CheckpointError, Tier

_buckets = itertools.count()


@pytest.fixture(scope="session")
def common_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server that the test may kill, with the bucket ``bucket``."""
    server = S3Server(tmp_path / "s3", "bucket")
    yield server
    server.kill()


@pytest.fixture
def bucket(common_server: S3Server) -> str:
    """A new bucket on the common server."""
    name = f"bucket-{next(_buckets)}"
    (common_server.data / name).mkdir()
    return name


@pytest.fixture
def make_proxy() -> Iterator[Callable[[S3Server], S3Proxy]]:
    made: list[S3Proxy] = []

    def make(server: S3Server) -> S3Proxy:
        made.append(S3Proxy(server))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[Callable[..., Checkpointer]]:
    """Make checkpointers with tiers, of ``tmp_path / "run"``; closed when the test ends."""
    opened: list[Checkpointer] = []

    def open_one(replicate_to: Any, directory: Path | None = None, **options: Any) -> Checkpointer:
        opened.append(Checkpointer(directory or tmp_path / "run", replicate_to=replicate_to, **options))
        return opened[-1]

    yield open_one
    for checkpoints in opened:
        with contextlib.suppress(CheckpointError):
            checkpoints.close()


@pytest.fixture(params=["directory", "s3", "generic"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Tier:
    """A tier of every kind of store."""
    if request.param == "s3":
        server, bucket = request.getfixturevalue("common_server"), request.getfixturevalue("bucket")
        return Tier(f"s3://{bucket}/run", storage_options=server.options)
    if request.param == "generic":
        return Tier(f"memory://{tmp_path.name}/run")
    return Tier(tmp_path / "second")
