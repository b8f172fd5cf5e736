"""A Pub/Sub that only answers: over gRPC on loopback, an id for each published message, and nothing kept.

It costs a few microseconds a message, so what is measured through it is the client. `python -m bench.topic --port PORT`.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc  # type: ignore[import-untyped]  # google's stubs are a package of their own
from google.pubsub_v1.types import pubsub

_PUBLISH: Final = "/google.pubsub.v1.Publisher/Publish"
_THREADS: Final = 4
_MESSAGE_BYTES_MAX: Final = 20_000_000


class _Topics(grpc.GenericRpcHandler):  # type: ignore[misc]  # as above
    """Publish, for any topic."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)  # its next() is one step for the interpreter: threads may share it

    def service(self, details: Any) -> Any:
        if details.method != _PUBLISH:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self._publish,
            request_deserializer=pubsub.PublishRequest.pb().FromString,
            response_serializer=pubsub.PublishResponse.pb().SerializeToString,
        )

    def _publish(self, request: Any, context: object) -> Any:
        return pubsub.PublishResponse.pb()(message_ids=[str(next(self._numbers)) for _ in request.messages])


def main(arguments: list[str] | None = None) -> int:
    """Serve on a loopback port until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.topic", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX)])
    server.add_generic_rpc_handlers((_Topics(),))
    server.add_insecure_port(f"127.0.0.1:{parser.parse_args(arguments).port}")
    server.start()
    print("serving", flush=True)
    signal.sigwait({signal.SIGTERM})
    server.stop(None).wait()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sys.exit(main())
