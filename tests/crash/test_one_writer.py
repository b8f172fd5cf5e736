"""Deploys, zombies and contenders: never two writers, never an acknowledgement that a restore misses (INV-1, 2, 4)."""

import asyncio
from pathlib import Path

import pytest

from local.worker_process import WorkerProcess
from tests.crash.arena import Arena, arena, until
from tests.crash.load import IN_FLIGHT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OVERLAP_SECONDS = 20


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
            zombie, heir = scene.worker("r1"), scene.worker("r2")
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


@pytest.mark.parametrize(
    ("verb", "name", "between", "answered"),
    [
        # The group before may have been uploaded, and its lease read answered, when the freeze came: that is an ack.
        ("insert", "*/ltx/0/*", "commit and confirmation", IN_FLIGHT),
        ("download", "*/lease.json", "confirmation and lease read", 0),
    ],
)
def test_frozen_at_the_worst_moment(tmp_path: Path, cycle: int, verb: str, name: str, between: str, answered: int) -> None:
    """SIGSTOP between two steps of the acknowledgement, takeover, SIGCONT: what was in doubt is not acknowledged."""

    async def scenario() -> None:
        async with arena(tmp_path, f"frozen between {between}") as scene:
            zombie, heir = scene.worker("r1"), scene.worker("r2")
            scene.load.traffic = {zombie.url: 1}
            zombie.start()
            await scene.acknowledged(200)
            rule = scene.gcs.faults.add(verb=verb, name=name, action="hang", times=1)  # type: ignore[arg-type]
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
            assert after - before <= answered, "a zombie acknowledged after the takeover"
            print(f"acknowledged by the zombie after it was frozen: {after - before}")

    asyncio.run(scenario())
