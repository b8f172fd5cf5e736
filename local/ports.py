"""A loopback port for a server that is told its port beforehand."""

import random
import socket
from typing import Final

_RANGE: Final = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections (32768 and up on Linux): of those, one that is free now may
be some connection's own a moment later. Chosen at random, so that processes side by side seldom try the same one."""


def free_port(preferred: int = 0) -> int:
    """A loopback port nobody listens on: `preferred` if it is free, else any.

    Raises:
        OSError: There is none.
    """
    for port in (*([preferred] if preferred else []), *random.sample(_RANGE, 100)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on 127.0.0.1")
