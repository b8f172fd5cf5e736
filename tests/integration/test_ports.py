"""Ports for servers that are started later: no two tests, and no two processes, are given the same one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from local import ports
from local.worker_process import ROOT

pytestmark = pytest.mark.slow

OTHER = """
import sys
from local import ports
try:
    print(ports.free_port(int(sys.argv[1])), flush=True)
except OSError as error:
    print(error, flush=True)
sys.stdin.read()
"""


def other(port: int) -> subprocess.Popen[str]:
    """Another process that wants that port; it keeps what it is given until its input ends."""
    command = [sys.executable, "-c", OTHER, str(port)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def given(process: subprocess.Popen[str]) -> int:
    """The port it was given."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody listens on it yet; when all are given, the caller is told."""
    free = [ports.free_port() for _ in range(3)]
    assert len(set(free)) == 3
    monkeypatch.setattr(ports, "_RANGE", free * 40)
    with pytest.raises(OSError, match="no free port"):
        ports.free_port()


def test_a_preferred_port_is_given_while_it_is_free() -> None:
    """And another one while somebody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert ports.free_port(taken.getsockname()[1]) not in {0, taken.getsockname()[1]}


def test_no_two_processes_are_given_the_same_port() -> None:
    """Until the first of them has ended: however it ended, the port is free again."""
    ours = ports.free_port()
    with other(ours) as process:
        theirs = given(process)
        assert theirs != ours
        assert ports.free_port(theirs) != theirs
        process.kill()
    with other(theirs) as process:
        assert given(process) == theirs
        process.communicate()


def test_a_forked_process_has_not_taken_what_its_parent_has() -> None:
    """The kernel's locks are not inherited, so the child asks for its own."""
    ours = ports.free_port()
    child = os.fork()
    if child == 0:
        os._exit(int(ports.free_port(ours) == ours))
    assert os.waitpid(child, 0)[1] == 0
