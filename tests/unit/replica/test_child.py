"""A child process: it is started without freezing its parent, all it says is kept, and it does not outlive its parent."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from worker.replica import child
from worker.replica.child import Child, Kept

PYTHON = sys.executable


def run(*code: str, seconds: float = 20.0) -> tuple[int, Kept, Kept]:
    """A Python that runs these lines, to its end: its exit code, what it wrote, and what it wrote to its standard error."""
    said, errors = Kept(), Kept()

    async def body() -> int:
        process = await Child.start([PYTHON, "-c", "\n".join(code)], environment=os.environ, on_error=errors, on_output=said)
        try:
            return await asyncio.wait_for(process.wait(), seconds)
        finally:
            process.kill()

    return asyncio.run(body()), said, errors


def test_its_exit_code_and_all_it_said_are_there_when_it_has_ended() -> None:
    """Litestream's last line is the reason; it must not be lost because the end came first."""
    code, said, errors = run(
        "import sys", "sys.stdout.write('o' * 50_000)", "sys.stderr.write('first ' + 'e' * 50_000 + ' last')", "sys.exit(3)"
    )
    assert code == 3
    assert said.text == b"o" * 50_000
    assert errors.text.startswith(b"first ")
    assert errors.text.endswith(b" last")


def test_what_is_kept_of_it_is_bounded() -> None:
    """INV-7: the end of it, where the reason is."""
    kept = Kept()
    for _ in range(100):
        kept(b"x" * 10_000)
    kept(b"the reason")
    assert len(kept.text) == 65_536
    assert kept.text.endswith(b"xthe reason")


def test_a_child_that_was_killed_says_so() -> None:
    """As a negative number, and `code` is None until then."""

    async def body() -> None:
        process = await Child.start(["/bin/sleep", "60"], environment={}, on_error=Kept())
        codes.append(process.code)
        process.kill()
        codes.append(await asyncio.wait_for(process.wait(), 10))
        codes.append(process.code)
        process.kill()  # again: it has ended, and its number may be another process's
        codes.append(await process.wait())

    codes: list[int | None] = []
    asyncio.run(body())
    assert codes == [None, -signal.SIGKILL, -signal.SIGKILL, -signal.SIGKILL]


def test_its_environment_is_all_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has in its own is not handed on unasked: LOG_LEVEL would change Litestream's configuration."""
    monkeypatch.setenv("LOG_LEVEL", "debug")
    said = Kept()

    async def body() -> None:
        process = await Child.start(
            [shutil.which("env") or "env"], environment={"ONLY": "this"}, on_error=Kept(), on_output=said
        )
        await asyncio.wait_for(process.wait(), 10)

    asyncio.run(body())
    assert said.text.split() == [b"ONLY=this"]


@pytest.mark.parametrize("with_setpriv", [True, False])
@pytest.mark.parametrize("kind", ["missing", "not executable", "a folder"])
def test_a_program_that_cannot_be_started_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_setpriv: bool, kind: str
) -> None:
    """Told at once where this process starts it, and by its exit code and what setpriv says where setpriv does."""
    program = tmp_path / "litestream"
    if kind == "not executable":
        program.write_text("x")
    elif kind == "a folder":
        program.mkdir()
    if not with_setpriv:
        monkeypatch.setattr("worker.replica.child.shutil.which", lambda *_: None)
    elif shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv here")
    errors = Kept()

    async def body() -> int:
        process = await Child.start([str(program)], environment={}, on_error=errors)
        return await asyncio.wait_for(process.wait(), 10)

    if with_setpriv:
        assert asyncio.run(body()) in (126, 127)
        assert str(program).encode() in errors.text
    else:
        with pytest.raises(OSError, match=str(program)):
            asyncio.run(body())


