"""The agent: starts this node's processes, learns of every end, tells everybody, decides when the job is over.

One thread, one event loop; whatever may block (the terminal, starting a process) is done by others.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal

from torch.distributed import TCPStore

from elaswave import exits
from elaswave.errors import LaunchError
from elaswave.launcher import door, plan
from elaswave.launcher.channel import Channel, Message
from elaswave.launcher.console import Console
from elaswave.launcher.events import Death, Event, Joined, Started, encode
from elaswave.launcher.options import Options
from elaswave.launcher.plan import Job, Node, WorkerPlan
from elaswave.launcher.roster import Roster
from elaswave.launcher.staff import Process, Staff, draw_token

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)


def run(options: Options) -> int:
    """Be this node's agent until the job is over; returns the exit status."""
    # The workers are in sessions of their own and could not read the terminal; what they read is empty.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with Console(f"elastates {options.node_rank}") as console:
        try:
            return asyncio.run(Agent(options, console).run())
        except LaunchError as error:
            console.say(str(error))
            return exits.NOT_MET
        except OSError as error:
            console.say(f"{type(error).__name__}: {error}")
            return exits.USAGE


class Agent:
    """One per node. All methods run on the event loop's thread."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options, self._console = options, console
        self._staff = Staff(console, self._has_ended)
        self._over = asyncio.Event()
        self._starting: set[asyncio.Task[None]] = set()
        self._num_replaced = 0
        self._num_signals = 0
        self._asked: signal.Signals | None = None  # what the workers were sent to make them end
        self._status: int | None = None  # decided before everybody has ended
        self._job: Job
        self._roster: Roster

    async def run(self) -> int:
        """Start, watch, end."""
        self._take_signals()
        if self._options.log_dir:
            self._options.log_dir.mkdir(parents=True, exist_ok=True)
        store = await asyncio.to_thread(TCPStore, "127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._job = self._alone(store.port)
        self._roster = Roster([self._job.ranks_of(node.node) for node in self._job.nodes])
        self._door = door.Door(
            f"elastates-{self._job.job}-{self._options.node_rank}", self._answer, self._staff.hung_up
        )
        await self._door.open()
        self._console.say(f"job {self._job.job}: {self._job.num_ranks} ranks; {self._options.timeouts.describe()}")
        try:
            await self._start_all()
            await self._over.wait()
        finally:
            await self._staff.end()
            await self._door.close()
        status = self._roster.exit_status(self._options.min_ranks) if self._status is None else self._status
        self._console.say(
            f"{self._roster.num_finished()} of {self._job.num_ranks} ranks finished; exit status {status}"
        )
        return status

    # ---- starting ---------------------------------------------------------------------------------------------------

    def _alone(self, store_port: int) -> Job:
        options = self._options
        me = Node(
            node=0,
            host="127.0.0.1",
            port=0,
            store_port=store_port,
            num_workers=options.workers_per_node,
            num_spares=options.num_spares,
        )
        return Job(job=secrets.token_hex(6), secret=options.secret or secrets.token_hex(32), nodes=(me,))

    async def _start_all(self) -> None:
        ranks = self._job.ranks_of(self._options.node_rank)
        await asyncio.gather(*(self._start_rank(rank, attempt=0) for rank in ranks))

    async def _start_rank(self, rank: int, *, attempt: int) -> None:
        token = draw_token()
        process = await self._staff.start(
            self._rank_plan(rank, attempt, token), token=token, rank=rank, attempt=attempt
        )
        self._tell(Started(rank=rank, node=self._options.node_rank, attempt=attempt, pid=process.worker.pid))
        if self._asked:  # while it was being started
            process.worker.signal(self._asked)

    def _rank_plan(self, rank: int, attempt: int, token: str) -> WorkerPlan:
        node = self._options.node_rank
        out, err = plan.rank_logs(self._options.log_dir, rank=rank, attempt=attempt)
        env = plan.rank_environment(
            self._job, self._options, node=node, rank=rank, attempt=attempt, master=self._job.nodes[0]
        )
        env |= plan.job_environment(self._job, self._options, agent_address=door.address(self._door.name), token=token)
        return WorkerPlan(title=f"rank {rank}", command=plan.worker_command(self._options), env=env, out=out, err=err)

    # ---- what happens -----------------------------------------------------------------------------------------------

    def _has_ended(self, process: Process, status: int) -> None:
        if process.rank is None:
            return
        seat = self._roster.seats[process.rank]
        how = process.verdict or exits.describe(status)
        death = Death(
            rank=process.rank,
            node=self._options.node_rank,
            attempt=process.attempt,
            pid=process.worker.pid,
            id=seat.joined.id if seat.joined else "",
            status=status,
            how=how,
            is_replaced=status != exits.FINISHED and self._can_replace(),
        )
        self._roster.apply(death)
        left = (
            "" if status == exits.FINISHED else f"; {self._roster.num_left()} of {self._job.num_ranks} ranks are left"
        )
        self._console.say(f"rank {death.rank} (pid {death.pid}) {how}{left}")
        self._tell(death)
        if death.is_replaced:
            self._num_replaced += 1
            self._replace(death)

    def _can_replace(self) -> bool:
        return False

    def _replace(self, death: Death) -> None:
        raise AssertionError(death)

    def _tell(self, event: Event) -> None:
        """Everybody: this agent's own processes, and the other agents, which tell theirs."""
        self._take_note(event)

    def _take_note(self, event: Event) -> None:
        self._roster.apply(event)
        self._staff.send(encode(event))
        self._consider()

    def _consider(self) -> None:
        """Is the job over, or to be ended?"""
        failure = self._roster.last_failure
        if self._status is None and failure and self._roster.num_left() < self._options.min_ranks:
            self._status = failure.status
            if not self._roster.is_over():
                self._console.say(f"fewer than --min-ranks={self._options.min_ranks} are left: ending the others")
                self._end_ranks(signal.SIGTERM)
        if self._roster.is_over() and not self._staff.ranks():
            self._over.set()

    # ---- the workers' connections -----------------------------------------------------------------------------------

    def _answer(self, channel: Channel, pid: int, message: Message) -> None:
        if "hello" in message:
            self._welcome(channel, pid, message)
        elif self._staff.of_channel(channel) is None:
            raise ValueError(f"expected a hello first, got {message!r}")
        elif "kill" in message:
            self._fence(channel, str(message["kill"]))
        else:
            raise ValueError(f"expected hello or kill, got {message!r}")

    def _welcome(self, channel: Channel, pid: int, message: Message) -> None:
        process = self._staff.of_token(message.get("token"))
        for event in self._roster.history():
            channel.send(encode(event))
        process.channels.add(channel)
        who = message["hello"]
        if process.rank is not None and who:
            joined = Joined(
                rank=process.rank,
                node=self._options.node_rank,
                attempt=process.attempt,
                id=str(who["id"]),
                handle=str(who.get("handle", "")),
            )
            self._tell(joined)

    def _fence(self, channel: Channel, member_id: str) -> None:
        """Kill a member that the others go on without. Its death, proven, is the answer."""
        rank = self._roster.rank_of(member_id)
        target = next((process for process in self._staff.ranks() if process.rank == rank), None)
        if rank is None or target is None:
            channel.send({"unknown": member_id})
            return
        target.verdict = "was fenced: the others asked for its end"
        target.worker.kill()

    # ---- signals ----------------------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        for number in (*ENDING, *PASSED_ON):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: signal.Signals) -> None:
        self._console.say(f"{number.name} received and passed on to the workers")
        if number in ENDING:
            self._num_signals += 1
            self._end_ranks(number)
        else:
            self._staff.signal(number)

    def _end_ranks(self, number: signal.Signals) -> None:
        """Ask first; kill when asked twice, or when the time for a last checkpoint is over."""
        if self._num_signals > 1:
            self._staff.kill()
            return
        self._asked = number
        self._staff.signal(number)
        asyncio.get_running_loop().call_later(self._options.timeouts.stop_grace_s, self._staff.kill)
