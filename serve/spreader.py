"""Gives bulk jobs out: to device after device, at the job's pace, once each, whatever ends in between.

What a device is given has an id that follows from the job's and its own. So whoever goes on after a crash may
give it again: the device knows it, and what the store knows is not given at all.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, Protocol

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.messages import CancelCommand, ChangeTwin, Message, Outcome, Refusal, SendCommand
from sensorium.actors.records import OPEN_STATES, Command
from sensorium.ingest.pipeline import Router
from sensorium.storage.bulk_jobs import (
    CANCELLED,
    CANCELLING,
    COMMAND,
    DONE,
    GIVEN,
    REFUSED,
    RUNNING,
    BulkItem,
    BulkJob,
)

LOOK_EVERY_S: Final = 0.5
JOBS_AT_ONCE: Final = 8
"""Jobs that are given out side by side; the others wait for one of them to end."""
BATCH: Final = 200
"""Devices between two notes of how far a job is, at most."""
BATCH_S: Final = 0.5
"""And how long a batch takes, about: so long after a cancellation devices may still have it."""
FULL_RETRY_S: Final = 5.0
"""After which devices with too many open commands are tried again, until the command would have expired."""
MAX_RESTING: Final = 1_000
"""Jobs that only wait for such devices; more of them wait for their turn."""
CANCEL_PAGE: Final = 500
MAX_CANCEL_ROUNDS: Final = 1_000
"""Pages of open commands that are cancelled before the next look."""


_FULL: Final = "overloaded"


class KeepsJobs(Protocol):
    """Where jobs are, as `storage.bulk_jobs.BulkJobs` has them."""

    async def get(self, job_id: str) -> BulkJob | None: ...
    async def open(self, limit: int) -> list[BulkJob]: ...
    async def pending(self, job_id: str, limit: int, after: str = ...) -> list[str]: ...
    async def mark(self, job_id: str, items: Sequence[BulkItem]) -> None: ...
    async def drop_pending(self, job_id: str) -> None: ...
    async def finish(self, job_id: str, before: str, after: str) -> None: ...


class FindsCommands(Protocol):
    """Commands by their ids, and those of a job."""

    async def find(self, command_ids: Sequence[str]) -> list[Command]: ...
    async def page(
        self,
        device_id: str | None,
        state: str | None,
        command: str | None,
        job_id: str | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Any: ...


def command_id_of(job_id: str, device_id: str) -> str:
    """The id of a job's command to a device."""
    return blake2b(f"{job_id}\0{device_id}".encode(), digest_size=16).hexdigest()


