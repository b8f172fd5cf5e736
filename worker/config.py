"""Settings: environment variables, read once into one frozen, validated object.

Each field below is one setting: its variable, its default, its bounds and what it does; what a person is told besides, its
unit and the reason for its default, is in `local/setting_texts.py`, and `make docs` puts the two together. Settings refuse
to load when a value is wrong or when the time limits do not nest (INV-8); the error names the variable, what it was and
what it must be.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from publisher import values
from worker.errors import ConfigError

PLATFORM_GRACE_SECONDS: Final = 10.0
"""Cloud Run kills an instance this long after SIGTERM; not configurable (Cloud Run documentation, "Container contract")."""

CHECKPOINT_HOURS_MIN: Final = 1.0
"""A project holds 5,000 snapshots, and one lives seven days: 168 of an hourly one (Pub/Sub documentation, "Quotas")."""

WORKER_COUNTS: Final = ("WORKERS", "WEB_CONCURRENCY")
"""Variables by which other servers are told to run several processes."""

PREFIX_MAX: Final = 512
"""Longest prefix, in characters: an object's name has at most 1,024 bytes (documentation, "Quotas and limits")."""
NAME_MAX_BYTES: Final = 200
"""Longest name of the database's file: those beside it are longer, and a name has at most 255 bytes."""

_URL: Final = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])/([^/]+(?:/[^/]+)*)/?", re.ASCII)
_PART: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_SIGNS_OF_URLS: Final = "?#%"
"""Litestream 0.5.17 puts the file's name into a URL as it is, and SQLite opens another file. A folder it is given by another
name (litestream.plain); SQLite names the WAL for the file, so there is none for that."""


def store_place(url: str) -> tuple[str, str]:
    """The bucket and the prefix of a REPLICA_URL.

    Raises:
        Wrong: It is no store's place, or is one that different readers would take for different ones.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise values.Wrong("must be gs://BUCKET/PREFIX, for example gs://acme-users/prod")
    parts = found[2].split("/")
    if any(not _PART.fullmatch(part) or part in (".", "..") for part in parts) or len(found[2]) > PREFIX_MAX:
        raise values.Wrong(
            "must be gs://BUCKET/PREFIX, for example gs://acme-users/prod: the prefix has letters, digits, '.', '_', '-', "
            f"and '/' between its parts, and at most {PREFIX_MAX} characters; no part is '.' or '..'"
        )
    return found[1], found[2]


def database_address(text: str) -> str:
    """The address of a PostgreSQL database, as DATABASE_URL gives it.

    Raises:
        Wrong: It is none, or names no database.
    """
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise values.Wrong(f"must be postgresql://USER@HOST/DATABASE ({error})") from None
    if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/") or any(map(str.isspace, text)):
        raise values.Wrong("must be postgresql://USER@HOST/DATABASE")
    return text


def without_secrets(address: str) -> str:
    """The address of a database as it may be shown: no user, password or options but the host of a socket's folder."""
    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query))
    hosts = parts.netloc.rpartition("@")[2] or options.get("host", "")
    return f"postgresql://{hosts}{'' if parts.netloc else ':' if hosts else ''}/{parts.path.strip('/')}"


def store_name(replica_url: str, database_url: str) -> str:
    """See `Settings.store_name`."""
    return f"postgresql:///{urlsplit(database_url).path.strip('/')}" if database_url else replica_url.rstrip("/")


def database_file(text: str) -> Path:
    """The path of the working copy.

    Raises:
        Wrong: It can be no file here.
    """
    file = values.path(text)
    if len(os.fsencode(file.name)) > NAME_MAX_BYTES:
        raise values.Wrong(f"must be a file whose name has at most {NAME_MAX_BYTES} bytes")
    if any(sign in file.name for sign in _SIGNS_OF_URLS):
        raise values.Wrong("must be a file without '?', '#' and '%' in its name: Litestream would open another file")
    try:
        folder = file.is_dir()
    except OSError as error:
        raise values.Wrong(f"must be a path that can be opened ({error.strerror})") from None
    if folder:
        raise values.Wrong("must be a file, not a folder")
    return file


