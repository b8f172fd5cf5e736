"""What a server needs of the system before it serves: a socket that accepts connections, and file descriptors for them."""

import errno
import resource
import socket
from typing import Final

SERVICE_FILES: Final = 264
"""File descriptors that connections leave to the service: the database, the bucket, a child's pipes, threads that read."""
FILES_MAX: Final = 65_536
"""Most file descriptors that are asked for."""
BACKLOG: Final = 2048
"""Most connections that wait to be accepted."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections; on the address `::`, those of both versions of the protocol.

    Raises:
        ValueError: It cannot be listened on; the text says why, and which of HOST and PORT to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both, backlog=BACKLOG)
    except (OSError, UnicodeError, TypeError) as error:  # the last is what Python says of text that is no name
        number = error.errno if isinstance(error, OSError) else None
        step = (
            "set PORT to another one"
            if number in (errno.EADDRINUSE, errno.EACCES)
            else "set HOST to an address of this machine"
        )
        reason = error.strerror if isinstance(error, OSError) else "this is no address"
        raise ValueError(f"cannot listen on HOST={host} PORT={port}: {reason}; {step}") from None


def spare_files() -> int:
    """Raise the limit of file descriptors as far as allowed, and return how many connections it leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        soft = FILES_MAX
    return max(soft - SERVICE_FILES, soft // 4)
