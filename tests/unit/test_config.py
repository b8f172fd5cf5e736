"""Settings: each variable is read, and each rule refuses by name, by what it was and by what it must be."""

import contextlib
import posixpath
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from worker import config
from worker.config import Settings, limits
from worker.errors import ConfigError

URL = "gs://acme-users/prod"

READ: dict[str, tuple[str, str, object]] = {
    "REPLICA_URL": ("gs://a-b.c/d/e", "replica_url", "gs://a-b.c/d/e"),
    "DATABASE_URL": ("postgresql://worker@db.example/users", "database_url", "postgresql://worker@db.example/users"),
    "DATABASE_PASSWORD_FILE": ("/run/secrets/db", "database_password_file", "/run/secrets/db"),
    "ERASED_URL": ("gs://acme-users/erased", "erased_url", "gs://acme-users/erased"),
    "DATABASE_PATH": ("data/u.db", "database_path", Path("data/u.db")),
    "EVENTS": ("acme.events,worker.events.users", "events", "acme.events,worker.events.users"),
    "UNKNOWN_FIELDS": ("reject", "unknown_fields", "reject"),
    "HOST": ("::1", "host", "::1"),
    "PORT": ("0", "port", 0),
    "K_REVISION": ("users-00042", "revision", "users-00042"),
    "K_SERVICE": ("users", "service", "users"),
    "LOG_LEVEL": ("debug", "log_level", "debug"),
    "ACK_DEADLINE_SECONDS": ("600", "ack_deadline_seconds", 600.0),
    "QUEUE_MAX_MESSAGES": ("1", "queue_max_messages", 1),
    "QUEUE_MAX_BYTES": ("20000000", "queue_max_bytes", 20_000_000),
    "PUSH_UNWRAPPED": ("true", "push_unwrapped", True),
    "PUSH_AUDIENCE": ("https://users.example", "push_audience", "https://users.example"),
    "PUSH_SERVICE_ACCOUNT": ("push@acme.example", "push_service_account", "push@acme.example"),
    "TOKENS_VERIFIED_BY": ("platform", "tokens_verified_by", "platform"),
    "OPERATORS": ("ann@acme.example", "operators", "ann@acme.example"),
    "OIDC_CERTS_URL": ("http://127.0.0.1:1/certs", "oidc_certs_url", "http://127.0.0.1:1/certs"),
    "RESTORE_TIMEOUT_SECONDS": ("90.5", "restore_timeout_seconds", 90.5),
    "LEASE_TTL_SECONDS": ("30", "lease_ttl_seconds", 30.0),
    "TENURE_MIN_SECONDS": ("0", "tenure_min_seconds", 0.0),
    "UPLOAD_SPACING_SECONDS": ("0.25", "upload_spacing_seconds", 0.25),
    "RETENTION_DAYS": ("0.5", "retention_days", 0.5),
    "REJECTION_DAYS": ("31", "rejection_days", 31.0),
    "CHECKPOINT_HOURS": ("6", "checkpoint_hours", 6.0),
    "DELIVERY": ("pull", "delivery", "pull"),
    "SUBSCRIPTION": ("users-worker", "subscription", "users-worker"),
    "GOOGLE_CLOUD_PROJECT": ("acme", "project", "acme"),
    "LITESTREAM_BIN": ("other", "litestream_bin", "other"),
    "LITESTREAM_CONFIG": ("other.yml", "litestream_config", Path("other.yml")),
    "LITESTREAM_METRICS_ADDRESS": ("127.0.0.1:1", "litestream_metrics_address", "127.0.0.1:1"),
}

