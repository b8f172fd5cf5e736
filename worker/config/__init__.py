"""Settings: environment variables, read once into one frozen, validated object.

Each field below is one setting: its variable, its default, its bounds, and the words of docs/configuration.md, which
`make docs` writes from here. Limits that an operator has no reason to change are constants: those that nest with others
stand below, the rest beside the code that uses them. Settings refuse to load when a value is wrong or when the time limits
do not nest (INV-8); the error names the variable, what it was and what it must be.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from publisher import values
from worker.config import nesting
from worker.config.addresses import database_address, database_file, store_name, store_place
from worker.config.limits import BODY_MAX_BYTES, HELD_SHARE, RECEIPT_DAYS_MIN
from worker.errors import ConfigError

CHECKPOINT_HOURS_MIN: Final = 1.0
"""A project holds 5,000 snapshots, and one lives seven days: 168 of an hourly one (Pub/Sub documentation, "Quotas")."""

WORKER_COUNTS: Final = ("WORKERS", "WEB_CONCURRENCY")
"""Variables by which other servers are told to run several processes."""

_IN_WORKER_POOLS: Final = {"K_REVISION": "CLOUD_RUN_REVISION", "K_SERVICE": "CLOUD_RUN_WORKER_POOL"}
"""What Cloud Run sets in a worker pool in their place."""

_TEXTS: Final[Mapping[str, Callable[[str], Any]]] = {
    "REPLICA_URL": store_place,
    "DATABASE_URL": database_address,
    "DATABASE_PASSWORD_FILE": values.path,
    "ERASED_URL": store_place,
    "DATABASE_PATH": database_file,
    "LITESTREAM_CONFIG": values.path,
    "LITESTREAM_BIN": lambda text: str(values.path(text)),
    "PUSH_AUDIENCE": values.word,
    "PUSH_SERVICE_ACCOUNT": values.email,
    "OIDC_CERTS_URL": values.address,
    "HOST": values.word,
    "SUBSCRIPTION": values.word,
    "GOOGLE_CLOUD_PROJECT": values.word,
    "EVENTS": values.word,
    "LITESTREAM_METRICS_ADDRESS": values.word,
}
"""How texts are read that are more than any text: one that can never match is refused at start."""


def _setting(
    name: str, default: Any, meaning: str, *, unit: str, why: str, low: float | None = None, high: float | None = None
) -> Any:
    """One setting. `unit`, `meaning` and `why` (the reason for its default) are Markdown, without a table's bars."""
    words = {"unit": unit, "meaning": meaning, "why": why}
    return field(default=default, metadata={"name": name, "low": low, "high": high, **words})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the worker can be told. Built by `load`; a test may build it directly."""

    replica_url: str = _setting(
        "REPLICA_URL",
        "",
        "Where the data lives: `gs://BUCKET/PREFIX`.",
        unit="URL",
        why="A default could only be wrong. The prefix is required, so that two stores never share the root of a bucket.",
    )
    database_url: str = _setting(
        "DATABASE_URL",
        "",
        "The data lives in PostgreSQL instead, and every instance writes: `postgresql://USER@HOST/DATABASE`. Exactly one of "
        "this and `REPLICA_URL` is set; see [scaling](scaling.md).",
        unit="URL",
        why="One writer and a bucket cost less, and are enough for most.",
    )
    database_password_file: str = _setting(
        "DATABASE_PASSWORD_FILE",
        "",
        "File with the password of `DATABASE_URL`. It is read at each connection.",
        unit="path",
        why="A mounted secret: everyone who may look at the service's settings sees a variable.",
    )
    erased_url: str = _setting(
        "ERASED_URL",
        "",
        "With `DATABASE_URL`, where erased subjects are remembered outside the database as well: `gs://BUCKET/PREFIX`. At "
        "its start an instance erases in the database whom the list names.",
        unit="URL",
        why="Without it, a restore by the provider to a time before an erasure brings the person back.",
    )
    database_path: Path = _setting(
        "DATABASE_PATH",
        Path("/tmp/solowriter/users.db"),
        "The working copy. A database found there at start is moved aside, not used: the bucket is the truth. "
        "Litestream's files and socket lie beside it.",
        unit="path",
        why="On Cloud Run every path is memory. The container image sets `/data/users.db`.",
    )
    host: str = _setting("HOST", "0.0.0.0", "Address to listen on.", unit="address", why="Cloud Run's contract.")
    port: int = _setting(
        "PORT",
        8080,
        "Port to listen on; 0 picks a free one.",
        unit="port",
        why="Cloud Run's contract; Cloud Run sets it.",
        low=0,
        high=65535,
    )
    revision: str = _setting(
        "K_REVISION",
        "local",
        "Name of this deployment, kept in the lease record for people to read. An instance that pulls asks a holder of "
        "another name to hand over.",
        unit="name",
        why="Cloud Run sets it, and in a worker pool `CLOUD_RUN_REVISION`, which is read then.",
    )
    service: str = _setting(
        "K_SERVICE",
        "solowriter",
        "Name of this service, by which Error Reporting and traces know it.",
        unit="name",
        why="Cloud Run sets it, and in a worker pool `CLOUD_RUN_WORKER_POOL`, which is read then.",
    )
    log_level: str = _setting(
        "LOG_LEVEL",
        "info",
        "`debug`, `info`, `warning` or `error`. `debug` adds a line for each message, and Litestream's own.",
        unit="level",
        why="At `info` an idle or healthy worker logs nothing per message.",
    )
    events: str = _setting(
        "EVENTS",
        "worker.events.users",
        "The Python modules that declare events, divided by commas; see docs/events.md. PYTHONPATH must have the folder "
        "that holds a module of your own. A message that names no event is a `user.created`.",
        unit="modules",
        why="The users of the service that this one replaces.",
    )
    unknown_fields: Literal["count", "reject"] = _setting(
        "UNKNOWN_FIELDS",
        "count",
        "What a message with a field that its event does not declare comes to. `count`: it is taken, and the field is "
        "counted and named once in the log. `reject`: it is kept as a rejection.",
        unit="count or reject",
        why="A publisher may be newer than the worker.",
    )

    ack_deadline_seconds: float = _setting(
        "ACK_DEADLINE_SECONDS",
        60.0,
        "The push subscription's ack deadline, which is the timeout of each of its requests. Set both to the same value. "
        "A request is held for at most 80 % of it, and then answered 503.",
        unit="seconds",
        why="Room for a restart: what is held while an instance starts is answered, not repeated.",
        low=10,
        high=600,
    )
    queue_max_messages: int = _setting(
        "QUEUE_MAX_MESSAGES",
        900,
        "Messages held at once; more are answered 503.",
        unit="messages",
        why="Below Cloud Run's largest concurrency, 1,000: so the worker answers 503 before the platform answers 429.",
        low=1,
    )
    queue_max_bytes: int = _setting(
        "QUEUE_MAX_BYTES",
        64_000_000,
        "Bytes of bodies held at once, counted before they are read; more are answered 503.",
        unit="bytes",
        why="Fits an instance of 512 MiB beside the database; four bodies of the largest size.",
        low=BODY_MAX_BYTES,
    )
    push_unwrapped: bool = _setting(
        "PUSH_UNWRAPPED",
        False,
        "`true`: the subscription has no wrapper and writes no metadata, so every body is a message's data. With metadata "
        "an unwrapped push is recognized without this.",
        unit="",
        why="A body that is no push is a mistake, and should be answered as one.",
    )

    push_audience: str = _setting(
        "PUSH_AUDIENCE",
        "",
        "The audience that tokens must be made for: what `gcloud pubsub subscriptions create --push-auth-token-audience` "
        "was given.",
        unit="text",
        why="A default could only be wrong.",
    )
    push_service_account: str = _setting(
        "PUSH_SERVICE_ACCOUNT",
        "",
        "Whose tokens the subscription pushes with: `gcloud pubsub subscriptions create --push-auth-service-account`. Set "
        "both or neither.",
        unit="e-mail address",
        why="As above.",
    )
    tokens_verified_by: str = _setting(
        "TOKENS_VERIFIED_BY",
        "here",
        "Who checks the signatures of tokens. `platform` on Cloud Run with its check of IAM on, which replaces them by a "
        "marker that is taken in their place; see [security](security.md#who-reaches-the-service).",
        unit="`here` or `platform`",
        why="Any sender could write that marker where no platform checks.",
    )
    operators: str = _setting(
        "OPERATORS",
        "",
        "Who may read, retry and discard rejections: service accounts that operators impersonate.",
        unit="e-mail addresses, with commas",
        why="No account, until one is named.",
    )
    oidc_certs_url: str = _setting(
        "OIDC_CERTS_URL",
        "https://www.googleapis.com/oauth2/v1/certs",
        "Where the certificates are fetched that tokens are checked with.",
        unit="URL",
        why="Google's.",
    )

    upload_spacing_seconds: float = _setting(
        "UPLOAD_SPACING_SECONDS",
        0.0,
        "Least time between the beginnings of two uploads. Fewer uploads cost less, and acknowledgements wait longer.",
        unit="seconds",
        why="An upload for each confirmation: the shortest wait. See [cost](cost.md#cost-against-latency).",
        low=0,
        high=5,
    )
    retention_days: float = _setting(
        "RETENTION_DAYS",
        7.0,
        "How long a generation is kept after it has ended, for restores to an earlier moment. The receipt of a message is "
        "kept for 32 days, or a day longer than this.",
        unit="days",
        why="A week to notice a mistake.",
        low=0,
    )
    rejection_days: float = _setting(
        "REJECTION_DAYS",
        90.0,
        "How long a rejection is kept, resolved or not; it holds the message as it was published.",
        unit="days",
        why="A quarter to act; then personal data goes. The log counts those that go unresolved.",
        low=31,
    )

    checkpoint_hours: float = _setting(
        "CHECKPOINT_HOURS",
        0.0,
        "Pause between two [checkpoints](operations.md#checkpoints) that the service takes; 0 for none. As many are kept "
        "as seven days hold.",
        unit="hours",
        why="It needs permissions on Pub/Sub that the service otherwise does without.",
        low=0,
    )
    delivery: Literal["push", "pull"] = _setting(
        "DELIVERY",
        "push",
        "`push`: a push subscription delivers to `POST /`. `pull`: the instance that serves takes messages from "
        "`SUBSCRIPTION` itself, without ingress; `POST /` goes on working. See docs/pull.md.",
        unit="push or pull",
        why="Push scales to zero, and Cloud Run checks its tokens.",
    )
    subscription: str = _setting(
        "SUBSCRIPTION",
        "",
        "The subscription that feeds the store, for these, for the commands about checkpoints, replay and recovery, and for "
        "the doctor.",
        unit="id or full name",
        why="A default could only be wrong.",
    )
    project: str = _setting(
        "GOOGLE_CLOUD_PROJECT",
        "",
        "The project of a `SUBSCRIPTION` given as an id, and of the traces that the log names.",
        unit="id",
        why="Full names need none; without it the log has a trace's id alone.",
    )

    lease_ttl_seconds: float = _setting(
        "LEASE_TTL_SECONDS",
        15.0,
        "Silence after which another instance's lease may be taken over. Every instance measures it on its own clock. The "
        "holder renews the lease each 4/15 of it.",
        unit="seconds",
        why="Three lost renewals. Shorter means a quicker recovery after a kill, and more false alarms.",
        low=3.1,
    )
    tenure_min_seconds: float = _setting(
        "TENURE_MIN_SECONDS",
        30.0,
        "Least time a new writer serves before it hands over.",
        unit="seconds",
        why="While a deployment splits traffic between two revisions, the lease must not go to and fro.",
        low=0,
    )
    restore_timeout_seconds: float = _setting(
        "RESTORE_TIMEOUT_SECONDS",
        180.0,
        "Longest a restore may take. One file of it may take a third of this, and the full copy that is uploaded after it "
        "two thirds.",
        unit="seconds",
        why="Cloud Run's start-up probe waits 240 s at most.",
        low=1,
    )

    litestream_bin: str = _setting(
        "LITESTREAM_BIN",
        "litestream",
        "Litestream's binary. A name is looked up on PATH, then beside the Python that runs the worker.",
        unit="path or name",
        why="The container image has it on PATH; the development requirements put it beside Python.",
    )
    litestream_config: Path = _setting(
        "LITESTREAM_CONFIG",
        Path(__file__).resolve().parents[1] / "replica" / "litestream.yml",
        "Litestream's configuration. The default is the file that is shipped.",
        unit="path",
        why="The supervisor and the file belong together.",
    )
    litestream_metrics_address: str = _setting(
        "LITESTREAM_METRICS_ADDRESS",
        "127.0.0.1:9090",
        "Where Litestream serves its own metrics; `off` for nowhere. If the address is taken, Litestream logs that and goes "
        "on without.",
        unit="address:port",
        why="Loopback only.",
    )

    def __post_init__(self) -> None:
        """Refuse what is out of range, unparsable, or does not nest."""
        for spec in fields(self):
            _check_range(spec.metadata["name"], getattr(self, spec.name), spec.metadata["low"], spec.metadata["high"])
        _check_one_database(self)
        _check_texts(self)
        _check_choice("LOG_LEVEL", self.log_level, ("debug", "info", "warning", "error"))
        _check_choice("DELIVERY", self.delivery, ("push", "pull"))
        _check_choice("UNKNOWN_FIELDS", self.unknown_fields, ("count", "reject"))
        _check_choice("TOKENS_VERIFIED_BY", self.tokens_verified_by, ("here", "platform"))
        if bool(self.push_audience) != bool(self.push_service_account):
            raise ConfigError(
                "PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT belong together: set both, as the push subscription has them, "
                "or neither"
            )
        if self.tokens_verified_by == "platform" and not self.push_audience:
            raise ConfigError(
                "TOKENS_VERIFIED_BY is 'platform' and PUSH_AUDIENCE is not set: then no token is looked at; set it as well"
            )
        if 0 < self.checkpoint_hours < CHECKPOINT_HOURS_MIN or (self.checkpoint_hours and not self.subscription):
            raise ConfigError(
                f"CHECKPOINT_HOURS is {self.checkpoint_hours:g}: it must be 0, or at least {CHECKPOINT_HOURS_MIN:g} with "
                "SUBSCRIPTION set to the subscription that feeds the store"
            )
        named = re.fullmatch(r"projects/[^/]+/subscriptions/[^/]+", self.subscription) or (
            self.project and "/" not in self.subscription
        )
        if self.delivery == "pull" and not self.subscription:
            raise ConfigError(
                "DELIVERY is pull, and SUBSCRIPTION is not set; set it to the subscription that feeds the store"
            )
        if (self.checkpoint_hours or self.delivery == "pull") and not named:
            raise ConfigError(
                f"SUBSCRIPTION is {self.subscription!r} and must be projects/PROJECT/subscriptions/ID, or an id with "
                f"GOOGLE_CLOUD_PROJECT set, for {'CHECKPOINT_HOURS' if self.checkpoint_hours else 'DELIVERY=pull'}"
            )
        if self.operators and not self.push_audience:
            raise ConfigError("OPERATORS is set and PUSH_AUDIENCE is not: no token could be verified; set it as well")
        for broken in nesting.broken(
            deadline=self.ack_deadline_seconds,
            hold=self.hold_limit_seconds,
            sync=self.sync_timeout_seconds,
            spacing=self.upload_spacing_seconds,
            tokens=bool(self.push_audience),
        ):
            raise ConfigError(broken)

    @property
    def many_writers(self) -> bool:
        """Whether the data lives in PostgreSQL, where every instance writes."""
        return bool(self.database_url)

    @property
    def store_name(self) -> str:
        """See the function of this name."""
        return store_name(self.replica_url, self.database_url)

    @property
    def bucket(self) -> str:
        """The bucket's name, from REPLICA_URL."""
        return store_place(self.replica_url)[0]

    @property
    def subscription_name(self) -> str:
        """The full name of SUBSCRIPTION."""
        text = self.subscription
        return text if "/" in text else f"projects/{self.project}/subscriptions/{text}"

    @property
    def prefix(self) -> str:
        """The prefix inside the bucket, from REPLICA_URL, with no slash at either end."""
        return store_place(self.replica_url)[1]

    # Seconds that follow from a setting, so that they nest whatever it is.

    @property
    def hold_limit_seconds(self) -> float:
        """Longest a request is held before 503."""
        return HELD_SHARE * self.ack_deadline_seconds

    @property
    def transaction_seconds(self) -> float:
        """Longest one transaction of PostgreSQL takes, with its wait for the standby: a group must end while it is held."""
        return self.hold_limit_seconds / 2

    @property
    def sync_timeout_seconds(self) -> int:
        """Longest one confirmation waits before it is asked again: several times in a hold, twenty times a slow upload."""
        return max(1, min(5, int(self.hold_limit_seconds / 9)))

    @property
    def first_sync_timeout_seconds(self) -> int:
        """Longest the full copy at the start of a generation may take: as many bytes as are restored, one file."""
        return max(1, int(self.restore_timeout_seconds * 2 / 3))

    @property
    def fetch_timeout_seconds(self) -> float:
        """Longest one file, such as a full copy, may take to be read in a restore."""
        return self.restore_timeout_seconds / 3

    @property
    def lease_renew_seconds(self) -> float:
        """Pause between two renewals: under a third of the TTL, so that one lost renewal does not look like death.

        Cloud Storage takes one write a second for each object name.
        """
        return max(1.0, self.lease_ttl_seconds * 4 / 15)

    @property
    def lease_poll_seconds(self) -> float:
        """Pause between two looks at a lease that another instance holds: a release is noticed within a second."""
        return min(0.5, self.lease_ttl_seconds / 30)

    @property
    def lease_read_timeout_seconds(self) -> float:
        """Longest one request for the lease record may take: ten times a slow answer, and half the TTL at most."""
        return min(3.0, self.lease_ttl_seconds / 2)

    @property
    def successor_poll_seconds(self) -> float:
        """Pause between the holder's looks for an instance that asks: messages wait at that instance meanwhile."""
        return self.lease_ttl_seconds / 15

    @property
    def successor_fresh_seconds(self) -> float:
        """How long one request to take over counts: an instance that has lost its traffic again stops asking.

        It is repeated after half of this, and one object takes one write a second.
        """
        return max(5.0, self.lease_ttl_seconds / 3)

    @property
    def receipt_days(self) -> float:
        """How long the receipt of a message is kept.

        Pub/Sub delivers again what it retained for 31 days; without its receipt a message would be judged by the user's row
        alone. A recovery to a kept generation tells what it undoes by the receipts.
        """
        return max(RECEIPT_DAYS_MIN, self.retention_days + 1)


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables.

    Raises:
        ConfigError: A variable is missing or wrong, the limits do not nest, or more than one worker process is asked for.
    """
    refuse_workers(environ)
    environ = {ours: environ[theirs] for ours, theirs in _IN_WORKER_POOLS.items() if theirs in environ} | dict(environ)
    given = {
        spec.name: _parse(spec.metadata["name"], environ[spec.metadata["name"]], type(spec.default))
        for spec in fields(Settings)
        if environ.get(spec.metadata["name"], "").strip() != ""
    }
    return Settings(**given)


def refuse_workers(environ: Mapping[str, str]) -> None:
    """Let pass what asks for one worker process, or for nothing.

    Raises:
        ConfigError: A variable asks for more: that would be more than one writer.
    """
    for name in WORKER_COUNTS:
        if environ.get(name, "1").strip() not in ("", "1"):
            raise ConfigError(
                f"{name}={environ[name]}: this service is one writer in one process; unset {name}, "
                "and raise QUEUE_MAX_MESSAGES or the CPU instead"
            )


def described() -> list[tuple[str, str, str]]:
    """Every setting as (variable, default, what it means, in plain text), for `--help` and the documentation's test."""
    return [(spec.metadata["name"], str(spec.default), _plain(spec.metadata["meaning"])) for spec in fields(Settings)]


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")


