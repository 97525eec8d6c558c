"""Uploads to a real S3 server that dies, refuses, errs and crawls; jobs that are killed in the middle of one."""

import itertools
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Launcher
from s3_server import Request, S3Proxy, S3Server
from tier_states import filled

from datastates import Checkpointer, ReplicationError, Tier

MakeProxy = Callable[[S3Server], S3Proxy]
Open = Callable[..., Checkpointer]
WIDTH = 2100
"""17.6 MB: two parts of 8.4 MB, for extents are not cut, and a small one."""
JOB = Path(__file__).with_name("uploading_job.py")


def tier(options: dict[str, Any], bucket: str = "bucket", **fields: Any) -> Tier:
    return Tier(f"s3://{bucket}/run", storage_options=options, **({"part_mb": 5.3, "threads": 1} | fields))


def is_part(number: int) -> Callable[[Request], bool]:
    return lambda request: request.part == number


def assert_restores(options: dict[str, Any], directory: Path, step: int, bucket: str = "bucket") -> None:
    """On a machine that has nothing, bit for bit."""
    state = filled(0, WIDTH)
    with Checkpointer(directory, replicate_to=tier(options, bucket)) as checkpoints:
        assert checkpoints.restore(state) == step + 1
    assert torch.equal(state["weight"], filled(step, WIDTH)["weight"])


def test_a_server_that_dies_and_comes_back(
    own_server: S3Server, make_proxy: MakeProxy, open_run: Open, tmp_path: Path
) -> None:
    """SIGKILL while part 3 is on its way: what it had is not sent again."""
    proxy = make_proxy(own_server)
    proxy.hold(is_part(3))
    checkpoints = open_run(tier(proxy.options))
    taken = checkpoints.checkpoint(1, filled(1, WIDTH))
    proxy.wait_held()
    own_server.kill()
    proxy.release()
    proxy.wait_until(lambda log: any(request.part == 3 and request.status == 0 for request in log))
    assert not taken.replicated.done()
    assert taken.durable.result(60)  # nobody here waits for a server
    own_server.start()
    assert taken.replicated.result(60) == "s3://bucket/run/step-00000001"
    assert sorted(proxy.sent_parts()) == list(range(1, len(proxy.sent_parts()) + 1))
    assert checkpoints.stats().num_replication_retries >= 1
    checkpoints.close()
    assert own_server.num_unfinished() == 0
    assert_restores(own_server.options, tmp_path / "elsewhere", 1)


def start_job(launch: Launcher, directory: Path, proxy: S3Proxy, *steps: int) -> Any:
    endpoint = proxy.options["endpoint_url"]
    return launch.python(JOB, directory, endpoint, str(WIDTH), *map(str, steps))


def test_a_trainer_killed_in_the_middle_of_an_upload(
    own_server: S3Server, make_proxy: MakeProxy, launch: Launcher, tmp_path: Path
) -> None:
    """The next job goes on with it: parts that are there are not sent again, the commit object comes last."""
    first, second = make_proxy(own_server), make_proxy(own_server)
    first.hold(is_part(3))
    job = start_job(launch, tmp_path / "run", first, 5)
    job.wait_for("durable 5")
    first.wait_held()
    assert first.sent_parts() == [1, 2]
    job.signal(signal.SIGKILL)
    assert job.wait(expect=None) == -signal.SIGKILL
    assert own_server.num_unfinished() == 1
    assert not any(key.endswith("manifest.json") for key in own_server.objects("bucket"))
    start_job(launch, tmp_path / "run", second).wait()
    resent = second.sent_parts()
    assert resent == list(range(3, 3 + len(resent)))
    puts = [
        request.target for request in second.log() if request.method == "PUT" and "partNumber" not in request.target
    ]
    assert puts[-1].endswith("/step-00000005/manifest.json")
    assert own_server.num_unfinished() == 0
    assert_restores(own_server.options, tmp_path / "elsewhere", 5)


def test_a_killed_job_whose_directory_is_lost_is_replaced(
    own_server: S3Server, make_proxy: MakeProxy, launch: Launcher, open_run: Open, tmp_path: Path
) -> None:
    """On another machine nothing is known of the upload: it is invisible, and removed after the next one."""
    proxy = make_proxy(own_server)
    proxy.hold(is_part(3))
    job = start_job(launch, tmp_path / "gone", proxy, 5)
    proxy.wait_held()
    job.signal(signal.SIGKILL)
    job.wait(expect=None)
    checkpoints = open_run(tier(own_server.options))
    assert checkpoints.restore(filled(0, WIDTH)) == 0
    checkpoints.checkpoint(2, filled(2, WIDTH)).replicated.result(60)
    checkpoints.close()
    assert {key.split("/")[1] for key in own_server.objects("bucket")} == {"step-00000002", "writer.json"}
    assert own_server.num_unfinished() == 0