_TOKENS = {"PUSH_AUDIENCE": "https://users.example", "PUSH_SERVICE_ACCOUNT": "push@acme.example"}
COMPANIONS = dict.fromkeys(("PUSH_AUDIENCE", "PUSH_SERVICE_ACCOUNT", "TOKENS_VERIFIED_BY", "OPERATORS"), _TOKENS)
_QUEUE = {"SUBSCRIPTION": "users-worker", "GOOGLE_CLOUD_PROJECT": "acme"}
COMPANIONS |= dict.fromkeys(("CHECKPOINT_HOURS", "DELIVERY"), _QUEUE)
_POSTGRESQL = {"REPLICA_URL": "", "DATABASE_URL": READ["DATABASE_URL"][0]}
COMPANIONS |= dict.fromkeys(("DATABASE_URL", "DATABASE_PASSWORD_FILE", "ERASED_URL"), _POSTGRESQL)
"""Settings that load only together with others."""

WRONG: list[tuple[str, str, str]] = [
    ("PORT", "http", "a whole number"),
    ("PORT", "80.5", "a whole number"),
    ("PORT", "-1", "between 0 and 65535"),
    ("PORT", "65536", "between 0 and 65535"),
    ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
    ("ACK_DEADLINE_SECONDS", "soon", "a number"),
    ("ACK_DEADLINE_SECONDS", "9", "between 10 and 600"),
    ("ACK_DEADLINE_SECONDS", "601", "between 10 and 600"),
    ("ACK_DEADLINE_SECONDS", "nan", "between 10 and 600"),
    ("QUEUE_MAX_MESSAGES", "0", "at least 1"),
    ("QUEUE_MAX_BYTES", "13999999", "at least 1.4e+07"),
    ("RESTORE_TIMEOUT_SECONDS", "0.5", "at least 1"),
    ("RESTORE_TIMEOUT_SECONDS", "nan", "at least 1"),
    ("RESTORE_TIMEOUT_SECONDS", "inf", "a finite number"),
    ("UNKNOWN_FIELDS", "ignore", "one of count, reject"),
    ("TOKENS_VERIFIED_BY", "google", "one of here, platform"),
    ("LEASE_TTL_SECONDS", "3", "at least 3.1"),
    ("LEASE_TTL_SECONDS", "inf", "a finite number"),
    ("TENURE_MIN_SECONDS", "-1", "at least 0"),
    ("TENURE_MIN_SECONDS", "inf", "a finite number"),
    ("UPLOAD_SPACING_SECONDS", "5.1", "between 0 and 5"),
    ("RETENTION_DAYS", "-1", "at least 0"),
    ("REJECTION_DAYS", "30", "at least 31"),
    ("PUSH_UNWRAPPED", "yes", "one of true, false"),
]


def load(**variables: str) -> Settings:
    """The settings of a good environment with these variables changed."""
    return config.load({"REPLICA_URL": URL, **variables})


def test_the_defaults_load() -> None:
    """REPLICA_URL alone is enough, and the defaults nest."""
    settings = load()
    assert (settings.port, settings.bucket, settings.prefix) == (8080, "acme-users", "prod")


@pytest.mark.parametrize("name", READ)
def test_a_setting_is_read_from_its_variable(name: str) -> None:
    """Each variable reaches its field, in the field's type."""
    text, field, value = READ[name]
    found = getattr(load(**{**COMPANIONS.get(name, {}), name: text}), field)
    assert found == value
    assert type(found) is type(value)


def test_every_setting_is_covered_above() -> None:
    """A new setting comes with its line in this file, and each has a variable and a sentence of its own."""
    described = config.described()
    assert {name for name, _, _ in described} == set(READ)
    assert [READ[name][1] for name, _, _ in described] == [field.name for field in fields(Settings)]
    assert all(about for _, _, about in described)


@pytest.mark.parametrize("name", READ)
def test_an_empty_variable_is_an_unset_one(name: str) -> None:
    """Deployment tools write NAME= for what is not given."""
    if name == "REPLICA_URL":
        with pytest.raises(ConfigError, match="REPLICA_URL is not set"):
            load(REPLICA_URL="")
    else:
        assert load(**{name: ""}) == load()


