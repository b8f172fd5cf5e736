"""Deploys, zombies and contenders: never two writers, never an acknowledgement that a restore misses (INV-1, 2, 4)."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from local.faults import Action, Verb
from local.gcs_process import FakeGcs
from local.proof import live_generation, restore
from local.worker_process import WorkerProcess, wait_until
from tests.crash.arena import WAIT_SECONDS, Arena, arena, until
from tests.crash.load import IN_FLIGHT
from tests.processes import push, pushing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OVERLAP_SECONDS = 10
SLOT = "*/ltx/0/*"
NOT_STUCK = {"LEASE_TTL_SECONDS": "60"}
"""A process that was frozen for longer than its own TTL ends by itself; here it has to be the seal that ends it."""


def test_deploy_overlap_with_traffic_still_going_to_the_old_revision(tmp_path: Path, cycle: int) -> None:
    """A new revision asks and gets the lease; the old one exits 0, is started again, and does not get it back."""

    async def scenario() -> None:
        async with arena(tmp_path, "deploy overlap") as scene:
            old, new = scene.worker("r1"), scene.worker("r2")
            scene.load.traffic = {old.url: 1}
            old.start()
            await scene.acknowledged(200)
            new.start()
            await until(lambda: new.state() == "standby", "standing by")
            scene.load.traffic = {old.url: 0.3, new.url: 0.7}
            assert await scene.ended(old) == 0
            restarting = asyncio.create_task(keep_started(scene, old))
            await scene.serving(new)
            gap = await first_ack_after_last(scene, old, new)
            await asyncio.sleep(OVERLAP_SECONDS)  # the platform's roll-out, not a wait for something
            scene.load.traffic = {new.url: 1}
            restarting.cancel()
            await asyncio.wait({restarting})
            assert old.state() == "standby"
            began = asyncio.get_running_loop().time()
            assert await asyncio.to_thread(old.stop) == 0
            assert asyncio.get_running_loop().time() - began < 4, "standing by, SIGTERM ends at once"
            assert new.state() == "serving"
            await scene.acknowledged(100)
            print(f"hand-over gap under load: {gap:.2f} s")

    asyncio.run(scenario())


async def keep_started(scene: Arena, worker: WorkerProcess) -> None:
    """Start a worker again whenever it ends, as the platform does while a revision has traffic."""
    while True:
        worker.start()
        assert await scene.ended(worker) == 0


async def first_ack_after_last(scene: Arena, old: WorkerProcess, new: WorkerProcess) -> float:
    """Seconds from the old instance's last acknowledgement to the new one's first."""
    await until(lambda: new.url in scene.load.first_ack, "the new instance's first acknowledgement")
    return scene.load.first_ack[new.url] - scene.load.last_ack[old.url]


def test_two_contenders_from_the_start(tmp_path: Path, cycle: int) -> None:
    """One serves and one holds what it gets; when the one is killed the other takes over by itself."""

    async def scenario() -> None:
        async with arena(tmp_path, "two contenders") as scene:
            one, two = scene.worker("r1"), scene.worker("r2")
            scene.load.traffic = {one.url: 0.5, two.url: 0.5}
            one.start()
            two.start()
            await scene.acknowledged(1)  # not many more: what the other one gets stays held
            await until(lambda: "starting" not in (one.state(), two.state()), "the start of both")
            states = {one: one.state(), two: two.state()}
            assert sorted(states.values()) == ["serving", "standby"]
            holder, other = (one, two) if states[one] == "serving" else (two, one)
            holder.kill()
            holder.wipe()
            scene.load.traffic = {other.url: 1}
            await scene.serving(other)
            await scene.acknowledged(200)

    asyncio.run(scenario())


def test_a_frozen_holder_that_thaws_after_the_takeover(tmp_path: Path, cycle: int) -> None:
    """SIGSTOP past the TTL, takeover, SIGCONT: the zombie acknowledges nothing new, harms nothing, and exits 0."""

    async def scenario() -> None:
        async with arena(tmp_path, "frozen holder") as scene:
            zombie, heir = scene.worker("r1", **NOT_STUCK), scene.worker("r2")
            scene.load.traffic = {zombie.url: 1}
            zombie.start()
            await scene.acknowledged(200)
            scene.freeze(zombie)
            heir.start()
            await scene.serving(heir)
            scene.load.traffic = {zombie.url: 0.1, heir.url: 0.9}
            await scene.acknowledged(200)
            scene.thaw(zombie)
            assert await scene.ended(zombie) == 0
            assert scene.litestreams(zombie) == []
            scene.load.traffic = {heir.url: 1}
            await scene.acknowledged(200)

    asyncio.run(scenario())


def test_frozen_between_commit_and_confirmation(tmp_path: Path, cycle: int) -> None:
    """SIGSTOP while a slot is on its way, takeover, SIGCONT, all under load: what was in doubt is not acknowledged."""

    async def scenario() -> None:
        async with arena(tmp_path, "frozen between commit and confirmation") as scene:
            zombie, heir = scene.worker("r1", **NOT_STUCK), scene.worker("r2")
            scene.load.traffic = {zombie.url: 1}
            zombie.start()
            await scene.acknowledged(200)
            rule = scene.gcs.faults.add(verb="insert", name="*/ltx/0/*", action="hang", times=1)
            await scene.hit(rule)
            scene.freeze(zombie)
            heir.start()
            await scene.serving(heir)
            before = scene.load.by_url[zombie.url]  # what it had sent before the freeze has been read since
            scene.load.traffic = {heir.url: 1}
            await scene.acknowledged(100)
            scene.gcs.faults.clear()
            scene.thaw(zombie)
            assert await scene.ended(zombie) == 0
            after = scene.load.by_url[zombie.url]
            # The group before may have been stored, and not answered yet, when the freeze came: that is an ack.
            assert after - before <= IN_FLIGHT, "a zombie acknowledged after the takeover"
            print(f"acknowledged by the zombie after it was frozen: {after - before}")

    asyncio.run(scenario())


@dataclass(frozen=True)
class Moment:
    """When the holder of one message is frozen: its Litestream stopped before, or by faults that meet its slot.

    `stored`: the slot is in the bucket when the other life restores.
    """

    faults: tuple[tuple[Verb, str, Action, float], ...]
    stored: bool


MOMENTS = {
    "before its PUT": Moment((), stored=False),
    "inside its PUT, which never arrives": Moment((("insert", SLOT, "hang", 0.0),), stored=False),
    "inside its PUT, which arrives after the seal": Moment((("insert", SLOT, "delay", 30.0),), stored=False),
    "between PUT and answer": Moment((("insert", SLOT, "drop", 0.0), ("get", SLOT, "hang", 0.0)), stored=True),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=list(MOMENTS))
def test_a_zombie_stores_nothing_after_the_seal(tmp_path: Path, cycle: int, moment: Moment) -> None:
    """INV-4: frozen, sealed, thawed, it acknowledges nothing that is not restored, ends, and what it wrote ends at the seal.

    A slot that was stored before the other life restored may be acknowledged after it: the other life has its message.
    """
    with FakeGcs(tmp_path / "gcs", buckets=("bucket",), log=tmp_path / "gcs.log") as gcs:
        scene = Arena(tmp_path, gcs)
        zombie, heir = scene.worker("r1", **NOT_STUCK), scene.worker("r2")
        try:
            zombie.start().wait_serving()
            assert push(zombie, 1, "m1").status_code == 204
            path = live_generation(gcs.url, scene.replica_url)
            rules = [
                gcs.faults.add(verb=verb, name=name, action=action, seconds=seconds, times=1)
                for verb, name, action, seconds in moment.faults
            ]
            if not rules:
                for pid in scene.litestreams(zombie):
                    os.kill(pid, signal.SIGSTOP)
            answer = pushing(zombie, 2, "m2")
            if rules:
                gcs.faults.wait_for_hits(rules[-1])
            else:
                wait_until(lambda: has_user(zombie, 2), "the COMMIT")
            scene.freeze(zombie)

            heir.start().wait_serving()
            assert has_user(heir, 2) == moment.stored
            *_, seal = sorted(names(gcs, f"{path}/ltx/0/"))
            gcs.faults.clear()
            scene.thaw(zombie)
            assert zombie.wait(seconds=WAIT_SECONDS) == 0
            acknowledged = answer.exception(WAIT_SECONDS) is None and answer.result().status_code == 204
            assert moment.stored or not acknowledged

            assert push(heir, 2, "m2").status_code == 204
            assert max(name.rpartition("-")[2] for name in names(gcs, f"{path}/ltx/")) == seal.rpartition("-")[2]
            restore(gcs.url, f"gs://bucket/{path}", tmp_path / "old.db")
            with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as old:
                users = [user for (user,) in old.execute("SELECT user_id FROM users ORDER BY user_id")]
            assert users == ([1, 2] if moment.stored else [1])
        except BaseException:
            print(zombie.tail(4000), heir.tail(4000))
            raise
        finally:
            zombie.kill()
            heir.kill()


def has_user(worker: WorkerProcess, user: int) -> bool:
    """Whether a worker's database has a user."""
    return httpx.get(f"{worker.url}/users/{user}", timeout=10, trust_env=False).status_code == 200


def names(gcs: FakeGcs, prefix: str) -> list[str]:
    """The objects below a prefix."""
    answer = httpx.get(f"{gcs.url}/storage/v1/b/bucket/o", params={"prefix": prefix}, trust_env=False, timeout=60)
    return [item["name"] for item in answer.raise_for_status().json().get("items", [])]
