"""Who may do what: pushes are for the subscription's service account, rejections for the operators.

Without PUSH_AUDIENCE nothing is checked here, and the platform's own check is the only one.

A sender says who it is in `Authorization`. If a request carries `X-Serverless-Authorization`, Cloud Run has checked that
header alone (Cloud Run documentation, "Authenticate service to service"), and `Authorization` may hold anything: then only
the former counts.
"""

import logging
from collections.abc import Collection
from typing import Final

from worker.errors import Forbidden, Unauthenticated
from worker.ingest.http.tokens import TokenVerifier

UNVERIFIED: Final = "a caller that the platform let in"

Headers = Collection[tuple[bytes, bytes]]
"""The headers of a request, their names in lower case."""

_BY_PRECEDENCE: Final = (b"x-serverless-authorization", b"authorization")

log = logging.getLogger(__name__)


class Access:
    """The rights of each sender.

    Args:
        verifier: None when tokens are not checked.
        pusher: The e-mail address of the service account that the push subscription uses.
        operators: The e-mail addresses that may read and resolve rejections.
    """

    def __init__(self, verifier: TokenVerifier | None = None, *, pusher: str = "", operators: Collection[str] = ()) -> None:
        self._verifier, self._pusher, self._operators = verifier, pusher, frozenset(operators)
        if verifier is None:
            log.warning(
                "PUSH_AUDIENCE is not set: senders are not verified here, only by the platform",
                extra={"action": "access.unverified"},
            )

    async def push(self, headers: Headers) -> None:
        """Let a push in.

        Raises:
            Unauthenticated: There is no token, or it is not a valid one for this service.
            Forbidden: It belongs to another account than PUSH_SERVICE_ACCOUNT.
            Refused: It cannot be verified now.
        """
        if self._verifier is None:
            return
        if await self._verifier.email(authorization(headers)) != self._pusher:
            raise Forbidden("the token's e-mail address is not PUSH_SERVICE_ACCOUNT; pushes are for the subscription alone")

    async def operator(self, headers: Headers) -> str:
        """Let an operator in; who it is.

        Raises:
            Unauthenticated: There is no token, or it is not a valid one for this service.
            Forbidden: Its e-mail address is not one of OPERATORS.
            Refused: It cannot be verified now.
        """
        if self._verifier is None:
            return UNVERIFIED
        email = await self._verifier.email(authorization(headers))
        if email not in self._operators:
            raise Forbidden("the token's e-mail address is not one of OPERATORS; add it there and deploy")
        return email


def authorization(headers: Headers) -> str | None:
    """The header that says who sends this request.

    Raises:
        Unauthenticated: It is there more than once: which of them the platform has checked cannot be known.
    """
    for name in _BY_PRECEDENCE:
        values = [value for each, value in headers if each == name]
        if len(values) > 1:
            raise Unauthenticated(f"the header {name.decode()} is there more than once; send it once")
        if values:
            return values[0].decode("latin-1")
    return None
