"""A process's part in a job: where it stands, its group, and the marks by which others see that it gets on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

from elaswave.agent_link import AgentLink, Listener
from elaswave.errors import ElasWaveError
from elaswave.launcher.hangs import straggler_scores
from elaswave.losses import asks_for_a_view
from elaswave.marks import MarkWriter
from elaswave.place import Place
from elaswave.timeouts import Timeouts

if TYPE_CHECKING:
    from elaswave.group import ElasticGroup, View

Phase = Literal["begin", "computed", "commit", "alive"]


class Run:
    """What ``elaswave.join()`` returns. One training thread marks; everything else is thread-safe."""

    def __init__(
        self, place: Place, backend: str, device: torch.device, link: AgentLink | None, timeouts: Timeouts
    ) -> None:
        self.place = place
        """where this process was started; ranks change when the group is edited, this does not"""
        self.backend = backend
        self.device = device
        self.timeouts = timeouts
        self.agent = link
        """the agent of this node; None where another launcher than ours started the job"""
        self.marks = MarkWriter()
        self._median_s: dict[int, float] = {}
        self._mark: dict[str, Callable[[int], None]] = {
            "begin": self.marks.begin,
            "computed": self.marks.computed,
            "commit": self.marks.commit,
            "alive": lambda step: self.marks.alive(),
        }
        if link:
            link.subscribe(self._heard)

    @property
    def rank(self) -> int:
        """In the group as it is now."""
        return dist.get_rank()

    @property
    def num_ranks(self) -> int:
        """Of the group as it is now."""
        return dist.get_world_size()

    @property
    def local_rank(self) -> int:
        """Among the processes of this node: which GPU is its own."""
        return self.place.local_rank

    @property
    def epoch(self) -> int:
        """How often the group was edited; 0 for a backend that cannot be."""
        return self.group.epoch if self.backend == "elastic" else 0

    @property
    def group(self) -> ElasticGroup:
        """The default process group as one that can be edited (elaswave/group.py: ElasticGroup).

        Raises:
            ElasWaveError: the backend is none that can be.
        """
        if self.backend != "elastic":
            raise ElasWaveError(f"backend {self.backend!r} cannot be edited: elaswave.join(backend='elastic')")
        from elaswave.group import ElasticGroup

        return ElasticGroup.of(dist.group.WORLD)

    @property
    def view(self) -> View | None:
        """The last that was taken up, by ``recover()`` or by joining; None for who was there from the start."""
        return self.group.view

    def recover(self, payload: bytes = b"") -> View:
        """After a loss: revoke, agree with the survivors, edit the group in place. Collective among them.

        Returns:
            The view (elaswave/group.py) in which they go on.

        Waiting for the others is no hang of this rank, which has answered by coming here.
        """
        with self.paused("recovery"):
            return self.group.recover(payload=payload)

    def progress(self, step: int, phase: Phase) -> None:
        """Mark how far the training thread is; costs well below 2 microseconds.

        Args:
            step: the optimizer step.
            phase: "begin" and "commit" of a step; between them silence for the failure timeout is a hang, once a first
                step has been committed. "computed": own work done, what follows waits for others (for the straggler
                score). "alive": a sign of life in a long step.
        """
        try:
            self._mark[phase](step)
        except KeyError:
            raise ValueError(f"phase must be one of {', '.join(self._mark)}, got {phase!r}") from None

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """While something takes as long as it takes ("evaluation"): silence is no hang. May be nested."""
        self.marks.pause(name)
        try:
            yield
        finally:
            self.marks.resume()

    def straggler_scores(self) -> dict[int, float]:
        """Rank at the start -> its own time per step over the median of all; empty without marks or an agent."""
        return straggler_scores(self._median_s)

    def subscribe(self, listener: Listener) -> None:
        """Hear what happens to other processes; nothing comes under a launcher other than ours."""
        if self.agent:
            self.agent.subscribe(listener)

    def close(self) -> None:
        """Leave the group and hang up. Idempotent."""
        if dist.is_initialized():
            dist.destroy_process_group()
        if self.agent:
            self.agent.close()

    def _heard(self, event: dict[str, object]) -> None:
        if event.get("event") == "pace":
            self._median_s[int(str(event["rank"]))] = float(str(event["median_s"]))
        elif event.get("event") == "death":
            self._median_s.pop(int(str(event["rank"])), None)
        elif event.get("event") == "hang" and self.backend == "elastic" and dist.is_initialized():
            self._leave_the_wait(str(event["rank"]), str(event["step"]))

    def _leave_the_wait(self, rank: str, step: str) -> None:
        """Free the training thread if it waits for a rank that hangs: by answering it shows that it does not itself.

        The text is one that ``elaswave.lost()`` understands; it names no rank, since the first that fell silent may be
        one of those that wait.
        """
        from elaswave.backend import comm_group_of

        group = comm_group_of()
        group.revoke(asks_for_a_view(f"no mark of rank {rank} in step {step}: a rank hangs", group.epoch))
