"""Every check of `worker doctor`, in order: for the command, and for the console."""

import asyncio
from collections.abc import Mapping
from typing import Final

from worker import config
from worker.config import Settings
from worker.errors import ConfigError, QueueMissing
from worker.operations.doctor import litestream
from worker.operations.doctor import queue as doctor_queue
from worker.operations.doctor import quick as doctor_quick
from worker.operations.doctor import store as doctor_store
from worker.operations.doctor.findings import Finding, note, ok, refused, warning
from worker.operations.pubsub import Queue, subscription_name
from worker.replica.bucket import Bucket
from worker.replica.litestream import find_binary

_WRITE_SPACING_SECONDS: Final = 1.0
"""Cloud Storage takes one write a second for each object name."""
_LIST_SECONDS: Final = 60.0
"""Longest a listing of a generation may take."""


async def examine(environ: Mapping[str, str], *, quick: bool = False) -> list[Finding]:
    """Check the environment that this process runs in.

    Args:
        environ: The variables: wrong settings are a finding, not the end.
        quick: Only what needs no request and no child process.
    """
    workers = _workers(environ)
    try:
        settings = config.load({name: value for name, value in environ.items() if name not in config.WORKER_COUNTS})
    except ConfigError as error:
        step = "correct it: docs/configuration.md has each setting and how the limits nest; the other checks need them"
        return [refused("settings", str(error), step), workers, doctor_quick.sqlite()]
    findings = [*doctor_quick.limits(settings), workers]
    if settings.many_writers:
        from worker.operations.doctor import postgresql  # a driver that a bucket is without

        server = [] if quick else await asyncio.to_thread(postgresql.examine, settings)
        return [*findings, *server, senders(settings, environ), *await _subscription(settings, environ)]
    if quick:
        return [*findings, *await doctor_quick.software(settings), *doctor_quick.machine(settings)]
    store = Bucket(settings.bucket, settings.prefix)
    try:
        request = settings.lease_read_timeout_seconds
        size = await doctor_store.database_bytes(store, timeout=request, list_timeout=_LIST_SECONDS)
        findings += [
            doctor_quick.sqlite(),
            *await _litestream(settings, store),
            *doctor_quick.machine(settings, size),
            *await doctor_store.examine(store, timeout=request, spacing=_WRITE_SPACING_SECONDS),
            *await doctor_store.generation(store, timeout=settings.fetch_timeout_seconds),
        ]
    finally:
        store.close()
    return [*findings, senders(settings, environ), *await _subscription(settings, environ)]


def _workers(environ: Mapping[str, str]) -> Finding:
    try:
        config.refuse_workers(environ)
    except ConfigError as error:
        found, _, step = str(error).partition("; ")
        return refused("one process", found, step)
    return ok("one process", "neither WORKERS nor WEB_CONCURRENCY asks for more")


async def _litestream(settings: Settings, store: Bucket) -> list[Finding]:
    try:
        binary = find_binary(settings.litestream_bin)
    except ConfigError as error:
        found, _, step = str(error).partition("; ")
        return [refused("litestream version", found, step)]
    return [await litestream.running_version(binary), *await litestream.trial(settings, store)]


def senders(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """Whether it is known who may post."""
    if settings.push_audience:
        return _tokens(settings, environ)
    if environ.get("STORAGE_EMULATOR_HOST"):
        return note("senders", "not verified: fine on one machine with a fake store")
    step = "set PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT, or see to it that the platform lets only the subscription in"
    return warning("senders", "PUSH_AUDIENCE is not set: every sender that reaches the service may post", step)


def _tokens(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """Whether signatures of tokens are verified where they can be.

    A job has no K_REVISION, but a variable of its own. Nothing stands before a worker pool that could check tokens.
    """
    named = settings.revision != "local" and "CLOUD_RUN_WORKER_POOL" not in environ
    on_cloud_run = named or "CLOUD_RUN_JOB" in environ
    let_in = f"only tokens of {settings.push_service_account} for {settings.push_audience} are let in"
    if settings.tokens_verified_by == "here":
        if not on_cloud_run:
            return ok("senders", f"{let_in}; their signatures are verified here")
        step = "set TOKENS_VERIFIED_BY=platform, or turn Cloud Run's check of IAM off"
        return warning(
            "senders",
            f"{let_in}, and signatures are verified here: Cloud Run's check of IAM takes them off, so that each push is "
            "answered 401",
            step,
        )
    if not on_cloud_run:
        step = "set TOKENS_VERIFIED_BY=here: it holds only on Cloud Run with its check of IAM on"
        return refused(
            "senders", "TOKENS_VERIFIED_BY is platform, and this is not Cloud Run: any sender can forge a token", step
        )
    return ok(
        "senders",
        f"{let_in}; their signatures are verified by Cloud Run: this holds while its check of IAM is on and "
        "roles/run.invoker is granted to neither allUsers nor allAuthenticatedUsers",
    )


async def _subscription(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    if not settings.subscription:
        return [note("subscription", "not looked at: SUBSCRIPTION is not set", "set it to have the subscription checked")]
    try:
        queue = Queue(subscription_name(settings.subscription, settings.project))
    except QueueMissing as error:
        return [refused("subscription", str(error), "set GOOGLE_CLOUD_PROJECT, or SUBSCRIPTION to its full name")]
    expected = doctor_queue.Expected(
        ack_deadline_seconds=settings.ack_deadline_seconds,
        push_audience=settings.push_audience,
        push_service_account=settings.push_service_account,
        push_unwrapped=settings.push_unwrapped,
        delivery=settings.delivery,
    )
    return await doctor_queue.look(queue, expected, emulator=bool(environ.get("PUBSUB_EMULATOR_HOST")))
