"""The paid requests of one process: where they begin, who watches them, and how they end at a shutdown.

The way of one request is `app/paid_job.py`.
"""

import asyncio
from dataclasses import dataclass

from app.admission import PaidRequest
from app.delivery import Client
from app.errors import Overloaded
from app.paid_job import CHANNEL_CLOSING, SHUTDOWN, PaidJob, Shared
from app.rails.rail import Payer

__all__ = ["PaidJob", "PaidRequest", "Proxy"]


@dataclass(slots=True)
class Proxy(Shared):
    """The paid requests of one process: begun here, watched, and ended in order."""

    closing: bool = False

    def job(self, request: PaidRequest, payer: Payer, client: Client) -> PaidJob:
        """A job for one request. Raises `Overloaded` when the process is full or stopping."""
        # Who just opened a channel is answered by the job, whatever the answer is.
        if payer.session is None or not payer.session.opened:
            self.make_sure_of_room()
        return PaidJob(self, request, payer, client)

    def make_sure_of_room(self) -> None:
        """Raises `Overloaded` when the process is full or stopping: before a payer does anything for good."""
        if self.closing:
            raise Overloaded("this server is shutting down; try again", retry_after_s=1)
        if len(self.in_flight) >= self.settings.server.in_flight_max:
            raise Overloaded("too many requests are being served; try again", retry_after_s=1)

    def halt(self, account_id: str) -> None:
        """End the streams of a channel that serves nothing more; what was delivered is captured.

        A whole answer is finished: its hold pays for it.
        """
        for job in list(self.in_flight.values()):
            if job.account_id == account_id and not job.finishes_alone:
                job.stop(CHANNEL_CLOSING)

    def watch(self) -> None:
        """End jobs whose client does not read; break the silence of the others."""
        now_s = self.clock.monotonic_s()
        for job in list(self.in_flight.values()):
            job.watch(now_s)

    async def drain(self, *, timeout_s: float) -> None:
        """Refuse new work, let what runs finish until the deadline, then end and bill it."""
        self.closing = True
        running = {job.task for job in self.in_flight.values() if job.task is not None}
        if running:
            await asyncio.wait(running, timeout=timeout_s)
        for job in list(self.in_flight.values()):
            job.stop(SHUTDOWN, now=True)
        running = {job.task for job in self.in_flight.values() if job.task is not None}
        if running:
            await asyncio.wait(running, timeout=self.settings.ledger.commit_timeout_s)