@pytest.mark.parametrize(("name", "text", "wanted"), WRONG)
def test_a_wrong_value_is_refused_by_name(name: str, text: str, wanted: str) -> None:
    """The error says which variable, what it was, and what it must be."""
    with pytest.raises(ConfigError) as refused:
        load(**{name: text})
    assert re.fullmatch(
        rf"{name} is '-?{re.escape(text.lstrip('-'))}(\.0)?' and must be {re.escape(wanted)}", str(refused.value)
    )


def test_a_missing_replica_url_is_refused() -> None:
    """There is no default for where the data lives."""
    with pytest.raises(ConfigError, match=r"REPLICA_URL is not set; it must say where the data lives: gs://BUCKET/PREFIX"):
        config.load({})


@pytest.mark.parametrize(
    "url",
    [
        "acme-users/prod",
        "s3://acme-users/prod",
        "gs://acme-users",
        "gs://acme-users/",
        "gs:///prod",
        "gs://Acme/prod",
        "gs://acme-users//prod",
        "gs://acme-users/prod//x",
        "gs://acme-users/a b",
        "gs://acme-users/a#b",
        "gs://acme-users/a*",
        "gs://acme-users/./X",
        "gs://acme-users/a/../b",
        "gs://acme-users/prod/.",
        "gs://acme-users/..",
        "gs://acme-users/!prod",
        "gs://acme-users/x%20y",
        "gs://acme-users/x%",
        "gs://acme-users/@x",
        "gs://acme-users/{x}",
        "gs://acme-users/&x",
        "gs://acme-users/'x'",
        "gs://acme-users/~x",
        "gs://acme-users/$HOME",
        "gs://acme-users/a\\b",
        "gs://acme-users/a:b",
        "gs://acme-users/zoë",
        "gs://acme-users/a\tb",
        "gs://acme-users/" + "x" * 513,
    ],
)
def test_a_replica_url_must_name_a_bucket_and_a_prefix(url: str) -> None:
    """Without a prefix two stores would share a bucket's root; wildcards and spaces are typing errors."""
    with pytest.raises(ConfigError, match=r"REPLICA_URL is .* and must be gs://BUCKET/PREFIX, for example "):
        load(REPLICA_URL=url)


@given(st.from_regex(r"\A[A-Za-z0-9._-]{1,9}(/[A-Za-z0-9._-]{1,9}){0,3}\Z") | st.text(min_size=1, max_size=20))
def test_a_prefix_names_one_place_or_is_refused(prefix: str) -> None:
    """F2: what loads is the same as a path, as a URL and in YAML, so that Litestream and the worker mean one place."""
    try:
        found = load(REPLICA_URL=f"gs://acme-users/{prefix}").prefix
    except ConfigError:
        return
    assert found == posixpath.normpath(found)
    assert found == unquote(quote(found)) == quote(found)
    assert yaml.safe_load(f"path: gs://acme-users/{found}/x") == {"path": f"gs://acme-users/{found}/x"}
    assert found == prefix.strip().removesuffix("/")


