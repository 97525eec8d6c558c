"""A job with an S3 tier: ``uploading_job.py DIRECTORY ENDPOINT WIDTH [--leave] STEPS...``; restores first.

With ``--leave`` it ends, without ``close()``, on SIGUSR1.
"""

import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "support"))

from s3_server import KEY, SECRET
from tier_states import filled

import datastates
from datastates import checkpointer


def main() -> None:
    directory, endpoint, width, *rest = sys.argv[1:]
    leaves = "--leave" in rest
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    options = {"endpoint_url": endpoint, "key": KEY, "secret": SECRET}
    tier = datastates.Tier("s3://bucket/run", part_mb=5.3, threads=1, storage_options=options)
    checkpoints = datastates.Checkpointer(directory, replicate_to=tier)
    print("start", checkpoints.restore(filled(0, int(width))), flush=True)
    for step in (int(word) for word in rest if word != "--leave"):
        checkpoints.checkpoint(step, filled(step, int(width))).durable.result(60)
        print("durable", step, flush=True)
    if leaves:
        signal.sigwait([signal.SIGUSR1])
        checkpointer.EXIT_TIMEOUT_S = 1.0
    else:
        checkpoints.close()
        print("sent", checkpoints.stats().bytes_replicated_total, flush=True)


if __name__ == "__main__":
    main()
