"""The operators' paths and header, which the service and the commands that ask it share."""

from typing import Final

ROOT: Final = "/rejections"
COUNTS: Final = "/counts"
RECEIPTS: Final = "/receipts"
OUTCOMES: Final = "/outcomes"
STATUS: Final = "/status"
STORE_HEADER: Final = "solowriter-store"
"""Of a request: the store that is meant. Of an answer: the one that is served."""