_TEXTS: Final[Mapping[str, Callable[[str], Any]]] = {
    "REPLICA_URL": store_place,
    "DATABASE_URL": database_address,
    "DATABASE_PASSWORD_FILE": lambda text: str(values.path(text)),
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
    "LITESTREAM_METRICS_ADDRESS": values.word,
}
"""How texts are read that are more than any text: one that can never match is refused at start."""


def _setting(name: str, default: Any, about: str, *, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"name": name, "about": about, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the worker can be told. Built by `load`; a test may build it directly."""

    replica_url: str = _setting("REPLICA_URL", "", "where the data lives: gs://BUCKET/PREFIX; this or DATABASE_URL")
    database_url: str = _setting(
        "DATABASE_URL", "", "the data lives in PostgreSQL instead, for many writers: postgresql://USER@HOST/DATABASE"
    )
    database_password_file: str = _setting(
        "DATABASE_PASSWORD_FILE", "", "file with the password of DATABASE_URL, read at each connection"
    )
    database_timeout_seconds: float = _setting(
        "DATABASE_TIMEOUT_SECONDS",
        0.0,
        "with DATABASE_URL, longest one transaction takes, its wait for the standby included; 0 means half of "
        "HOLD_LIMIT_SECONDS",
        low=0,
    )
    erased_url: str = _setting(
        "ERASED_URL", "", "with DATABASE_URL, where the ids of erased users are kept besides: gs://BUCKET/PREFIX"
    )
    database_path: Path = _setting(
        "DATABASE_PATH",
        Path("/tmp/solowriter/users.db"),
        "the working copy; anything found there is moved aside at start",
    )
    host: str = _setting("HOST", "0.0.0.0", "address to listen on")
    port: int = _setting("PORT", 8080, "port to listen on; 0 picks a free one", low=0, high=65535)
    revision: str = _setting("K_REVISION", "local", "name of this deployment, set by Cloud Run; kept in the lease record")
    service: str = _setting("K_SERVICE", "solowriter", "name of this service, set by Cloud Run; kept in errors and traces")
    log_level: str = _setting("LOG_LEVEL", "info", "debug, info, warning or error")

    ack_deadline_seconds: float = _setting(
        "ACK_DEADLINE_SECONDS",
        60.0,
        "the push subscription's ack deadline, which is its request timeout",
        low=10,
        high=600,
    )
    hold_limit_seconds: float = _setting(
        "HOLD_LIMIT_SECONDS",
        0.0,
        "longest a request is held before 503; 0 means 80 % of ACK_DEADLINE_SECONDS",
        low=0,
    )
    body_max_bytes: int = _setting(
        "BODY_MAX_BYTES",
        14_000_000,
        "largest push body: 10 MB of data is 13.4 MB in base64, and the wrapping",
        low=1024,
    )
    queue_max_messages: int = _setting("QUEUE_MAX_MESSAGES", 900, "messages held at once; more are answered 503", low=1)
    queue_max_bytes: int = _setting("QUEUE_MAX_BYTES", 64_000_000, "bytes held at once; more are answered 503", low=1024)
    group_max_messages: int = _setting("GROUP_MAX_MESSAGES", 500, "most messages in one transaction", low=1, high=2000)
    push_unwrapped: bool = _setting(
        "PUSH_UNWRAPPED",
        False,
        "true: the subscription pushes bare data without metadata; with metadata it needs no setting",
    )
    group_gather_seconds: float = _setting(
        "GROUP_GATHER_SECONDS",
        0.005,
        "longest a group is gathered while an earlier one is being confirmed",
        low=0,
        high=1,
    )
    busy_timeout_seconds: float = _setting(
        "BUSY_TIMEOUT_SECONDS",
        5.0,
        "longest a transaction waits for Litestream's checkpoint to let go",
        low=5,
        high=60,
    )

    push_audience: str = _setting(
        "PUSH_AUDIENCE", "", "audience that tokens must be made for; without it only the platform checks senders"
    )
    push_service_account: str = _setting(
        "PUSH_SERVICE_ACCOUNT", "", "e-mail address of the service account with which the subscription pushes"
    )
    tokens_verified_by: str = _setting(
        "TOKENS_VERIFIED_BY",
        "here",
        "here or platform: who checks the signatures of tokens; platform only where each request passes its check",
    )
    operators: str = _setting(
        "OPERATORS", "", "e-mail addresses, with commas between them, that may read and resolve rejections"
    )
    oidc_certs_url: str = _setting(
        "OIDC_CERTS_URL", "https://www.googleapis.com/oauth2/v1/certs", "where the certificates of tokens are fetched"
    )
    oidc_timeout_seconds: float = _setting(
        "OIDC_TIMEOUT_SECONDS", 5.0, "longest a push waits for certificates that are not there yet", low=0.1
    )
    oidc_refresh_min_seconds: float = _setting(
        "OIDC_REFRESH_MIN_SECONDS", 30.0, "least time between two fetches because of a token with an unknown key", low=1
    )
    oidc_tokens_max: int = _setting("OIDC_TOKENS_MAX", 1000, "verified tokens remembered until they expire", low=1)

    sync_timeout_seconds: int = _setting(
        "SYNC_TIMEOUT_SECONDS",
        5,
        "longest one confirmation waits for the bucket before it is asked again",
        low=1,
    )
    first_sync_timeout_seconds: int = _setting(
        "FIRST_SYNC_TIMEOUT_SECONDS", 120, "longest a new generation's full copy may take at start", low=1
    )
    restore_timeout_seconds: float = _setting(
        "RESTORE_TIMEOUT_SECONDS",
        180.0,
        "longest a restore may take; Cloud Run's start-up probe waits at most 240 s",
        low=1,
    )
    fetch_timeout_seconds: float = _setting(
        "FETCH_TIMEOUT_SECONDS",
        60.0,
        "longest one object, such as a full copy, may take to be read in a restore",
        low=1,
    )
    restore_integrity_check: str = _setting("RESTORE_INTEGRITY_CHECK", "quick", "none, quick or full, after each restore")

    lease_ttl_seconds: float = _setting(
        "LEASE_TTL_SECONDS", 15.0, "silence after which another instance's lease may be taken over", low=3.1
    )
    lease_renew_seconds: float = _setting("LEASE_RENEW_SECONDS", 4.0, "pause between two renewals of the lease", low=1)
    lease_poll_seconds: float = _setting(
        "LEASE_POLL_SECONDS", 0.5, "pause between two looks at a lease held by another", low=0.1
    )
    lease_read_timeout_seconds: float = _setting(
        "LEASE_READ_TIMEOUT_SECONDS", 3.0, "longest one request for the lease record may take", low=0.1
    )
    successor_poll_seconds: float = _setting(
        "SUCCESSOR_POLL_SECONDS", 1.0, "pause between the holder's looks for an instance that asks to take over", low=0.1
    )
    successor_fresh_seconds: float = _setting(
        "SUCCESSOR_FRESH_SECONDS", 5.0, "how long one request to take over counts; repeated while messages come in", low=2.5
    )
    tenure_min_seconds: float = _setting(
        "TENURE_MIN_SECONDS", 30.0, "least time a new writer serves before it hands over: traffic may still be split", low=0
    )

    upload_spacing_seconds: float = _setting(
        "UPLOAD_SPACING_SECONDS",
        0.0,
        "least time between the beginnings of two uploads: fewer cost less, and acknowledgements wait longer",
        low=0,
        high=5,
    )
    retention_days: float = _setting("RETENTION_DAYS", 7.0, "how long a generation is kept after it has ended", low=0)
    receipt_days: float = _setting(
        "RECEIPT_DAYS", 32.0, "how long the receipt of a message is kept: Pub/Sub can replay 31 days", low=31
    )
    rejection_days: float = _setting("REJECTION_DAYS", 90.0, "how long a rejection is kept, resolved or not", low=31)
    prune_step_rows: int = _setting("PRUNE_STEP_ROWS", 2000, "most rows deleted in one transaction", low=1, high=20_000)
    prune_interval_seconds: float = _setting(
        "PRUNE_INTERVAL_SECONDS", 3600.0, "pause between two looks for what is past its retention", low=1
    )
    checkpoint_hours: float = _setting(
        "CHECKPOINT_HOURS", 0.0, "pause between two checkpoints that the service takes of SUBSCRIPTION; 0 for none", low=0
    )
    subscription: str = _setting(
        "SUBSCRIPTION", "", "the subscription that feeds the store: an id, or projects/P/subscriptions/S; for checkpoints"
    )
    project: str = _setting(
        "GOOGLE_CLOUD_PROJECT", "", "the project of a SUBSCRIPTION given as an id, and of the traces that logs name"
    )
    litestream_silent_max: int = _setting(
        "LITESTREAM_SILENT_MAX",
        3,
        "syncs in a row without an answer after which Litestream is restarted",
        low=1,
    )

    drain_seconds: float = _setting("DRAIN_SECONDS", 2.5, "at shutdown, longest wait for what is in flight", low=0.1)
    release_seconds: float = _setting("RELEASE_SECONDS", 1.5, "at shutdown, longest wait to release the lease", low=0.1)

    trace_flush_seconds: float = _setting(
        "TRACE_FLUSH_SECONDS", 1.0, "at shutdown, longest wait for the last spans to be exported, if traces are on", low=0.1
    )

    litestream_bin: str = _setting(
        "LITESTREAM_BIN", "litestream", "Litestream's binary: a path, or a name looked up on PATH"
    )
    litestream_config: Path = _setting(
        "LITESTREAM_CONFIG",
        Path(__file__).resolve().parent.parent / "litestream.yml",
        "Litestream's configuration",
    )
    litestream_metrics_address: str = _setting(
        "LITESTREAM_METRICS_ADDRESS",
        "127.0.0.1:9090",
        "where Litestream serves its own metrics; off for nowhere",
    )
    metrics_timeout_seconds: float = _setting(
        "METRICS_TIMEOUT_SECONDS", 2.0, "longest a scrape waits for Litestream, the database and the bucket", low=0.1
    )
    metrics_refresh_seconds: float = _setting(
        "METRICS_REFRESH_SECONDS", 30.0, "least time between two counts of open rejections, and looks at drill.json", low=1
    )
    litestream_start_seconds: float = _setting(
        "LITESTREAM_START_SECONDS", 10.0, "longest wait for Litestream's control socket", low=0.5
    )
    litestream_starts_max: int = _setting(
        "LITESTREAM_STARTS_MAX",
        10,
        "starts of Litestream in a row that may fail before the worker gives up",
        low=1,
    )

    def __post_init__(self) -> None:
        """Refuse what is out of range, unparsable, or does not nest."""
        for spec in fields(self):
            _check_range(spec.metadata["name"], getattr(self, spec.name), spec.metadata["low"], spec.metadata["high"])
        _check_texts(self)
        _check_choice("LOG_LEVEL", self.log_level, ("debug", "info", "warning", "error"))
        _check_choice("TOKENS_VERIFIED_BY", self.tokens_verified_by, ("here", "platform"))
        _check_choice("RESTORE_INTEGRITY_CHECK", self.restore_integrity_check, ("none", "quick", "full"))
        if self.hold_limit_seconds == 0:
            object.__setattr__(self, "hold_limit_seconds", 0.8 * self.ack_deadline_seconds)
        if self.database_timeout_seconds == 0:
            object.__setattr__(self, "database_timeout_seconds", 0.5 * self.hold_limit_seconds)
        _check_one_database(self)
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
        if self.checkpoint_hours and not named:
            raise ConfigError(
                f"SUBSCRIPTION is {self.subscription!r} and must be projects/PROJECT/subscriptions/ID, or an id with "
                "GOOGLE_CLOUD_PROJECT set, for CHECKPOINT_HOURS"
            )
        if self.operators and not self.push_audience:
            raise ConfigError("OPERATORS is set and PUSH_AUDIENCE is not: no token could be verified; set it as well")
        for broken in _not_nested(self):
            raise ConfigError(broken)

    @property
    def many_writers(self) -> bool:
        """Whether the data lives in PostgreSQL, where every instance writes."""
        return bool(self.database_url)

    @property
    def store_name(self) -> str:
        """The store, as a command and the service each know it. A database's host may have another name for each of them."""
        return store_name(self.replica_url, self.database_url)

    @property
    def bucket(self) -> str:
        """The bucket's name, from REPLICA_URL."""
        return store_place(self.replica_url)[0]

    @property
    def prefix(self) -> str:
        """The prefix inside the bucket, from REPLICA_URL, with no slash at either end."""
        return store_place(self.replica_url)[1]


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables.

    Raises:
        ConfigError: A variable is missing or wrong, the limits do not nest, or more than one worker process is asked for.
    """
    refuse_workers(environ)
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
    """Every setting as (variable, default, what it does), for `--help` and the documentation's test."""
    return [(spec.metadata["name"], str(spec.default), spec.metadata["about"]) for spec in fields(Settings)]


def _not_nested(settings: Settings) -> list[str]:
    """INV-8: the sentences for the time limits that do not nest."""
    attempt = settings.busy_timeout_seconds + settings.sync_timeout_seconds + settings.upload_spacing_seconds
    goodbye = settings.drain_seconds + settings.release_seconds + settings.trace_flush_seconds
    rules = [
        (
            attempt < settings.hold_limit_seconds,
            f"BUSY_TIMEOUT_SECONDS + SYNC_TIMEOUT_SECONDS + UPLOAD_SPACING_SECONDS is {attempt:g} and must be less "
            f"than HOLD_LIMIT_SECONDS, {settings.hold_limit_seconds:g}: a group must be able to end while it is held",
        ),
        (
            settings.hold_limit_seconds < settings.ack_deadline_seconds,
            f"HOLD_LIMIT_SECONDS is {settings.hold_limit_seconds:g} and must be less than ACK_DEADLINE_SECONDS, "
            f"{settings.ack_deadline_seconds:g}: the answer must reach the queue before it gives up",
        ),
        (
            not settings.database_url or settings.database_timeout_seconds < settings.hold_limit_seconds,
            f"DATABASE_TIMEOUT_SECONDS is {settings.database_timeout_seconds:g} and must be less than HOLD_LIMIT_SECONDS, "
            f"{settings.hold_limit_seconds:g}: a group must be able to end while it is held",
        ),
        (
            settings.lease_renew_seconds < settings.lease_ttl_seconds / 3,
            f"LEASE_RENEW_SECONDS is {settings.lease_renew_seconds:g} and must be less than a third of "
            f"LEASE_TTL_SECONDS, {settings.lease_ttl_seconds:g}: one lost renewal must not look like death",
        ),
        (
            goodbye < PLATFORM_GRACE_SECONDS,
            f"DRAIN_SECONDS + RELEASE_SECONDS + TRACE_FLUSH_SECONDS is {goodbye:g} and must be less "
            f"than {PLATFORM_GRACE_SECONDS:g}, the time the platform gives between SIGTERM and SIGKILL",
        ),
        (
            not settings.push_audience
            or settings.oidc_timeout_seconds + settings.hold_limit_seconds < settings.ack_deadline_seconds,
            f"OIDC_TIMEOUT_SECONDS + HOLD_LIMIT_SECONDS is {settings.oidc_timeout_seconds + settings.hold_limit_seconds:g} "
            f"and must be less than ACK_DEADLINE_SECONDS, {settings.ack_deadline_seconds:g}: a push may wait for both",
        ),
        (
            settings.retention_days < settings.receipt_days,
            f"RETENTION_DAYS is {settings.retention_days:g} and must be less than RECEIPT_DAYS, {settings.receipt_days:g}: "
            "a recovery tells what it undoes by the receipts",
        ),
        (
            settings.body_max_bytes <= settings.queue_max_bytes,
            f"BODY_MAX_BYTES is {settings.body_max_bytes} and must not exceed QUEUE_MAX_BYTES, {settings.queue_max_bytes}",
        ),
    ]
    return [sentence for holds, sentence in rules if not holds]


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
            "REPLICA_URL is not set; it must say where the data lives: gs://BUCKET/PREFIX (or set DATABASE_URL, for "
            "PostgreSQL)"
        )
    if settings.replica_url and (settings.erased_url or settings.database_password_file):
        name = "ERASED_URL" if settings.erased_url else "DATABASE_PASSWORD_FILE"
        raise ConfigError(f"{name} is set and DATABASE_URL is not: it belongs to PostgreSQL; unset it")


def _check_texts(settings: Settings) -> None:
    for spec in fields(Settings):
        name, value = spec.metadata["name"], getattr(settings, spec.name)
        if name in _TEXTS and str(value):
            try:
                _TEXTS[name](str(value))
            except values.Wrong as error:
                shown = "" if name == "DATABASE_URL" else f" {str(value)!r}"  # it may hold a password
                raise ConfigError(f"{name} is{shown or ' wrong'} and {error}") from None
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
