"""`Bucket` against the fake Cloud Storage through Google's client: what the lease and a restore stand on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.gcs_process import FakeGcs
from worker.errors import Mismatch, StoreMissing, StoreThrottled, StoreUnavailable
from worker.replica.bucket import Bucket

pytestmark = pytest.mark.slow

TIMEOUT = 5.0


@pytest.fixture
def bucket(fake_gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A prefix of the fake's bucket."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs.url)
    made = Bucket("users", "store")
    yield made
    made.close()


def test_swap_read_and_delete(bucket: Bucket) -> None:
    """A write says its generation, a read agrees, a stale write is a mismatch, and a deleted object is gone."""

    async def body() -> None:
        assert await bucket.read("a", timeout=TIMEOUT) is None
        first = await bucket.write("a", b"1", if_generation=0, timeout=TIMEOUT)
        assert await bucket.read("a", timeout=TIMEOUT) == (b"1", first)
        second = await bucket.write("a", b"2", if_generation=first, timeout=TIMEOUT)
        for stale in (0, first):
            with pytest.raises(Mismatch):
                await bucket.write("a", b"3", if_generation=stale, timeout=TIMEOUT)
        assert await bucket.read("a", timeout=TIMEOUT) == (b"2", second)
        assert await bucket.updated("a", timeout=TIMEOUT) is not None
        await bucket.delete("a", timeout=TIMEOUT)
        await bucket.delete("a", timeout=TIMEOUT)
        assert await bucket.updated("a", timeout=TIMEOUT) is None

    asyncio.run(body())


def test_a_missing_bucket_is_named(fake_gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a bucket that does not exist says so, and what to do."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs.url)
    with pytest.raises(StoreMissing, match="no such bucket; create it, or correct REPLICA_URL"):
        asyncio.run(Bucket("nowhere", "x").write("a", b"1", if_generation=0, timeout=TIMEOUT))


@pytest.mark.parametrize("action", ["hang", "drop", "refuse", "error"])
def test_no_answer_is_unknown_and_nothing_is_retried_behind_our_back(bucket: Bucket, fake_gcs: FakeGcs, action: str) -> None:
    """A hang, a lost answer, a closed connection and a 503 are one request each, and `StoreUnavailable`."""
    fake_gcs.faults.add(verb="insert", action=action)  # type: ignore[arg-type]
    fake_gcs.faults.reset_stats()
    with pytest.raises(StoreUnavailable):
        asyncio.run(bucket.write("a", b"1", if_generation=0, timeout=0.5))
    assert fake_gcs.faults.stats()["insert"] == 1


def test_an_answer_that_drips_is_bounded_as_a_whole(bucket: Bucket, fake_gcs: FakeGcs) -> None:
    """More time than the timeout is an outage, however the time was spent."""
    asyncio.run(bucket.write("a", b"1", if_generation=0, timeout=TIMEOUT))
    fake_gcs.faults.add(verb="download", action="delay", seconds=20)
    with pytest.raises(StoreUnavailable):
        asyncio.run(bucket.read("a", timeout=0.3))


async def fill(bucket: Bucket, count: int) -> None:
    """Objects below g/ltx/0/, and one beside."""
    for number in range(count):
        await bucket.write(f"g/ltx/0/{number:04}", str(number).encode(), if_generation=0, timeout=TIMEOUT)
    await bucket.write("g/manifest.json", b"{}", if_generation=0, timeout=TIMEOUT)


def test_names_folders_and_fetch(bucket: Bucket, tmp_path: Path) -> None:
    """A listing is in order; a fetch brings every object below a prefix, whole under its own name, and no other."""

    async def body() -> None:
        await fill(bucket, 60)
        assert await bucket.names("g/ltx/", timeout=TIMEOUT) == [f"g/ltx/0/{number:04}" for number in range(60)]
        assert await bucket.folders("", timeout=TIMEOUT) == ["g"]
        assert await bucket.folders("g/", timeout=TIMEOUT) == ["ltx"]
        await bucket.fetch(await bucket.names("g/ltx/", timeout=TIMEOUT), "g/ltx/", tmp_path / "copy", timeout=TIMEOUT)

    asyncio.run(body())
    files = {
        str(file.relative_to(tmp_path / "copy")): file.read_text()
        for file in (tmp_path / "copy").rglob("0*")
        if file.is_file()
    }
    assert files == {f"0/{number:04}": str(number) for number in range(60)}


def test_a_fetch_whose_object_has_vanished_fails(bucket: Bucket, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """Half a copy is never taken for a whole one."""

    async def body() -> None:
        await fill(bucket, 30)
        fake_gcs.faults.add(verb="download", name="store/g/ltx/0/0017", action="error", status=404)
        await bucket.fetch(await bucket.names("g/ltx/", timeout=TIMEOUT), "g/ltx/", tmp_path / "copy", timeout=TIMEOUT)

    with pytest.raises(StoreMissing):
        asyncio.run(body())


def test_a_patient_bucket_repeats_its_reads_and_no_write(bucket: Bucket, fake_gcs: FakeGcs, tmp_path: Path) -> None:
    """One request that fails fails nothing; a write is repeated by its caller alone, who compares what it finds."""

    async def body() -> None:
        await fill(bucket, 3)
        patient = bucket.patient(30)
        for verb in ("list", "download"):
            fake_gcs.faults.add(verb=verb, action="error", status=503, times=2)
        names = await patient.names("g/ltx/", timeout=TIMEOUT)
        await patient.fetch(names, "g/ltx/", tmp_path / "copy", timeout=TIMEOUT)
        assert len(list((tmp_path / "copy" / "0").iterdir())) == 3
        fake_gcs.faults.add(verb="insert", action="error", status=503, times=1)
        with pytest.raises(StoreUnavailable):
            await patient.write("x", b"x", if_generation=0, timeout=TIMEOUT)
        fake_gcs.faults.add(verb="insert", action="error", status=429, times=1)
        with pytest.raises(StoreThrottled):
            await patient.write("x", b"x", if_generation=0, timeout=TIMEOUT)
        fake_gcs.faults.add(verb="list", action="error", status=503)
        with pytest.raises(StoreUnavailable):
            await bucket.patient(0.3).names("g/ltx/", timeout=TIMEOUT)

    asyncio.run(body())