@pytest.mark.parametrize("around", [("", "\n"), (" ", "  "), ("", "\r\n"), ("\t", "")])
@pytest.mark.parametrize("name", ["PUSH_AUDIENCE", "PUSH_SERVICE_ACCOUNT", "OPERATORS", "REPLICA_URL", "PORT", "HOST"])
def test_blanks_around_a_value_are_none_of_it(name: str, around: tuple[str, str]) -> None:
    """F10: a secret's file ends in a line end; a token's audience does not."""
    given = {**COMPANIONS.get(name, {}), name: f"{around[0]}{READ[name][0]}{around[1]}"}
    assert getattr(load(**given), READ[name][1]) == READ[name][2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PUSH_AUDIENCE", '"https://users.example"'),
        ("PUSH_AUDIENCE", "https://users.example x"),
        ("PUSH_AUDIENCE", "\N{LEFT DOUBLE QUOTATION MARK}https://users.example\N{RIGHT DOUBLE QUOTATION MARK}"),
        ("PUSH_AUDIENCE", "https://users.example\N{ZERO WIDTH SPACE}"),
        ("PUSH_SERVICE_ACCOUNT", "serviceAccount:a@b"),
        ("PUSH_SERVICE_ACCOUNT", "push"),
        ("PUSH_SERVICE_ACCOUNT", "a@b,c@d"),
        ("PUSH_SERVICE_ACCOUNT", "<a@b>"),
        ("OPERATORS", "a@b;c@d"),
        ("OPERATORS", "a@b c@d"),
        ("OPERATORS", "user:a@b"),
        ("OPERATORS", "'a@b'"),
        ("OIDC_CERTS_URL", "www.googleapis.com/oauth2"),
        ("OIDC_CERTS_URL", "https://[::1"),
        ("HOST", "0.0.0.0 127.0.0.1"),
        ("SUBSCRIPTION", "users worker"),
        ("DATABASE_PATH", "/data/users.db\n"),
        ("DATABASE_PATH", "/data/" + "x" * 201),
        ("DATABASE_PATH", "/data/\udcff\ud800"),
        ("DATABASE_PATH", "/data/u#1.db"),
        ("DATABASE_PATH", "/data/a%20b.db"),
        ("DATABASE_PATH", "/data/what?.db"),
        ("DATABASE_PATH", "/tmp"),
        ("DATABASE_PATH", "."),
        ("PORT", "8_080"),
        ("PORT", "\N{ARABIC-INDIC DIGIT EIGHT}0"),
        ("RETENTION_DAYS", "1_0"),
        ("QUEUE_MAX_MESSAGES", "9" * 5000),
    ],
)
def test_a_value_that_can_never_be_meant_is_refused_at_start(name: str, text: str) -> None:
    """F10: otherwise the service starts, and every push is 401, or every number another one."""
    with pytest.raises(ConfigError, match=rf"^{name} is "):
        load(**{**COMPANIONS.get(name, {}), name: text})


@given(
    st.sampled_from(sorted(READ)),
    st.text(max_size=30) | st.sampled_from(["\udcff", "1e999", "-", "0x10", "\u0661", "a" * 9000]),
)
def test_no_value_of_a_setting_is_a_traceback(name: str, text: str) -> None:
    """F11: it loads, or is refused by its name."""
    with contextlib.suppress(ConfigError):
        load(**{**COMPANIONS.get(name, {}), name: text})


@pytest.mark.parametrize("path", ["/tmp/my data/users.db", '/tmp/zo\xeb #?%20/u 1: "x" & <y>.db', "/tmp/ends in a blank "])
def test_a_path_is_taken_as_it_is(path: str) -> None:
    """Its blanks and signs may be meant."""
    assert load(DATABASE_PATH=path).database_path == Path(path)


def test_a_slash_at_the_end_of_the_url_is_ignored() -> None:
    """`gs://b/p/` and `gs://b/p` are the same store."""
    assert load(REPLICA_URL=URL + "/").prefix == "prod"


@pytest.mark.parametrize("name", ["WORKERS", "WEB_CONCURRENCY"])
@pytest.mark.parametrize("count", ["2", "0", "many"])
def test_more_than_one_process_is_refused(name: str, count: str) -> None:
    """INV-2: two worker processes would be two writers, so the usual variables for that are refused."""
    with pytest.raises(ConfigError, match=rf"{name}={count}: this service is one writer in one process; unset {name}"):
        load(**{name: count})


