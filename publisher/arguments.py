"""The command line of `python -m publisher`: options, their limits, and help that teaches."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from publisher import parameters, settings, values
from worker.events.users import MAX_CREATED_AT

MAX_GIVE_UP_SECONDS: Final = 86_400.0
"""Longest --give-up-after, in seconds: a day."""

ENVIRONMENT: Final = "environment:\n" + "\n".join(f"  {name:<22}{text}" for name, text in settings.ENVIRONMENT.items())
EXAMPLES: Final = f"""examples:
  python -m publisher create --user-id 5 --email a@example.com
  python -m publisher load users.csv --rejects bad.csv
  python -m publisher load users.jsonl --dry-run
  python -m publisher serve --port 8080

{ENVIRONMENT}
"""
CREATE: Final = """Publish one message, by default a user to create, and print the id of the accepted message.

examples:
  python -m publisher create --user-id 5
  python -m publisher create --user-id 5 --email a@example.com --settings '{"theme": "dark"}'
  python -m publisher create --user-id 5 --push-to http://127.0.0.1:8080/   # no Pub/Sub
  python -m publisher create --event user.updated --user-id 5 --email b@example.com
  python -m publisher create --event order.placed --set order_id=1 --set note=gift

exit code: 0 accepted, 1 not accepted, 2 wrong usage or an invalid message
"""
LOAD: Final = """Publish many messages, by default users to create, from a file, or from standard input (-).

JSON Lines: one message per line, {"user_id": 5, "email_address": "a@example.com"}.

CSV: the first line names the columns, which are the fields of the event: for user.created,
user_id and any of email_address, settings, created_at;
an empty cell is null. Blank lines are skipped, also above the header; other columns are ignored. Cells
are divided by commas, semicolons or tabs, whichever makes a header. The text is UTF-8.

The file is read as a stream, whatever its size.

A line that is no valid message is reported with its number and does not stop the others. With
--rejects FILE, every line that was not accepted is written there as it stood (for CSV below the
header), so that it can be corrected and loaded again. A file that holds something is never overwritten.

examples:
  python -m publisher load users.jsonl
  python -m publisher load users.csv --dry-run               # only check
  python -m publisher load users.csv --rejects bad.csv && echo all accepted
  zcat users.jsonl.gz | python -m publisher load - --json
  python -m publisher load users.jsonl --start-line 120001   # after Ctrl-C

exit code: 0 every line accepted, 1 some were not, 2 wrong usage, 130 Ctrl-C
"""
SERVE: Final = """Take messages over HTTP and publish them, until SIGTERM or Ctrl-C.

POST /users takes the JSON of one user, {"user_id": 5}; POST /events/NAME takes that of a message
of any event. They answer
  202  {"message_id": "..."}: Pub/Sub has accepted it, and only now may the sender forget it
  400  it breaks the format, or the topic refuses it; the answer names the field, never its value
  408  it did not arrive in time: send it again
  413  it is larger than a message can be
  503  Pub/Sub is out of reach, or too much is in flight: keep it, and send it again after Retry-After seconds

Repeating is harmless, because a message that is repeated is absorbed.
GET /healthz answers 200 while the process lives.

It checks no identity: leave that to the platform (on Cloud Run, require authentication).
A first signal stops taking messages and answers what is in flight; a second one leaves at once.

examples:
  python -m publisher serve --topic users --project acme
  python -m publisher serve --port 8081 --push-to http://127.0.0.1:8080/   # no Pub/Sub
  curl --json '{"user_id": 5}' http://127.0.0.1:8081/users

