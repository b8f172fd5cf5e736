"""The command line of `python -m publisher`: options, their limits, and help that teaches."""

import argparse
from typing import Final

from publisher import settings, values
from worker.events.users import MAX_CREATED_AT

MAX_GIVE_UP_SECONDS: Final = 86_400.0
"""Longest --give-up-after, in seconds: a day."""

_ENVIRONMENT_HELP: Final = "environment:\n" + "\n".join(f"  {name:<22}{text}" for name, text in settings.ENVIRONMENT.items())
_EXAMPLES: Final = f"""examples:
  python -m publisher create --user-id 5 --email a@example.com
  python -m publisher load users.csv --rejects bad.csv
  python -m publisher load users.jsonl --dry-run
  python -m publisher serve --port 8080

{_ENVIRONMENT_HELP}
"""
_CREATE: Final = """Publish one message, by default a user to create, and print the id of the accepted message.

examples:
  python -m publisher create --user-id 5
  python -m publisher create --user-id 5 --email a@example.com --settings '{"theme": "dark"}'
  python -m publisher create --user-id 5 --push-to http://127.0.0.1:8080/    # no Pub/Sub needed
  python -m publisher create --event user.updated --user-id 5 --email b@example.com
  EVENTS=acme.orders python -m publisher create --event order.placed --set order_id=1 --set note=gift

exit code: 0 accepted, 1 not accepted, 2 wrong usage or an invalid message
"""
_LOAD: Final = """Publish many messages, by default users to create, from a file, or from standard input (-).

JSON Lines: one message per line, {"user_id": 5, "email_address": "a@example.com"}.
CSV: the first line names the columns, which are the fields of the event: for user.created, user_id and any
of email_address, settings, created_at;
an empty cell is null. Blank lines are skipped, also above the header; other columns are ignored. Cells
are divided by commas, semicolons or tabs, whichever makes a header. The text is UTF-8.
The file is read as a stream, whatever its size.

A line that is no valid message is reported with its number and does not stop the others. With
--rejects FILE, every line that was not accepted is written there as it stood (for CSV below the
header), so that it can be corrected and loaded again. A file that holds something is never overwritten.

examples:
  python -m publisher load users.jsonl
  python -m publisher load users.csv --dry-run                  # only check
  python -m publisher load users.csv --rejects bad.csv && echo all accepted
  zcat users.jsonl.gz | python -m publisher load - --json
  python -m publisher load users.jsonl --start-line 120001      # go on after an interruption

exit code: 0 every line accepted, 1 some were not, 2 wrong usage, 130 Ctrl-C
"""
_SERVE: Final = """Take messages over HTTP and publish them, until SIGTERM or Ctrl-C.

POST /users takes the JSON of one user, {"user_id": 5}; POST /events/NAME that of a message of any event. They answer
  202  {"message_id": "..."}: Pub/Sub has accepted it, and only now may the sender forget it
  400  it breaks the format, or the topic refuses it; the answer names the field, never its value
  408  it did not arrive in time: send it again
  413  it is larger than a message can be
  503  Pub/Sub is out of reach, or too much is in flight: keep it, and send it again after
       Retry-After seconds. Repeating is harmless, because a message that is repeated is absorbed.
GET /healthz answers 200 while the process lives.

It checks no identity: leave that to the platform (on Cloud Run, require authentication).
A first signal stops taking messages and answers what is in flight; a second one leaves at once.

examples:
  python -m publisher serve --topic users --project acme
  python -m publisher serve --host 127.0.0.1 --port 8081 --push-to http://127.0.0.1:8080/   # no Pub/Sub needed
  curl --json '{"user_id": 5}' http://127.0.0.1:8081/users

exit code: 0 stopped in order, 1 no credentials, a failure or a second signal, 2 wrong usage
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m publisher",
        description="Publishes messages to Pub/Sub, or pushes them to a worker.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="one message", description=_CREATE, formatter_class=raw)
    _add_create(create)
    load = commands.add_parser("load", help="many messages from JSONL or CSV", description=_LOAD, formatter_class=raw)
    _add_load(load)
    serve = commands.add_parser("serve", help="messages over HTTP", description=_SERVE, formatter_class=raw)
    _add_serve(serve)
    for command in (create, load, serve):
        command.epilog = _ENVIRONMENT_HELP
        _add_target(command, settings.GATEWAY_GIVE_UP_SECONDS if command is serve else settings.GIVE_UP_AFTER_SECONDS)
    return top


def _add_create(create: argparse.ArgumentParser) -> None:
    _add_event(create)
    create.add_argument(
        "--set",
        type=_field,
        action="append",
        metavar="FIELD=VALUE",
        help="a field of the event, as often as it has fields; an object or an array as JSON",
    )
    create.add_argument("--user-id", type=values.user_id, metavar="N", help="1 to 2^63-1")
    create.add_argument("--email", metavar="TEXT", help="e-mail address (default: null)")
    create.add_argument("--settings", metavar="TEXT", help="any text (default: null)")
    create.add_argument(
        "--created-at",
        type=values.whole(0, MAX_CREATED_AT),
        metavar="SECONDS",
        help="seconds since 1970, UTC (default: when it is published)",
    )
    create.add_argument("--json", action="store_true", help="print one JSON object")


def _add_event(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--event", type=values.word, metavar="NAME", help="what is published: an event of EVENTS (default: user.created)"
    )


def _add_load(load: argparse.ArgumentParser) -> None:
    _add_event(load)
    load.add_argument("file", metavar="FILE", help="the file to read, or - for standard input")
    load.add_argument(
        "--format", choices=("auto", "jsonl", "csv"), default="auto", help="default: auto, by the name or the content"
    )
    load.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="C",
        help="what divides the cells of a CSV: one character, or tab (default: found out)",
    )
    load.add_argument("--dry-run", action="store_true", help="check every line, send nothing")
    load.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    load.add_argument("--rejects", type=values.path, metavar="FILE", help="write what was not accepted there")
    load.add_argument(
        "--accepted",
        type=values.path,
        metavar="FILE",
        help='write {"line", "user_id", "message_id"} there for every accepted message',
    )
    load.add_argument(
        "--in-flight",
        type=values.whole(1, settings.MAX_IN_FLIGHT),
        metavar="N",
        help=f"messages sent and not answered yet, at most (default: {settings.IN_FLIGHT_MESSAGES}; "
        f"with --push-to: {settings.PUSH_IN_FLIGHT})",
    )
    load.add_argument(
        "--start-line", type=values.whole(1), default=1, metavar="N", help="pass over the lines before this one"
    )


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--host", type=values.word, metavar="ADDRESS", help=f"overrides HOST (default: {settings.GATEWAY_HOST})"
    )
    serve.add_argument(
        "--port",
        type=values.whole(0, settings.MAX_PORT),
        metavar="N",
        help=f"overrides PORT (default: {settings.GATEWAY_PORT})",
    )
    serve.add_argument(
        "--in-flight",
        type=values.whole(1, settings.MAX_IN_FLIGHT),
        default=settings.GATEWAY_IN_FLIGHT,
        metavar="N",
        help="users taken and not answered yet, at most; more are answered 503 (default: %(default)s)",
    )


def _add_target(command: argparse.ArgumentParser, give_up_after: float) -> None:
    target = command.add_argument_group("where to")
    target.add_argument("--topic", type=values.word, help="overrides TOPIC")
    target.add_argument("--project", type=values.word, help="overrides GOOGLE_CLOUD_PROJECT")
    target.add_argument(
        "--push-to",
        type=values.address,
        metavar="URL",
        help="deliver to a worker as a push subscription would, without Pub/Sub",
    )
    target.add_argument(
        "--give-up-after",
        type=values.seconds(MAX_GIVE_UP_SECONDS),
        default=give_up_after,
        metavar="SECONDS",
        help="how long one message is retried (default: %(default)g)",
    )


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise values.Wrong("must be FIELD=VALUE, such as note=gift")
    return name, value


def _delimiter(text: str) -> str:
    found = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(found) != 1 or found in '"\r\n' or found.isalnum() or not (found.isprintable() or found == "\t"):
        raise values.Wrong("must be one character that is no letter, digit, quote or line end, or the word tab")
    return found
