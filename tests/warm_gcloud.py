"""The real gcloud, loaded once: a server that forks for each command, and a `gcloud` for PATH that asks it.

Loading gcloud takes most of a second of CPU, and a deployment is 88 commands. Each command runs gcloud's own code in a
process of its own, with the caller's arguments, variables, folder and files.

    with warm_gcloud(folder) as path: ...   # `path` is the value for PATH
    python warm_gcloud.py ROOT SOCKET       # the server, run by gcloud's own Python; it ends with its standard input
"""

import array
import contextlib
import importlib
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

_CLIENT = """\
#!{python} -ES
import array, json, os, socket, sys
if "emulators" in sys.argv:  # it runs until a signal ends it, which must reach it and not this client
    os.execv({gcloud!r}, [{gcloud!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
server.connect({path!r})
asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
server.sendmsg([len(asked).to_bytes(4, "big")], files)
server.sendall(asked)
code = server.recv(1)
sys.exit(code[0] if code else 70)
"""


@contextlib.contextmanager
def warm_gcloud(folder: Path) -> Iterator[str]:
    """Run the server for as long as the block takes; a PATH on which `gcloud` is the one that asks it.

    Without gcloud, or without a Python of its own, PATH stays as it is.
    """
    found = shutil.which("gcloud")
    root = Path(found).resolve().parent.parent if found else folder
    python = root / "platform/bundledpythonunix/bin/python3"
    if not python.exists():
        yield os.environ["PATH"]
        return
    path = folder / "gcloud.socket"
    client = folder / "bin" / "gcloud"
    client.parent.mkdir()
    client.write_text(_CLIENT.format(python=python, path=str(path), gcloud=found))
    client.chmod(0o755)
    server = subprocess.Popen(
        [python, "-S", __file__, str(root), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n", "gcloud could not be loaded"
        yield f"{client.parent}{os.pathsep}{os.environ['PATH']}"
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()


def _serve(root: str, path: str) -> None:
    entry = f"{root}/lib/gcloud.py"
    sys.argv = [entry]
    spec = importlib.util.spec_from_file_location("gcloud_entry", entry)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)  # it puts gcloud's own libraries on the path
    loaded._fix_google_module()
    gcloud_main = loaded._import_gcloud_main()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    learned, teach = os.pipe()
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([listener, sys.stdin, learned], [], [])
        if sys.stdin in readable:
            return
        if learned in readable:  # what a command had to load, the next one finds loaded
            for name in os.read(learned, select.PIPE_BUF).decode().split():
                with contextlib.suppress(BaseException):
                    importlib.import_module(name)
            continue
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        before = set(sys.modules)
        code = _command(connection, entry, gcloud_main)
        for name in sorted(set(sys.modules) - before):
            if not name.startswith("_"):
                os.write(teach, f"{name} ".encode())
        with contextlib.suppress(OSError):
            connection.send(bytes([code]))
        os._exit(0)


def _command(connection: socket.socket, entry: str, gcloud_main: object) -> int:
    files = array.array("i", [0, 0, 0])
    size, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(len(files) * files.itemsize))
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += connection.recv(1 << 16)
    arguments, environment, folder = json.loads(asked)
    files = array.array("i", ancillary[0][2])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [entry, *arguments]
    code: object
    try:
        code = gcloud_main.main()  # type: ignore[attr-defined]  # gcloud's
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