@pytest.mark.parametrize("count", ["1", " 1 ", ""])
def test_one_process_may_be_asked_for(count: str) -> None:
    """WORKERS=1 is what there is anyway."""
    load(WORKERS=count, WEB_CONCURRENCY=count)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"ACK_DEADLINE_SECONDS": "10", "UPLOAD_SPACING_SECONDS": "3"},
            "ACK_DEADLINE_SECONDS is 10 and must be more than 11.25 with UPLOAD_SPACING_SECONDS 3: ",
        ),
        (
            {**_TOKENS, "ACK_DEADLINE_SECONDS": "25"},
            "ACK_DEADLINE_SECONDS is 25 and must be more than 25 with PUSH_AUDIENCE: ",
        ),
        ({"PUSH_AUDIENCE": "https://users.example"}, "PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT belong together: "),
        ({"PUSH_SERVICE_ACCOUNT": "push@acme.example"}, "PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT belong together: "),
        ({"CHECKPOINT_HOURS": "6"}, "CHECKPOINT_HOURS is 6: it must be 0, or at least 1 with SUBSCRIPTION set "),
        ({"CHECKPOINT_HOURS": "0.5", "SUBSCRIPTION": "s"}, "CHECKPOINT_HOURS is 0.5: it must be 0, or at least 1 "),
        ({"CHECKPOINT_HOURS": "6", "SUBSCRIPTION": "users"}, "SUBSCRIPTION is 'users' and must be projects/PROJECT/"),
        ({"CHECKPOINT_HOURS": "6", "SUBSCRIPTION": "p/users"}, "SUBSCRIPTION is 'p/users' and must be projects/PROJECT/"),
        ({"OPERATORS": "ann@acme.example"}, "OPERATORS is set and PUSH_AUDIENCE is not: "),
    ],
)
def test_limits_that_do_not_nest_are_refused(variables: dict[str, str], sentence: str) -> None:
    """INV-8: a limit at or over the one around it is refused, with both and their values named."""
    with pytest.raises(ConfigError, match="^" + re.escape(sentence)):
        load(**variables)


@pytest.mark.parametrize(
    "variables",
    [
        {"ACK_DEADLINE_SECONDS": "11.26", "UPLOAD_SPACING_SECONDS": "3"},
        {"ACK_DEADLINE_SECONDS": "25.1", **_TOKENS},
        {"QUEUE_MAX_BYTES": "14000000"},
        {"ACK_DEADLINE_SECONDS": "10"},
        {"LEASE_TTL_SECONDS": "3.1"},
    ],
)
def test_limits_just_inside_each_other_load(variables: dict[str, str]) -> None:
    """INV-8: the other side of each rule, one step away."""
    load(**variables)


@given(st.floats(3.1, 1e6), st.floats(10, 600), st.floats(0, 1e4), st.floats(1, 1e5))
def test_what_follows_from_a_setting_nests_whatever_it_is(ttl: float, deadline: float, kept: float, restore: float) -> None:
    """INV-8: one lost renewal is no death; the answer is in time; receipts outlive generations; the end fits into 10 s."""
    settings = Settings(
        replica_url=URL,
        lease_ttl_seconds=ttl,
        ack_deadline_seconds=deadline,
        retention_days=kept,
        restore_timeout_seconds=restore,
    )
    renewal = settings.lease_renew_seconds
    assert 1 <= renewal < ttl / 3
    assert renewal + settings.lease_read_timeout_seconds < ttl
    assert settings.lease_poll_seconds < ttl
    assert settings.successor_poll_seconds < settings.successor_fresh_seconds
    assert settings.sync_timeout_seconds >= 1
    assert limits.BUSY_TIMEOUT_SECONDS + settings.sync_timeout_seconds < settings.hold_limit_seconds < deadline
    assert max(31, kept) < settings.receipt_days
    assert settings.fetch_timeout_seconds < restore
    goodbye = limits.DRAIN_SECONDS + limits.ACKNOWLEDGE_SECONDS + limits.RELEASE_SECONDS + limits.TRACE_FLUSH_SECONDS
    assert goodbye + 1 < limits.PLATFORM_GRACE_SECONDS


def test_settings_cannot_be_changed() -> None:
    """They are read once; nothing later can differ from what was checked."""
    settings = load()
    with pytest.raises(FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]
