"""The service: it takes Pub/Sub pushes and acknowledges what is in the bucket. Start reading at `supervisor.run`."""

from typing import Final

__version__: Final = "0.1.0"