exit code: 0 stopped in order, 1 no credentials, a failure or a second signal, 2 wrong usage
"""


_F = TypeVar("_F", bound=Callable[..., Any])


def create_options(body: _F) -> _F:
    """Add the options of `create`."""
    return _added(
        body,
        _event(),
        click.option(
            "--set",
            type=parameters.Read("field", _field),
            multiple=True,
            metavar="FIELD=VALUE",
            help="a field of the event, as often as it has fields; an object or an array as JSON",
        ),
        click.option("--user-id", type=parameters.USER_ID, metavar="N", help="1 to 2^63-1"),
        click.option("--email", metavar="TEXT", help="e-mail address (default: null)"),
        click.option("--settings", metavar="TEXT", help="any text (default: null)"),
        click.option(
            "--created-at",
            type=parameters.whole(0, MAX_CREATED_AT),
            metavar="SECONDS",
            help="seconds since 1970, UTC (default: when it is published)",
        ),
        click.option("--json", is_flag=True, help="print one JSON object"),
        *_target(settings.GIVE_UP_AFTER_SECONDS),
    )


def load_options(body: _F) -> _F:
    """Add the options of `load`."""
    return _added(
        body,
        _event(),
        click.argument("file", metavar="FILE"),
        click.option(
            "--format",
            type=click.Choice(("auto", "jsonl", "csv")),
            default="auto",
            help="default: auto, by the name or the content",
        ),
        click.option(
            "--delimiter",
            type=parameters.Read("character", _delimiter),
            metavar="C",
            help="what divides the cells of a CSV: one character, or tab (default: found out)",
        ),
        click.option("--dry-run", is_flag=True, help="check every line, send nothing"),
        click.option("--json", is_flag=True, help="print the summary as one JSON object"),
        click.option("--rejects", type=parameters.PATH, metavar="FILE", help="write what was not accepted there"),
        click.option(
            "--accepted",
            type=parameters.PATH,
            metavar="FILE",
            help='write {"line", "user_id", "message_id"} there for every accepted message',
        ),
        click.option(
            "--in-flight",
            type=parameters.whole(1, settings.MAX_IN_FLIGHT),
            metavar="N",
            help=f"messages sent and not answered yet, at most (default: {settings.IN_FLIGHT_MESSAGES}; "
            f"with --push-to: {settings.PUSH_IN_FLIGHT})",
        ),
        click.option(
            "--start-line", type=parameters.whole(1), default=1, metavar="N", help="pass over the lines before this one"
        ),
        *_target(settings.GIVE_UP_AFTER_SECONDS),
    )


def serve_options(body: _F) -> _F:
    """Add the options of `serve`."""
    return _added(
        body,
        click.option(
            "--host", type=parameters.WORD, metavar="ADDRESS", help=f"overrides HOST (default: {settings.GATEWAY_HOST})"
        ),
        click.option(
            "--port",
            type=parameters.whole(0, settings.MAX_PORT),
            metavar="N",
            help=f"overrides PORT (default: {settings.GATEWAY_PORT})",
        ),
        click.option(
            "--in-flight",
            type=parameters.whole(1, settings.MAX_IN_FLIGHT),
            default=settings.GATEWAY_IN_FLIGHT,
            metavar="N",
            help=f"most messages taken and not answered; more are answered 503 (default: {settings.GATEWAY_IN_FLIGHT})",
        ),
        *_target(settings.GATEWAY_GIVE_UP_SECONDS),
    )


def _target(give_up_after: float) -> Sequence[Callable[[Any], Any]]:
    """The options that say where to publish to."""
    return (
        click.option("--topic", type=parameters.WORD, metavar="TOPIC", help="overrides TOPIC"),
        click.option("--project", type=parameters.WORD, metavar="PROJECT", help="overrides GOOGLE_CLOUD_PROJECT"),
        click.option(
            "--push-to",
            type=parameters.ADDRESS,
            metavar="URL",
            help="deliver to a worker as a push subscription would, without Pub/Sub",
        ),
        click.option(
            "--give-up-after",
            type=parameters.seconds(MAX_GIVE_UP_SECONDS),
            default=give_up_after,
            metavar="SECONDS",
            help=f"how long one message is retried (default: {give_up_after:g})",
        ),
    )


def _event() -> Callable[[_F], _F]:
    return click.option(
        "--event",
        type=parameters.WORD,
        metavar="NAME",
        help="the event that is published, of those that EVENTS declares (default: user.created)",
    )


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise values.Wrong("must be FIELD=VALUE, such as note=gift")
    return name, value


def _added(body: _F, *options: Callable[[_F], _F]) -> _F:
    for option in reversed(options):
        body = option(body)
    return body


def _delimiter(text: str) -> str:
    found = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(found) != 1 or found in '"\r\n' or found.isalnum() or not (found.isprintable() or found == "\t"):
        raise values.Wrong("must be one character that is no letter, digit, quote or line end, or the word tab")
    return found
