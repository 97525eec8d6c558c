"""What ``test_torchft.py`` starts: torchft's lighthouse, or a replica that its Manager trains on our group.

    torchft_job.py lighthouse
    torchft_job.py ADDRESS NAME

A replica prints the step, the number of participants and the sum of the parameters after every committed step.
"""

import os
import signal
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchft import Manager, Optimizer
from torchft.coordination import LighthouseServer

from elaswave.torchft_group import TorchftGroup

WIDTH = 16


def say(text: str) -> None:
    """In one piece: torchft writes to the same file."""
    os.write(sys.stdout.fileno(), f"{text}\n".encode())


def light() -> None:
    server = LighthouseServer(bind="[::]:0", min_replicas=2, join_timeout_ms=1000, heartbeat_timeout_ms=1000)
    say(f"LIGHTHOUSE {server.address()}")
    signal.pause()


def replicate(lighthouse: str, name: str) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.manual_seed(sum(map(ord, name)))  # each its own: those who join are given the state of the others
    net = nn.Linear(WIDTH, WIDTH)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01)

    def load(state: dict[str, Any]) -> None:
        net.load_state_dict(state["net"])

    manager = Manager(
        pg=TorchftGroup(timeout=timedelta(seconds=20)),
        load_state_dict=load,
        state_dict=lambda: {"net": net.state_dict()},
        min_replica_size=2,
        timeout=timedelta(seconds=60),
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=lighthouse,
        replica_id=name,
        hostname="127.0.0.1",
    )
    optimizer = Optimizer(manager, sgd)
    while True:
        optimizer.zero_grad()  # asks for a quorum
        net(torch.randn(4, WIDTH)).square().mean().backward()
        for parameter in net.parameters():  # by hand: torchft 0.2's own DDP ends with an assertion when a peer dies
            manager.allreduce(parameter.grad).wait()
        before = manager.current_step()
        optimizer.step()
        if manager.current_step() > before:
            total = sum(parameter.double().sum().item() for parameter in net.parameters())
            say(f"COMMITTED {manager.current_step()} {manager.num_participants()} {total:.12f}")


if __name__ == "__main__":
    light() if sys.argv[1] == "lighthouse" else replicate(*sys.argv[1:])
