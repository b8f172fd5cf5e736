"""Python with our modules loaded, once: a server that forks for each `python -m worker`, `publisher` or `local` of a test.

Loading them takes most of a second of CPU, and the tests start hundreds of processes. Each is still a process of its own,
with its own arguments, variables, folder, files and signals; it only does not begin with an import. `install` puts a Popen
in the place of subprocess.Popen that asks the server where that makes no difference, and starts any other command itself.

    python -m tests.warm_python   # the server; it ends with the socket that is its standard input
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
_MODULES: Final = ("worker", "publisher", "local")
_REQUEST_MAX: Final = 100_000
"""Bytes; a message on the socket must not be much longer. A longer command is started as it is."""
_NUMBER: Final = struct.Struct("i")
_AT_LOADING: Final = ("PYTHON", "MALLOC_", "LD_", "GLIBC_", "OPENSSL_", "GRPC_", "OTEL_", "GCE_", "GOOGLE_", "LC_", "LANG")
"""Variables that begin so are read when a program or a library is loaded: they must be the server's."""


class WarmPopen(subprocess.Popen):  # type: ignore[type-arg]  # of text or of bytes, as it is called
    """A Popen whose child the server has forked, if the command is a module of ours that is started in a plain way."""

    _status: socket.socket | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        (_, pass_fds, cwd, env, _, _, shell, *files, _, gid, gids, uid, umask, session, group) = rest
        plain = not (preexec_fn or executable or pass_fds or shell) and (gid, gids, uid, umask, group) == (None,) * 3 + (
            -1,
            -1,
        )
        request = _request(args, str(cwd or Path.cwd()), os.environ if env is None else env, session)
        if not plain or request is None:
            super()._execute_child(args, executable, preexec_fn, *rest)  # type: ignore[misc]  # subprocess's own
            return
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = files
        ends = [own if given == -1 else given for own, given in ((0, p2cread), (1, c2pwrite), (2, errwrite))]
        self._status = _server().fork(request, ends)
        self.pid = _NUMBER.unpack(self._status.recv(_NUMBER.size))[0]
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _internal_poll(self, *args: Any, **keywords: Any) -> int | None:
        if self._status is None:
            code: int | None = super()._internal_poll(*args, **keywords)  # type: ignore[misc]
            return code
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._status is None:
            code: int = super()._wait(timeout)  # type: ignore[misc]
            return code
        status, waiting = self._status, select.poll()
        with contextlib.suppress(OSError, ValueError):  # another thread has read it and closed it
            waiting.register(status, select.POLLIN)
            if not waiting.poll(None if timeout is None else timeout * 1000) and self.returncode is None:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._waitpid_lock:  # type: ignore[attr-defined]
            if self.returncode is None:
                data = status.recv(_NUMBER.size)
                assert data, "the server of the warm processes has ended"
                self.returncode = _NUMBER.unpack(data)[0]
                status.close()  # now the server reaps it
        return self.returncode


class _Server:
    """The server of this process: started with its first command, ended with this process."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.warm_python"]
            self._process = _POPEN(command, cwd=ROOT, stdin=theirs.fileno(), start_new_session=True)
        self.environment = dict(os.environ)

    def fork(self, request: bytes, files: list[int]) -> socket.socket:
        """The socket on which the process id and then the exit code are told."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [request], [theirs.fileno(), *files])
        return ours


_POPEN: Final = subprocess.Popen
_lock: Final = threading.Lock()
_servers: list[_Server] = []  # guarded by _lock


def install() -> None:
    """From now on subprocess starts our modules warm, on Linux; elsewhere it starts each as it is."""
    if sys.platform == "linux":
        subprocess.Popen = WarmPopen  # type: ignore[misc]


def _server() -> _Server:
    with _lock:
        if not _servers:
            _servers.append(_Server())
        return _servers[0]


def _request(args: Any, folder: str, environment: Any, session: bool) -> bytes | None:
    """What the server is asked, or None if the command must be started as it is."""
    if not isinstance(args, (list, tuple)) or list(args[:2]) != [sys.executable, "-m"] or args[2] not in _MODULES:
        return None
    variables = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
    own = _server().environment
    if any(variables.get(name) != own.get(name) for name in {*variables, *own} if _loads(name)):
        return None
    path = [folder, *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]
    home = next((each for each in path if (Path(each) / str(args[2])).is_dir()), None)
    if home is None or Path(home).resolve() != ROOT:
        return None  # another version of our code
    words = [os.fsdecode(word) for word in args[2:]]
    request = json.dumps([words, variables, folder, path, session]).encode()
    return request if len(request) <= _REQUEST_MAX else None


def _loads(name: str) -> bool:
    return name.startswith(_AT_LOADING) and name != "PYTHONPATH"


def _serve() -> tuple[list[str], list[str]]:
    """Fork a process for each request. Returns in each child: its words and its module path; ends the server itself."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for package in _MODULES:
        _load(package)
    gc.collect()
    gc.freeze()
    told, wake = socket.socketpair()
    for end in (told, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    children: list[_Child] = []
    while True:
        waiting = [child.status for child in children if child.status.fileno() != -1]
        readable, _, _ = select.select([control, told, *waiting], [], [])
        if told in readable:
            told.recv(1 << 12)
        children = [child for child in children if not child.reaped(gone=child.status in readable)]
        if control in readable:
            request, files, _, _ = socket.recv_fds(control, _REQUEST_MAX, 4)
            if not request:
                os._exit(0)
            pid = os.fork()
            if not pid:
                for each in (control, told, wake, *(child.status for child in children)):
                    each.close()
                return _become(request, files)
            children.append(_Child(pid, socket.socket(fileno=files[0])))
            children[-1].status.send(_NUMBER.pack(pid))
            for file in files[1:]:
                os.close(file)


class _Child:
    """A process that the server has forked. Its Popen holds the other end of `status` until it knows the exit code."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self._pid, self.status, self._told = pid, status, False

    def reaped(self, *, gone: bool) -> bool:
        """Tell the exit code once it has ended; reap it once its Popen knows. Until then it is a zombie, as any child is."""
        if gone:
            self.status.close()
        if self.status.fileno() == -1:
            return os.waitpid(self._pid, os.WNOHANG)[0] != 0
        state = None if self._told else os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state is not None:
            self._told = True
            code = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
            with contextlib.suppress(OSError):
                self.status.send(_NUMBER.pack(code))
        return False


def _load(package: str) -> None:
    """Import each module of a package but those that run when they are imported."""
    for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
        if not module.name.endswith("__main__") and ".migrations." not in module.name:
            importlib.import_module(module.name)


def _become(request: bytes, files: list[int]) -> tuple[list[str], list[str]]:
    """Make the forked process what the request says."""
    words, variables, folder, path, session = json.loads(request)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if session:
        os.setsid()
    for number, file in enumerate(files[1:]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    return words, path


def _main() -> None:
    (module, *arguments), path = _serve()
    sys.argv = [module, *arguments]
    sys.path[:1] = path
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exit_:
        code = exit_.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    # As the interpreter ends a process, without the destruction of all that is loaded: that takes longer than a command.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _main()
