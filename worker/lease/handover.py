"""Handing over: how an instance that stands by gets the lease from one that still serves.

An instance that stands by and has *received a request* (proof that traffic is routed to it: a tagged revision without
traffic must not steal the writer's place; probes and scrapes prove nothing) asks in `successor.json` for the epoch it saw,
and repeats it while requests keep coming. The holder looks for it every second; after a minimum tenure, which keeps two
revisions from passing the lease to and fro while traffic is split, it drains and releases, and the release is reserved
for who asked. A request that is no longer repeated is stale: its sender has lost the traffic again. Nothing here is
needed for safety; lease.py alone is.

Where messages are pulled, no request proves anything. There an instance asks at its start if it is of another revision than
the holder: it was deployed to take over. One of the same revision stands by until the holder ends, because two of a revision
that both stay would pass the lease to and fro for ever.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from worker.bucket import Objects
from worker.config import Settings
from worker.errors import Mismatch, StoreUnavailable
from worker.lease.record import SUCCESSOR, Record, Successor

log = logging.getLogger(__name__)

_NOBODY = Successor(holder="", revision="", epoch=-1)
"""Stands for an unreadable request; it may be overwritten."""
_DEPLOYED_SECONDS: Final = 60.0
"""For so long, and for the holder's minimum tenure, an instance that pulls asks from its start on: a restart of the holder
takes less. One that has stood by for longer was not just deployed."""


class Succession:
    """One process's side of handing over, as the one who waits and as the one who serves. Only the event loop touches it."""

    def __init__(
        self,
        store: Objects,
        settings: Settings,
        *,
        holder: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._store, self._settings, self._holder = store, settings, holder
        self._clock, self._sleep = clock, sleep
        self._began = clock()
        self._message_seen = float("-inf")  # when the last message came in while standing by
        self._asked = float("-inf")  # when the last request was written
        self.successor: Successor | None = None
        """The instance that asks for the lease held, while its request is fresh."""
        self._rival = (-1, float("-inf"))  # the generation of another's request, and when we first saw it

    def message_received(self) -> None:
        """Note, while standing by, that traffic is routed to this instance."""
        self._message_seen = self._clock()

    async def ask(self, record: Record) -> None:
        """Ask the holder that `record` names to hand over, if this instance is wanted and no other one asks.

        Another's request that is no longer repeated is replaced: its writer may be dead, and the holder ignores it.

        Raises:
            StoreUnavailable: It is not known whether the request was written; it is repeated anyway.
        """
        now, fresh = self._clock(), self._settings.successor_fresh_seconds
        routed = now - self._message_seen <= fresh or self._deployed_after(record, now)
        if not routed or now - self._asked < fresh / 2:
            return
        request = await self.request()
        if request is not None and request[0].epoch == record.epoch and request[0].holder != self._holder:
            if request[1] != self._rival[0]:
                self._rival = request[1], now
            if now - self._rival[1] <= fresh:
                return  # the holder will hand over; the instance that gets messages then asks in turn
        self._asked = now
        wanted = Successor(holder=self._holder, revision=self._settings.revision, epoch=record.epoch)
        with contextlib.suppress(Mismatch):  # another instance was faster
            await self._store.write(
                SUCCESSOR,
                msgspec.json.encode(wanted),
                if_generation=0 if request is None else request[1],
                timeout=self._settings.lease_read_timeout_seconds,
            )
            log.info("asked the holder of epoch %d to hand over", record.epoch, extra={"action": "lease.asked"})

    def _deployed_after(self, record: Record, now: float) -> bool:
        """Whether this instance pulls, and was just started as another revision than the holder."""
        settings = self._settings
        if settings.delivery == "push" or record.revision == settings.revision:
            return False
        return now - self._began <= settings.tenure_min_seconds + _DEPLOYED_SECONDS

    async def reserved(self, record: Record) -> bool:
        """Whether a released record was released for another instance, which asked for it."""
        if record.state != "released":
            return False
        request = await self.request()
        return request is not None and request[0].epoch == record.epoch and request[0].holder != self._holder

    async def requested(self, epoch: Callable[[], int]) -> Successor:
        """Wait until a fresh request asks for the epoch held, and the minimum tenure has passed since this call.

        An outage is waited out. Cancel it when it no longer matters.
        """
        since = changed = self._clock()
        generation = -1
        while True:
            await self._sleep(self._settings.successor_poll_seconds)
            try:
                request = await self.request()
            except StoreUnavailable:
                continue  # the renewals complain already
            now = self._clock()
            if request is None or request[0].epoch != epoch() or request[0].holder == self._holder:
                self.successor = None
                continue
            if request[1] != generation:
                generation, changed = request[1], now
            fresh = now - changed <= self._settings.successor_fresh_seconds
            self.successor = request[0] if fresh else None
            if now - since >= self._settings.tenure_min_seconds and fresh:
                log.info("revision %s asks for the lease", request[0].revision, extra={"action": "lease.requested"})
                return request[0]

    async def request(self) -> tuple[Successor, int] | None:
        """The request in the bucket and its generation, or None.

        Raises:
            StoreUnavailable: It could not be read.
        """
        found = await self._store.read(SUCCESSOR, timeout=self._settings.lease_read_timeout_seconds)
        if found is None:
            return None
        try:
            return msgspec.json.decode(found[0], type=Successor), found[1]
        except msgspec.DecodeError:
            return _NOBODY, found[1]