def test_one_that_does_not_start_in_time_is_killed_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-7; a Litestream that came up late would write beside its successor."""
    late, made = threading.Event(), list[subprocess.Popen[bytes]]()
    popen = subprocess.Popen

    def slow(*arguments: object, **given: object) -> "subprocess.Popen[bytes]":
        late.wait(10)
        made.append(popen(*arguments, **given))  # type: ignore[call-overload]
        return made[-1]

    monkeypatch.setattr(child, "_START_SECONDS", 0.05)
    monkeypatch.setattr("worker.replica.child.subprocess.Popen", slow)

    async def body() -> None:
        with pytest.raises(OSError, match=r"/bin/sleep did not start within 0\.05 s"):
            await Child.start(["/bin/sleep", "60"], environment={}, on_error=Kept())
        late.set()
        await asyncio.to_thread(until, lambda: made and made[0].poll() is not None)

    asyncio.run(asyncio.wait_for(body(), 10))
    assert made[0].returncode == -signal.SIGKILL


def test_one_whose_start_is_cancelled_is_killed_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease may be lost while a child is started."""
    late, made = threading.Event(), list[subprocess.Popen[bytes]]()
    popen = subprocess.Popen

    def slow(*arguments: object, **given: object) -> "subprocess.Popen[bytes]":
        late.wait(10)
        made.append(popen(*arguments, **given))  # type: ignore[call-overload]
        return made[-1]

    monkeypatch.setattr("worker.replica.child.subprocess.Popen", slow)

    async def body() -> None:
        start = asyncio.create_task(Child.start(["/bin/sleep", "60"], environment={}, on_error=Kept()))
        await asyncio.sleep(0.02)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        late.set()
        await asyncio.to_thread(until, lambda: made and made[0].poll() is not None)

    asyncio.run(asyncio.wait_for(body(), 10))
    assert made[0].returncode == -signal.SIGKILL


@pytest.fixture
def held_at_fork() -> Iterator[None]:
    """A lock that another thread holds most of the time, and that a hook of Python's after a fork waits for."""
    lock, over = threading.Lock(), threading.Event()
    hook_on = True

    def after_fork() -> None:
        if hook_on and lock.acquire(timeout=60):
            lock.release()

    os.register_at_fork(after_in_child=after_fork)

    def hold() -> None:
        while not over.is_set():
            with lock:
                time.sleep(0.02)

    holder = threading.Thread(target=hold)
    holder.start()
    yield
    hook_on = False
    over.set()
    holder.join()


@pytest.mark.usefixtures("held_at_fork")
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_start_does_not_wait_for_locks_that_other_threads_hold(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The subprocesses of uvloop fork and run Python in the child before the exec, which waits for ever for such a lock."""

    async def body() -> float:
        longest, over = 0.0, asyncio.Event()

        async def tick() -> None:
            nonlocal longest
            while not over.is_set():
                began = time.monotonic()
                await asyncio.sleep(0.005)
                longest = max(longest, time.monotonic() - began)

        ticking = asyncio.create_task(tick())
        for _ in range(10):
            process = await Child.start(["/bin/true"], environment={}, on_error=Kept())
            assert await asyncio.wait_for(process.wait(), 10) == 0
        over.set()
        await ticking
        return longest

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(asyncio.wait_for(body(), 40)) < 5  # and the event loop went on


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="only util-linux's setpriv asks the kernel for it")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """INV-4: a Litestream that outlives a killed worker would read what the next life writes to the same disk."""
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen(
        [
            PYTHON,
            "-c",
            "import asyncio, os, pathlib, sys\n"
            "from worker.replica.child import Child, Kept\n"
            "async def body():\n"
            "    process = await Child.start(['/bin/sleep', '600'], environment=os.environ, on_error=Kept())\n"
            f"    pathlib.Path({str(pid_file)!r} + '.new').write_text(str(process.pid))\n"
            f"    os.rename({str(pid_file)!r} + '.new', {str(pid_file)!r})\n"
            "    await process.wait()\n"
            "asyncio.run(body())\n",
        ],
        cwd=Path(child.__file__).parent.parent.parent,
    )
    try:
        pid = int(until(lambda: pid_file.exists() and pid_file.read_text()))
        assert Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].endswith((b"/bin/sleep", b"setpriv"))
    finally:
        parent.kill()
        parent.wait()
    until(lambda: ended(pid))


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its new parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition: Callable[[], object]) -> str:
    """What a condition gives once it is true."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := condition():
            return str(found)
        time.sleep(0.01)
    raise AssertionError("it did not happen within 20 s")
