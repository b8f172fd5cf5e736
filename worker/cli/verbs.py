"""What every verb shares: its settings, its log, and how it ends in order.

A verb is a module of this package that exposes one `click.Command`, or `Group`, named `command`, and a row of `main.VERBS`:

    @click.command("move", cls=Command, help=_INTRO)
    @click.option("--to", metavar="URL", type=parameters.WORD, required=True, help="where to")
    @json_option
    @with_settings()
    def command(settings: Settings, options: Options) -> int: ...
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from publisher.command_line import Options, with_environment
from worker import config
from worker.config import Settings
from worker.errors import ConfigError
from worker.telemetry import logs

T = TypeVar("T")


def with_settings(
    *, quiet: bool = False, ended_in_order: bool = True, on_postgresql: str = ""
) -> Callable[[Callable[[Settings, Options], int]], Callable[..., int | None]]:
    """Return the decorator of a verb whose body takes the settings and the options.

    Args:
        quiet: Whether the verb says itself what it does: the log is for a service, and for LOG_LEVEL=debug.
        ended_in_order: Whether SIGTERM ends it as Ctrl-C does.
        on_postgresql: What to do instead where DATABASE_URL is set, for a verb that is about the bucket.
    """

    def decorate(body: Callable[[Settings, Options], int]) -> Callable[..., int | None]:
        def read(options: Options, environ: Mapping[str, str]) -> int:
            with _ended_in_order() if ended_in_order else contextlib.nullcontext():
                settings = config.load(environ)
                if on_postgresql and settings.many_writers:
                    raise ConfigError(f"DATABASE_URL is set, and this command is about a bucket: {on_postgresql}")
                logs.configure(
                    "warning" if quiet and settings.log_level == "info" else settings.log_level,
                    project=settings.project,
                    service=settings.service,
                    revision=settings.revision,
                )
                return body(settings, options)

        return with_environment(read)

    return decorate


def without_settings(body: Callable[[Options, Mapping[str, str]], int]) -> Callable[..., int | None]:
    """Return the callback of a verb whose body reads what it needs of the environment itself."""

    def read(options: Options, environ: Mapping[str, str]) -> int:
        with _ended_in_order():
            return body(options, environ)

    return with_environment(read)


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, as `asyncio.run` does.

    After Ctrl-C the coroutine is unwound, and then no thread is waited for: a request to a bucket that does not answer would
    hold up the end for minutes. `end` leaves without it as well.
    """
    with asyncio.Runner() as runner:
        try:
            return runner.run(work)
        except KeyboardInterrupt:
            runner.get_loop().set_default_executor(ThreadPoolExecutor(1))  # an idle one, which is closed at once
            raise


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: by default it would leave scratch behind, and a lease to its TTL."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
