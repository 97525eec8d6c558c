"""A rank for tests of the launcher: no torch, says what it hears, does what its arguments say. Lines are the results.

launched_rank.py [RANK:ACTION[,ACTION...]] ...     every rank without actions of its own waits for the others' end
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from elaswave import agent_link

RANK = int(os.environ["RANK"])
NUM_RANKS = int(os.environ["WORLD_SIZE"])
WAITED_FOR = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def say(line: str) -> None:
    """In one piece: the news come on another thread."""
    os.write(1, f"{line}\n".encode())


class Heard:
    """News of the agent, printed and waited for."""

    def __init__(self) -> None:
        self.events: list[agent_link.Message] = []
        self._changed = threading.Condition()

    def __call__(self, event: agent_link.Message) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
        about = {key: event[key] for key in ("rank", "node", "id", "how", "status", "handle", "why") if key in event}
        say(f"heard {event.get('event')} {about}")

    def wait(self, condition: Callable[[list[agent_link.Message]], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.events), 60), f"rank {RANK} heard {self.events}"

    def joined(self) -> None:
        self.wait(lambda events: len({event["rank"] for event in events if event["event"] == "joined"}) == NUM_RANKS)

    def death_of(self, rank: int) -> None:
        self.wait(lambda events: any(e["event"] == "death" and e["rank"] == rank for e in events))


def act(action: str, heard: Heard, link: agent_link.AgentLink) -> None:
    """One action: a word and, behind "=", its operand."""
    name, _, operand = action.partition("=")
    if name == "joined":
        heard.joined()
    elif name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "fence":
        link.kill(f"member-{operand}")
    elif name == "death":
        heard.death_of(int(operand))
    elif name == "die_once":
        if os.environ["ELASWAVE_ATTEMPT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
    elif name == "wait_if_first":
        if os.environ["ELASWAVE_ATTEMPT"] == "0":
            say(f"rank {RANK} waits")
            signal.sigwait(WAITED_FOR)
    elif name == "rejoined":
        rank = int(operand)
        heard.wait(lambda events: any(e["event"] == "joined" and e["rank"] == rank and e["attempt"] for e in events))
    elif name == "agent_lost":
        heard.wait(lambda events: any(e["event"] == "agent_lost" and e["node"] == int(operand) for e in events))
    elif name == "exit":
        sys.exit(int(operand))
    elif name == "agent_ended":
        heard.wait(lambda events: any(event["event"] == "agent_ended" for event in events))
    elif name == "signal":
        signal.sigwait(WAITED_FOR)
    elif name == "stdin":
        say(f"stdin {sys.stdin.read()!r}")
    else:
        raise ValueError(action)


def main() -> None:
    heard = Heard()
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    link = agent_link.of_process()
    assert link
    link.subscribe(heard)
    own = ",".join(word.partition(":")[2] for word in sys.argv[1:] if word.partition(":")[0] in (str(RANK), "all"))
    if "child" in own.split(","):  # before anybody knows this rank and can do something to it
        say(f"child {subprocess.Popen(['sleep', '600']).pid}")
    link.hello(f"member-{RANK}", f"handle-of-{RANK}")
    say(f"pid {os.getpid()} of rank {RANK}")
    for action in own.split(","):
        if action not in ("", "child"):
            act(action, heard, link)
    say(f"done {RANK}")


main()
