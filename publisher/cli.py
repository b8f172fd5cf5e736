"""`python -m publisher`: the wiring of options, environment, input, sink and output."""

import gc
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from rich.console import Console

from publisher.arguments import parser
from publisher.errors import DeliveryError, UsageError
from publisher.interrupt import Interrupt
from publisher.load import Loader, Summary
from publisher.message import Message
from publisher.progress import TerminalReport, describe
from publisher.records import CsvRows, Lines, open_reader, value
from publisher.settings import (
    GATEWAY_HOST,
    GATEWAY_LOG_LEVEL,
    GATEWAY_MARGIN_SECONDS,
    GATEWAY_PORT,
    PUSH_SUBSCRIPTION,
    TRACE_FLUSH_SECONDS,
    GatewayLimits,
    Limits,
    PushLimits,
    log_level,
    port_number,
    topic_path,
)
from publisher.sink import Sink
from publisher.tracing import Close, begin
from worker.events.catalog import BUILT_IN, DEFAULT_EVENT, Catalog
from worker.events.declaration import Event, EventError, MessageError

EXIT_NOT_ACCEPTED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_COLLECT_AFTER_OBJECTS: Final = 50_000
"""About 15 MB, if all of them were garbage."""


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; default: the process's.
        environment: the variables of `settings.ENVIRONMENT`; default: the process's.

    Raises:
        SystemExit: the command line cannot be parsed, or asked for help.
    """
    options = parser().parse_args(argv)
    env = os.environ if environment is None else environment
    try:
        return {"create": _create, "load": _load, "serve": _serve}[options.command](options, env)
    except (UsageError, MessageError) as error:
        return _fail(str(error), EXIT_USAGE)
    except DeliveryError as error:
        return _fail(str(error), EXIT_NOT_ACCEPTED)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)


def open_sink(options: Namespace, environment: Mapping[str, str], *, traced: bool = False) -> Sink:
    """Return the sink that the options and the environment name.

    Args:
        options: of the command line.
        environment: the variables.
        traced: see `client.Publisher`; with --push-to there are no traces.

    Raises:
        UsageError: neither a topic nor --push-to is given, or the address is none.
        NotPermittedError: Pub/Sub is wanted and this machine has no credentials.
    """
    in_flight = getattr(options, "in_flight", None)
    if options.push_to:
        from publisher.push import PushTarget

        push = PushLimits(give_up_after=options.give_up_after)
        subscription = environment.get("SUBSCRIPTION") or PUSH_SUBSCRIPTION
        return PushTarget(options.push_to, replace(push, in_flight=in_flight or push.in_flight), subscription)
    topic = topic_path(options.topic or environment.get("TOPIC"), options.project or environment.get("GOOGLE_CLOUD_PROJECT"))
    # Importing Google's client takes a second: not for --help, --dry-run and --push-to.
    from publisher.client import Publisher

    limits = Limits(give_up_after=options.give_up_after)
    return Publisher(topic, replace(limits, in_flight_messages=in_flight or limits.in_flight_messages), traced=traced)


def _create(options: Namespace, environment: Mapping[str, str]) -> int:
    message = _created(options, _event(options, _catalog(environment)))
    with _tracing(environment) as close, open_sink(options, environment, traced=close is not None) as sink:
        message_id = sink.publish(message).result()
    if options.json:
        print(json.dumps({**message.key, "message_id": message_id}))
    else:
        about = ", ".join(f"{name} {value}" for name, value in message.key.items()) or message.event.name
        print(f"accepted: {about}, message {message_id}")
    return 0


def _catalog(environment: Mapping[str, str]) -> Catalog:
    names = environment.get("EVENTS") or BUILT_IN
    try:
        return Catalog.load(names)
    except EventError as error:
        raise UsageError(f"EVENTS is {names!r}: {error}") from None


def _event(options: Namespace, catalog: Catalog) -> Event:
    name = options.event or (DEFAULT_EVENT if DEFAULT_EVENT in catalog.events else next(iter(catalog.events)))
    event = catalog.events.get(name)
    if event is None:
        raise UsageError(f"there is no event {name}; EVENTS declares {', '.join(catalog.events)}")
    return event


def _created(options: Namespace, event: Event) -> Message:
    """The message that the options of `create` describe."""
    fields: dict[str, Any] = {
        "user_id": options.user_id,
        "email_address": options.email,
        "settings": options.settings,
        "created_at": options.created_at,
    }
    stated = {name: given for name, given in fields.items() if given is not None}
    stated |= {name: value(event.kinds.get(name), text) for name, text in options.set or ()}
    return Message(event, event.build(stated))


def _load(options: Namespace, environment: Mapping[str, str]) -> int:
    console = Console(stderr=True)
    with ExitStack() as stack:
        # Each message in flight is a dozen objects, and none of them is ever garbage in a cycle: at its default of 700 the
        # collector would look at all of them again and again, for a fifth of the time.
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(_COLLECT_AFTER_OBJECTS)
        stream = stack.enter_context(_input(options.file))
        _refuse_to_overwrite(options)
        lines = Lines(stream)
        catalog = _catalog(environment)
        event = _event(options, catalog)
        reader = open_reader(stream, options.file, options.format, lines, event, catalog, options.delimiter)
        traced = not options.dry_run and stack.enter_context(_tracing(environment)) is not None
        sink = None if options.dry_run else stack.enter_context(open_sink(options, environment, traced=traced))
        rejects = stack.enter_context(_output(options.rejects)) if options.rejects else None
        accepted = stack.enter_context(_output(options.accepted)) if options.accepted else None
        report = stack.enter_context(TerminalReport(console, lines, _size(options.file)))
        if isinstance(reader, CsvRows) and reader.ignored:
            report.say(f"columns ignored: {', '.join(reader.ignored)}", "yellow")
        interrupt = stack.enter_context(Interrupt())
        loader = Loader(sink, report, interrupt, rejects=rejects, accepted=accepted, start_line=options.start_line)
        summary = loader.run(reader)
    _finish(options, console, summary)
    return summary.exit_code


def _serve(options: Namespace, environment: Mapping[str, str]) -> int:
    # Of the three commands this one alone needs an HTTP server.
    from publisher import server, telemetry

    telemetry.configure(log_level(environment.get("LOG_LEVEL") or GATEWAY_LOG_LEVEL))
    port = options.port if options.port is not None else port_number(environment.get("PORT") or str(GATEWAY_PORT))
    limits = GatewayLimits(answer_seconds=options.give_up_after + GATEWAY_MARGIN_SECONDS, in_flight=options.in_flight)
    with (
        server.listen(options.host or environment.get("HOST") or GATEWAY_HOST, port) as listener,
        _tracing(environment) as close,
        open_sink(options, environment, traced=close is not None) as sink,
    ):
        server.main(listener, sink, limits, _catalog(environment), close)


@contextmanager
def _tracing(environment: Mapping[str, str]) -> Iterator[Close | None]:
    """Export spans while the block runs, if that is asked for; the last ones at its end."""
    close = begin(environment)
    try:
        yield close
    finally:
        if close is not None:
            close(TRACE_FLUSH_SECONDS)


def _finish(options: Namespace, console: Console, summary: Summary) -> None:
    if summary.stopped is not None:
        console.print(f"stopped: {summary.stopped}", style="red", markup=False, highlight=False, soft_wrap=True)
    if summary.next_line is not None and (summary.stopped or summary.interrupted):
        console.print(f"not read to its end: go on with --start-line {summary.next_line}", highlight=False)
    if summary.exit_code and not options.rejects and not options.dry_run:
        console.print("use --rejects FILE to keep the lines that were not accepted", highlight=False)
    if options.json:
        rejects = str(options.rejects) if options.rejects else None
        print(json.dumps(asdict(summary) | {"rejects": rejects}))
    else:
        print(f"{summary.read:,} read in {summary.seconds:.1f} s: {describe(summary)}")


@contextmanager
def _input(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        path = Path(name)
        stream = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from None
    with stream:
        yield stream


@contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    try:
        try:
            stream = path.open("xb")
        except FileExistsError:
            if path.is_file() and path.stat().st_size:
                raise UsageError(
                    f"{path} is there already, and is not overwritten: name a new file, or move it away"
                ) from None
            stream = path.open("ab")  # an empty one, or a device
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield stream
    finally:
        with suppress(OSError):  # what it could not write, the loader has told
            stream.close()


def _refuse_to_overwrite(options: Namespace) -> None:
    """Refuse an output that is the input, or two outputs that are one: opening them would destroy the data."""
    outputs = [path.resolve() for path in (options.rejects, options.accepted) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise UsageError("--rejects and --accepted name the same file")
    if options.file != "-" and Path(options.file).resolve() in outputs:
        raise UsageError(f"{options.file} is read: write the rejects and the accepted to other files")


def _size(name: str) -> int | None:
    path = Path(name)
    return path.stat().st_size if name != "-" and path.is_file() else None


def _fail(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code
