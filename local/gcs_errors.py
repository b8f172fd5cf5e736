"""What the fake Cloud Storage refuses, in the words of the real one.

Sources: the JSON API reference page "HTTP status and error codes", the XML API reference page of the same name, and
"Request preconditions". A message is part of the imitation: Google's clients show it to their user.
"""

from __future__ import annotations

Headers = list[tuple[str, str]]


class GcsError(Exception):
    """A request that Cloud Storage answers with an error.

    Args:
        status: The HTTP status.
        reason: `error.errors[].reason` of the JSON API.
        message: What the client shows.
        code: `<Code>` of the XML API.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, reason: str, message: str, code: str = "", headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.code = code or reason[:1].upper() + reason[1:]
        self.headers = headers or []


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class SeveredError(Exception):
    """A fault rule wants this connection closed without an answer."""


def no_such_object(bucket: str, name: str) -> GcsError:
    """404 for an object (or that generation of it) that isn't there."""
    return GcsError(404, "notFound", f"No such object: {bucket}/{name}", "NoSuchKey")


def no_such_bucket() -> GcsError:
    """404 for a bucket that was never made."""
    return GcsError(404, "notFound", "The specified bucket does not exist.", "NoSuchBucket")


def no_such_upload() -> GcsError:
    """404 for a resumable session that is unknown, or ended in an error."""
    return GcsError(404, "notFound", "Upload session not found.", "NoSuchUpload")


def condition_not_met() -> GcsError:
    """412 for an `if...Match` that doesn't hold."""
    message = "At least one of the pre-conditions you specified did not hold."
    return GcsError(412, "conditionNotMet", message, "PreconditionFailed")


def not_modified() -> GcsError:
    """304 for an `if...NotMatch` that doesn't hold; it has no body."""
    return GcsError(304, "notModified", "Not Modified")


def invalid(message: str) -> GcsError:
    """400 for a request that can never succeed."""
    return GcsError(400, "invalid", message, "InvalidArgument")


def unsupported(what: str) -> GcsError:
    """501 for a part of the API that this fake leaves out, so that silence is not taken for success."""
    return GcsError(501, "notImplemented", f"the fake GCS does not do {what}", "NotImplemented")


def bad_range(size: int) -> GcsError:
    """416 for a range that starts at or behind the end of the object."""
    headers = [("content-range", f"bytes */{size}")]
    message = "The requested range cannot be satisfied."
    return GcsError(416, "requestedRangeNotSatisfiable", message, "InvalidRange", headers)


_INJECTED = {
    401: ("authError", "Invalid Credentials"),
    403: ("forbidden", "The caller does not have storage access to the object (injected by a fault rule)."),
    429: (
        "rateLimitExceeded",
        "The object exceeded the rate limit for object mutation operations (create, update, and delete). "
        "Please reduce your request rate.",
    ),
    500: ("internalError", "We encountered an internal error. Please try again."),
    503: ("backendError", "Backend Error"),
}


def injected(status: int) -> GcsError:
    """The error that a fault rule asked for."""
    reason, message = _INJECTED.get(status, ("injected", f"status {status} injected by a fault rule"))
    return GcsError(status, reason, message)
