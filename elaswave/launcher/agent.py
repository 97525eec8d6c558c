"""The agent: starts this node's processes, learns of every end, tells everybody, decides when the job is over.

One thread, one event loop; whatever may block (the terminal, starting a process) is done by others.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Coroutine
from typing import Any

from torch.distributed import TCPStore

from elaswave import exits
from elaswave.launcher import door, plan
from elaswave.launcher.channel import Message
from elaswave.launcher.console import Console
from elaswave.launcher.desk import Desk
from elaswave.launcher.events import AgentLost, Death, Event, Spares, Started, decode, encode
from elaswave.launcher.links import Links
from elaswave.launcher.options import Options
from elaswave.launcher.places import Fill
from elaswave.launcher.plan import Job, Node, WorkerPlan
from elaswave.launcher.roster import Roster
from elaswave.launcher.staff import Process, Staff, draw_token
from elaswave.launcher.succession import Succession
from elaswave.launcher.watch import Watch

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)


class Agent:
    """One per node. All methods run on the event loop's thread."""

    def __init__(self, options: Options, console: Console, *, is_shim: bool, begins_anew: bool = False) -> None:
        """``begins_anew``: the same agents have met before, and some may not be back yet."""
        self._options, self._console, self._is_shim = options, console, is_shim
        self._secret = options.secret or secrets.token_hex(32)
        self._staff = Staff(console, self._has_ended)
        self._links = Links(
            options, self._secret, self, complain=console.say, spawn=self.spawn, begins_anew=begins_anew
        )
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_signals = 0
        self.asked: signal.Signals | None = None
        """what the workers were sent to make them end"""
        self._error: BaseException | None = None  # of a task of the agent's own
        self._status: int | None = None  # decided before everybody has ended
        self.may_restart = not options.joins
        """all agents are there to begin anew, and nobody has asked for the end"""
        self.node = options.node_rank
        self.has_number = not options.joins
        """``node`` is its number; who comes late gets one when it has met the others"""
        self._main: asyncio.Task[int] | None = None  # while the agents meet
        self._job: Job
        self._roster: Roster
        self._succession: Succession
        self._door: door.Door

    async def run(self) -> int:
        """Meet the other agents, start, watch, end."""
        self._main = asyncio.current_task()
        asyncio.get_running_loop().set_exception_handler(self._callback_failed)
        self._take_signals()
        if self._options.log_dir:
            self._options.log_dir.mkdir(parents=True, exist_ok=True)
        store = await asyncio.to_thread(TCPStore, "127.0.0.1", 0, is_master=True, wait_for_workers=False)
        try:
            await self._meet(store.port)
            self._main = None  # from here on signals are for the workers
            if self._job.num_ranks < self._options.min_ranks:
                return self._refuse_min_ranks()
            await self._open()
            await self._start_all()
            await self._over.wait()
        finally:
            await self._close()
        if self._error:
            raise self._error
        status = self._roster.exit_status(self._options.min_ranks) if self._status is None else self._status
        finished = f"{self._roster.num_finished()} of {self._job.num_ranks} ranks finished"
        self.say(f"{finished}; exit status {status}")
        return status

    def _refuse_min_ranks(self) -> int:
        self.say(
            f"--min-ranks must be at most the number of ranks, {self._job.num_ranks} on {len(self._job.nodes)} nodes "
            f"(--nproc-per-node), got {self._options.min_ranks}"
        )
        self.may_restart = False
        return exits.USAGE

    async def _meet(self, store_port: int) -> None:
        options = self._options
        me = Node(
            node=options.node_rank,
            host="127.0.0.1",
            port=0,
            store_port=store_port,
            num_workers=0 if options.joins else options.workers_per_node,
            num_spares=options.num_spares + (options.workers_per_node if options.joins else 0),
        )
        met = await self._links.meet(me, secrets.token_hex(6))
        self._job, self.node, self.has_number = met.job, met.node, True
        self._roster = Roster({node: self._job.ranks_of(node) for node in self._job.nodes})
        for message in met.history:
            self._roster.apply(decode(message))
        self._succession = Succession(options, self._roster, self._links, self.node, self)

    async def _open(self) -> None:
        desk = Desk(self._staff, self._roster, self.node, tell=self.tell, fence=self._fence, say=self._console.say)
        self._door = door.Door(f"elastates-{self._job.job}-{self.node}", desk.answer, self._staff.hung_up, self.spawn)
        await self._door.open()
        timeouts = self._options.timeouts
        where = f"node {self.node} of {len(self._job.nodes)}, {self._job.num_ranks} ranks in all"
        self.say(f"job {self._job.job}: {where}; {timeouts.describe()}")
        watch = Watch(
            self._staff, self._roster, timeouts, self.node, tell=self.tell, say=self._console.say, spawn=self.spawn
        )
        self.spawn(watch.run())
        self._links.begin()

    async def _close(self) -> None:
        await self._staff.end()
        await self._links.close()
        if hasattr(self, "_door"):
            self._door.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- starting ---------------------------------------------------------------------------------------------------

    async def _start_all(self) -> None:
        ranks = self._job.ranks_of(self.node)
        await asyncio.gather(*(self.start_rank(rank, attempt=0) for rank in ranks))
        await asyncio.gather(*map(self._start_spare, range(self._job.nodes[self.node].num_spares)))

    async def start_rank(self, rank: int, *, attempt: int) -> None:
        token = draw_token()
        out, err = plan.rank_logs(self._options.log_dir, rank=rank, attempt=attempt)
        env = self._rank_environment(rank, attempt) | self._job_environment(token)
        command = (
            plan.leashed_command(self._options) if self._options.is_leashed else plan.worker_command(self._options)
        )
        worker = WorkerPlan(title=f"rank {rank}", command=command, env=env, out=out, err=err)
        process = await self._staff.start(worker, token=token, rank=rank, attempt=attempt)
        self.tell(Started(rank=rank, node=self.node, attempt=attempt, pid=process.worker.pid))
        if self.asked:  # while it was being started
            process.worker.signal(self.asked)

    async def _start_spare(self, number: int) -> None:
        token = draw_token()
        out, err = plan.spare_logs(self._options.log_dir, node=self.node, number=number)
        env = {**self._job_environment(token), "ELASWAVE_SPARE": "1"}
        title = f"spare {self.node}.{number}"
        worker = WorkerPlan(title=title, command=plan.spare_command(self._options), env=env, out=out, err=err)
        await self._staff.start(worker, token=token, rank=None, attempt=0)
        self._tell_spares()

    def _rank_environment(self, rank: int, attempt: int) -> dict[str, str]:
        if self._is_shim:
            return {}
        ranks = self._job.ranks_of(self.node)
        return plan.rank_environment(
            self._job,
            node=self.node,
            rank=rank,
            local_rank=ranks.index(rank) if rank in ranks else len(self._staff.ranks()),
            attempt=attempt,
            master=self._job.nodes[self._links.living()[0]],
        )

    def _job_environment(self, token: str) -> dict[str, str]:
        return plan.job_environment(self._job, self._options, agent_address=door.address(self._door.name), token=token)

    # ---- ends and replacements --------------------------------------------------------------------------------------

    def _has_ended(self, process: Process, status: int) -> None:
        if process.rank is None:
            self.say(f"a spare (pid {process.worker.pid}) {exits.describe(status)}")
            self._tell_spares()
            return
        fill = None if status == exits.FINISHED else self._succession.find(process.rank)
        seat = self._roster.seats[process.rank]
        death = Death(
            rank=process.rank,
            node=self.node,
            attempt=process.attempt,
            pid=process.worker.pid,
            id=seat.joined.id if seat.joined else "",
            status=status,
            how=process.verdict or exits.describe(status),
            is_replaced=fill is not None,
        )
        self._report(death)
        self.tell(death)
        if fill:
            self._succession.fill(fill)

    def _report(self, death: Death) -> None:
        self._roster.apply(death)
        left = f"; {self._roster.num_left()} of {self._job.num_ranks} ranks are left" if death.status else ""
        self.say(f"rank {death.rank} (pid {death.pid}) {death.how}{left}")

    def promote(self, fill: Fill) -> bool:
        """Whether a spare of this node takes a place."""
        spare = None if self.is_ending else self._staff.free_spare()
        if spare is None:
            return False
        self.say(f"rank {fill.rank}: a spare (pid {spare.worker.pid}) takes its place")
        logs = plan.rank_logs(self._options.log_dir, rank=fill.rank, attempt=fill.attempt)
        env = self._rank_environment(fill.rank, fill.attempt)
        self._staff.promote(spare, rank=fill.rank, attempt=fill.attempt, env=env, logs=logs)
        self.tell(Started(rank=fill.rank, node=self.node, attempt=fill.attempt, pid=spare.worker.pid))
        self._tell_spares()
        return True

    @property
    def is_ending(self) -> bool:
        """Nobody is started or gets a place any more."""
        return self.asked is not None or self._status is not None

    def _tell_spares(self) -> None:
        num_free = 0 if self.is_ending else len(self._staff.free_spares())
        self.tell(Spares(node=self.node, num_free=num_free))

    # ---- news -------------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Everybody: this agent's own processes, and the other agents, which tell theirs."""
        self._links.send_all(encode(event))
        self._take_note(event)

    def _take_note(self, event: Event) -> None:
        self._roster.apply(event)
        self._staff.send(encode(event))
        self._succession.take_note(event)
        self._consider()

    def heard(self, node: int, message: Message) -> None:
        """Another agent's news, or what it asks for."""
        if "event" in message:
            self._take_note(decode(message))
        elif "kill" in message:
            self._fence(str(message["kill"]))
        elif "fill" in message:
            fill = Fill(node=self.node, is_spare=True, **message["fill"])
            if not self.promote(fill):
                self._links.send(node, {"not_filled": fill.rank})
        elif "not_filled" in message:
            self._succession.not_filled(int(message["not_filled"]))
        else:
            raise ValueError(f"node {node} sent {message!r}: not of this version of elastates")

    def agent_lost(self, node: int, why: str) -> None:
        """Its ranks may live or not; what it was the last to tell, the others may not all have heard."""
        if why:
            self.say(f"node {node} is lost: {why}")
            self.may_restart = False
        for seat in self._roster.seats.values():
            if seat.node == node and seat.death:
                self._links.send_all(encode(seat.death))
        self._take_note(AgentLost(node=node, why=why or "it has ended"))

    def agent_arrived(self, node: Node) -> list[Message]:
        """A late one: it gets to know all that has happened."""
        self._job = self._job.with_node(node)
        self.say(f"node {node.node} at {node.host} has joined with {node.num_spares} spares")
        return [encode(event) for event in self._roster.history()]

    def _consider(self) -> None:
        """Is the job over, or to be ended?"""
        if self._status is None and self._roster.num_left() < self._options.min_ranks:
            failure = self._roster.last_failure
            self._status = failure.status if failure else exits.NO_QUORUM
            if not self._roster.is_over():
                self.say(f"fewer than --min-ranks={self._options.min_ranks} are left: ending the others")
                self._end_ranks(signal.SIGTERM)
        elif self._status is None and self._roster.has_lost_its_state():
            # Later: the news that one of them was let in may be on its way, behind that of its members' deaths.
            asyncio.get_running_loop().call_later(self._options.timeouts.hang_answer_s, self._end_if_state_is_lost)
        if self._roster.is_over() and not self._staff.ranks():
            self._over.set()

    def _end_if_state_is_lost(self) -> None:
        if self._status is None and self._roster.has_lost_its_state():
            self._status = exits.NO_QUORUM if self._roster.has_lost_quorum() else exits.STATE_LOST
            self.say("all that live wait for ranks that are dead to let them in: ending them")
            self._end_ranks(signal.SIGTERM)

    def _fence(self, member_id: str) -> bool:
        """Kill a member that the others go on without. Its death, proven, is the answer."""
        rank = self._roster.rank_of(member_id)
        if rank is None:
            return False
        node = self._roster.seats[rank].node
        if node != self.node:
            return self._links.send(node, {"kill": member_id})
        for process in self._staff.ranks():
            if process.rank == rank:
                process.verdict = "was fenced: the others asked for its end"
                process.worker.kill()
        return True

    def say(self, text: str) -> None:
        """On the terminal."""
        self._console.say(text)

    # ---- signals ----------------------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        for number in (*ENDING, *PASSED_ON):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: signal.Signals) -> None:
        self.say(f"{number.name} received and passed on to the workers")
        if number in ENDING:
            self.may_restart = False
            self._num_signals += 1
            self._end_ranks(number)
            if self._main:
                self._main.cancel()
        else:
            self._staff.signal(number)

    def _end_ranks(self, number: signal.Signals) -> None:
        """Ask first; kill when asked twice, or when the time for a last checkpoint is over."""
        if self._num_signals > 1:
            self._staff.kill()
            return
        self.asked = number
        self._staff.signal(number)
        if self._staff.free_spares():
            self._tell_spares()
        asyncio.get_running_loop().call_later(self._options.timeouts.stop_grace_s, self._staff.kill)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        """A task of the agent's own that failed ends the agent: nothing is lost silently."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._fail(error)

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The same for what the event loop calls itself, as on a signal or when a process has ended."""
        if "handle" in context and isinstance(error := context.get("exception"), Exception):
            self._fail(error)
        else:
            loop.default_exception_handler(context)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._over.set()
