"""Hosts on one machine: network namespaces with a switch between them, made and removed again. Needs root.

    with Hosts(2) as hosts:
        subprocess.Popen(hosts[0].command("python", "job.py"))
        hosts[1].cut()

What runs in a namespace sees its own loopback and one address, 10.99.0.(1 + number); nothing leads outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from types import TracebackType

INTERFACE = "eth0"
PROBE = "ip link add bridge type bridge; ip link add one type veth peer name other"


@dataclass(frozen=True)
class Host:
    """A namespace and its cable to the switch."""

    name: str
    address: str

    def command(self, *words: object) -> list[str]:
        """The command line that runs ``words`` there."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def cut(self) -> None:
        """Unplug the cable: nothing arrives any more, and nobody is told."""
        _ip("-n", self.name, "link", "set", INTERFACE, "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip("-n", self.name, "link", "set", INTERFACE, "up")

    @property
    def link(self) -> str:
        """As the chaos script wants it: NAMESPACE:INTERFACE."""
        return f"{self.name}:{INTERFACE}"


class Hosts:
    """So many hosts on one switch, which is a bridge in a namespace of its own."""

    def __init__(self, num_hosts: int) -> None:
        self._prefix = f"elastates-{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self._hosts = [Host(f"{self._prefix}-{i}", f"10.99.0.{i + 1}") for i in range(num_hosts)]

    @staticmethod
    def problem() -> str:
        """Why there can be none here; empty if there can."""
        if os.geteuid() != 0:
            return "network namespaces need root"
        if shutil.which("ip") is None:
            return "network namespaces need ip: apt-get install iproute2"
        probe = subprocess.run(["unshare", "--net", "sh", "-ec", PROBE], capture_output=True, text=True)
        return "" if probe.returncode == 0 else f"network namespaces cannot be made: {probe.stderr.strip()}"

    def __enter__(self) -> Hosts:
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
            for number, host in enumerate(self._hosts):
                self._plug_in(host, f"port{number}")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def __len__(self) -> int:
        return len(self._hosts)

    def _plug_in(self, host: Host, port: str) -> None:
        _ip("netns", "add", host.name)
        _ip("-n", host.name, "link", "add", INTERFACE, "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", INTERFACE)
        for interface in ("lo", INTERFACE):
            _ip("-n", host.name, "link", "set", interface, "up")

    def _remove(self) -> None:
        for name in [*(host.name for host in self._hosts), self._switch]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