def test_errors_that_pass(
    common_server: S3Server, bucket: str, make_proxy: MakeProxy, open_run: Open, tmp_path: Path
) -> None:
    """Every kind of request fails once or twice; the copy is made all the same."""
    proxy = make_proxy(common_server)
    kinds: list[Callable[[Request], bool]] = [
        is_part(2),
        lambda request: "uploads" in request.target and request.method == "POST",
        lambda request: "uploadId" in request.target and request.method == "POST",
        lambda request: "list-type=2" in request.target,
        lambda request: request.target.endswith("manifest.json"),
        lambda request: request.target.endswith("objects.json"),
        lambda request: request.target.endswith("writer.json"),
    ]
    for kind, status in zip(kinds, itertools.cycle([500, 503]), strict=False):
        proxy.fail(kind, status)
    checkpoints = open_run(tier(proxy.options, bucket))
    checkpoints.checkpoint(1, filled(1, WIDTH)).replicated.result(60)
    assert checkpoints.stats().num_replication_retries >= len(kinds)
    checkpoints.close()
    assert_restores(common_server.options, tmp_path / "elsewhere", 1, bucket)


def test_errors_that_do_not_pass(common_server: S3Server, bucket: str, open_run: Open, tmp_path: Path) -> None:
    wrong = common_server.options | {"secret": "wrong"}
    refused = open_run(tier(wrong, bucket)).checkpoint(1, filled(1)).replicated
    with pytest.raises(ReplicationError, match=rf"was not copied to s3://{bucket}/run: PermissionError"):
        refused.result(60)
    missing = open_run(tier(common_server.options, "no-such-bucket"), directory=tmp_path / "other")
    with pytest.raises(ReplicationError, match=r"FileNotFoundError: The specified bucket does not exist"):
        missing.checkpoint(1, filled(1)).replicated.result(60)


def test_the_next_checkpoint_is_due_after_a_failure(
    common_server: S3Server, bucket: str, make_proxy: MakeProxy, open_run: Open
) -> None:
    proxy = make_proxy(common_server)
    proxy.fail(lambda request: request.method == "PUT" and "writer" in request.target, 403)
    checkpoints = open_run(tier(proxy.options, bucket, every=100))
    assert isinstance(checkpoints.checkpoint(1, filled(1)).replicated.exception(60), ReplicationError)
    assert checkpoints.checkpoint(2, filled(2)).replicated.result(60) is not None
    assert checkpoints.checkpoint(3, filled(3)).replicated.result(60) is None


def test_a_slow_server_holds_up_nobody(
    common_server: S3Server, bucket: str, make_proxy: MakeProxy, open_run: Open
) -> None:
    proxy = make_proxy(common_server)
    proxy.hold(is_part(1))
    checkpoints = open_run(tier(proxy.options, bucket), keep_last=2)
    first = checkpoints.checkpoint(0, filled(0, WIDTH))
    proxy.wait_held()
    for step in range(1, 6):
        checkpoints.checkpoint(step, filled(step, WIDTH)).durable.result(60)
    checkpoints.gate()
    assert not first.replicated.done()
    assert checkpoints.stats().num_durable == 6
    proxy.release()
    assert first.replicated.result(60) == f"s3://{bucket}/run/step-00000000"


def test_the_cap_for_real(common_server: S3Server, bucket: str, open_run: Open) -> None:
    """17.6 MB at 20 MB/s: the last part leaves when those before it have had their time."""
    checkpoints = open_run(tier(common_server.options, bucket, bandwidth_mb_s=20, threads=4))
    begun_s = time.monotonic()
    checkpoints.checkpoint(1, filled(1, WIDTH)).replicated.result(60)
    elapsed_s = time.monotonic() - begun_s
    assert elapsed_s >= (17.6 - 8.4) / 20
    assert elapsed_s < 10


def test_exit_does_not_wait_for_ever(
    own_server: S3Server, make_proxy: MakeProxy, launch: Launcher, tmp_path: Path
) -> None:
    """A script that ends without close(), while the server stands still, ends; what was sent stays for the next job."""
    proxy = make_proxy(own_server)
    proxy.hold(is_part(2))
    job = launch.python(JOB, tmp_path / "run", proxy.options["endpoint_url"], str(WIDTH), "--leave", "5")
    proxy.wait_held()
    job.signal(signal.SIGUSR1)
    job.wait(timeout_s=60)
    assert "gave up the last checkpoints" in job.output
    assert proxy.sent_parts() == [1]
    assert own_server.num_unfinished() == 1


def test_python_is_the_one_with_the_server() -> None:
    """The server is a process of its own, not a mock inside this one."""
    assert "nanio" not in sys.modules