class Spreader:
    """Works on every job that is open, until cancelled. Several at once do no harm, but share no pace."""

    def __init__(
        self,
        router: Router,
        jobs: KeepsJobs,
        commands: FindsCommands,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._clock_ms = clock_ms
        self._resting: dict[str, float] = {}
        """Jobs of which only devices are left that were full, and when they are tried again."""
        self._router = router
        self._jobs = jobs
        self._commands = commands
        self._running: set[str] = set()
        self._given = self._refused = 0

    def statistics(self) -> dict[str, int]:
        """Counts since the start, and how many jobs are under way."""
        resting = {"resting": len(self._resting)}
        return {"jobs": len(self._running), "given": self._given, "refused": self._refused, **resting}

    async def run(self) -> None:
        """Look for jobs and work on them."""
        clock_s = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    jobs = await self._jobs.open(JOBS_AT_ONCE + len(self._resting))
                except LogUnavailable:
                    jobs = []  # the next look is due soon
                else:
                    known = {job.job_id for job in jobs}
                    self._resting = {id_: due_s for id_, due_s in self._resting.items() if id_ in known}
                for job in jobs:
                    if job.state == RUNNING and clock_s() < self._resting.get(job.job_id, 0.0):
                        continue
                    # Cancelling is short, and must not wait for what it is to end.
                    room = job.state == CANCELLING or len(self._running) < JOBS_AT_ONCE
                    if job.job_id not in self._running and room:
                        self._running.add(job.job_id)
                        tasks.create_task(self._work(job), name=f"bulk job {job.job_id}")
                await asyncio.sleep(LOOK_EVERY_S)

    async def _work(self, job: BulkJob) -> None:
        try:
            await (self._cancel(job) if job.state == CANCELLING else self._spread(job))
        except LogUnavailable:
            return  # found open again by the next look
        finally:
            self._running.discard(job.job_id)

    async def _spread(self, job: BulkJob) -> None:
        clock_s = asyncio.get_running_loop().time
        batch = max(1, min(BATCH, round(job.per_second * BATCH_S)))
        next_s = clock_s()
        begun = False
        last, full = "", 0
        while True:
            # Before it is asked whether the job goes on, so that nobody has it after a cancellation.
            await asyncio.sleep(max(0.0, next_s - clock_s()))
            now = await self._jobs.get(job.job_id)
            if now is None or now.state != RUNNING:
                return
            device_ids = await self._jobs.pending(job.job_id, batch, last)
            if not device_ids and full and len(self._resting) < MAX_RESTING:
                self._resting[job.job_id] = clock_s() + FULL_RETRY_S
                return
            if not device_ids and full:
                last, full = "", 0
                await asyncio.sleep(FULL_RETRY_S)
                continue
            if not device_ids:
                await self._jobs.finish(job.job_id, RUNNING, DONE)
                return
            last = device_ids[-1]
            known = set[str]() if begun else await self._known(job, device_ids)
            begun = True
            giving = []
            async with asyncio.TaskGroup() as tasks:
                for device_id in device_ids:
                    if device_id in known:
                        continue
                    await asyncio.sleep(max(0.0, next_s - clock_s()))
                    # What was waited too long for is not made up for: nobody wants a burst.
                    next_s = max(next_s, clock_s() - BATCH_S) + 1.0 / job.per_second
                    giving.append(tasks.create_task(self._give(job, device_id)))
            items = [BulkItem(device_id, GIVEN) for device_id in known]
            given = [item for task in giving if (item := task.result()) is not None]
            full += len(giving) - len(given)
            await self._jobs.mark(job.job_id, [*items, *given])

    async def _known(self, job: BulkJob, device_ids: Sequence[str]) -> set[str]:
        """Those of the devices that somebody gave it to before who could not note that any more."""
        if job.kind != COMMAND:
            return set()  # a patch that was made already changes nothing
        found = await self._commands.find([command_id_of(job.job_id, device_id) for device_id in device_ids])
        return {command.device_id for command in found}

    async def _give(self, job: BulkJob, device_id: str) -> BulkItem | None:
        """What became of it; None: the device is full for now, and is tried again."""
        outcome = await self._outcome(_message(job, device_id))
        if isinstance(outcome, Refusal):
            full = outcome.code == _FULL and job.kind == COMMAND
            if full and self._clock_ms() < job.spec["expires_ms"]:
                return None
            self._refused += 1
            return BulkItem(device_id, REFUSED, f"{outcome.code}: {outcome.detail}")
        self._given += 1
        return BulkItem(device_id, GIVEN)

    async def _cancel(self, job: BulkJob) -> None:
        await self._jobs.drop_pending(job.job_id)
        if job.kind == COMMAND:
            for _ in range(MAX_CANCEL_ROUNDS):
                pages = [
                    await self._commands.page(
                        device_id=None,
                        state=str(state),
                        command=None,
                        job_id=job.job_id,
                        start_ms=None,
                        end_ms=None,
                        after=None,
                        limit=CANCEL_PAGE,
                    )
                    for state in OPEN_STATES
                ]
                found = [command for page in pages for command in page.items]
                if not found:
                    break
                await asyncio.gather(
                    *(self._outcome(CancelCommand(c.device_id, c.command_id)) for c in found)
                )
            else:
                return
        await self._jobs.finish(job.job_id, CANCELLING, CANCELLED)

    async def _outcome(self, message: Message) -> Outcome:
        """After the commit; the router tries until then."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(_: None, outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self._router.message(message, done, None)
        return await future


def _message(job: BulkJob, device_id: str) -> Message:
    spec = job.spec
    if job.kind == COMMAND:
        return SendCommand(
            *(device_id, command_id_of(job.job_id, device_id), spec["command"], spec["parameters"]),
            *(spec["timeout_ms"], spec["expires_ms"], spec["retries"], job.job_id),
        )
    return ChangeTwin(device_id, desired=spec["desired"], by=spec["by"])