def _parse(name: str, text: str, kind: type) -> Any:
    """The value of a variable; blanks and line ends around it, as `echo` and copying leave them, are none of it.

    A path is taken as it is: its blanks may be meant, and a line end in it is refused.
    """
    if kind not in (str, int, float, bool):
        return Path(text)
    text = text.strip()
    if kind is bool:
        _check_choice(name, text, ("true", "false"))
        return text == "true"
    if kind is int or kind is float:
        try:
            return _integer(text) if kind is int else _number(text)
        except values.Wrong:
            raise ConfigError(_wrong(name, text, {int: "a whole number", float: "a number"}[kind])) from None
    return text


def _integer(text: str) -> int:
    return values.whole(-values.MAX_INTEGER)(text)


def _number(text: str) -> float:
    return float(text) if text in ("inf", "-inf", "nan") else values.number(text)  # the range says what is wrong with these


def _check_one_database(settings: Settings) -> None:
    """REPLICA_URL or DATABASE_URL, and what belongs to one of them alone."""
    if settings.replica_url and settings.database_url:
        raise ConfigError(
            "REPLICA_URL and DATABASE_URL are both set: the data lives in one place; unset REPLICA_URL to use PostgreSQL, "
            "after `worker move` if there is data in the bucket"
        )
    if not settings.replica_url and not settings.database_url:
        raise ConfigError(
            "REPLICA_URL is not set; it must say where the data lives: gs://BUCKET/PREFIX; or set DATABASE_URL, to use "
            "PostgreSQL"
        )
    for name, value in (("ERASED_URL", settings.erased_url), ("DATABASE_PASSWORD_FILE", settings.database_password_file)):
        if value and not settings.database_url:
            raise ConfigError(f"{name} is set and DATABASE_URL is not: it belongs to PostgreSQL; unset it")


def _check_texts(settings: Settings) -> None:
    for spec in fields(Settings):
        name, value = spec.metadata["name"], getattr(settings, spec.name)
        if name in _TEXTS and str(value):
            try:
                _TEXTS[name](str(value))
            except values.Wrong as error:
                shown = "wrong" if name == "DATABASE_URL" else repr(str(value))  # it may hold a password
                raise ConfigError(f"{name} is {shown} and {error}") from None
    for each in filter(None, map(str.strip, settings.operators.split(","))):
        try:
            values.email(each)
        except values.Wrong:
            wanted = "e-mail addresses with commas between them"
            raise ConfigError(_wrong("OPERATORS", settings.operators, wanted)) from None


def _check_range(name: str, value: Any, low: float | None, high: float | None) -> None:
    if value == float("inf"):
        raise ConfigError(_wrong(name, value, "a finite number"))  # every wait is bounded (INV-7)
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low:g}" if high is None else f"between {low or 0:g} and {high:g}"
        raise ConfigError(_wrong(name, value, bounds))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(_wrong(name, value, "one of " + ", ".join(choices)))


def _wrong(name: str, value: object, wanted: str) -> str:
    return f"{name} is {str(value)!r} and must be {wanted}"
