"""What Litestream calls the place that its gate leads to."""

from typing import Final

BUCKET: Final = "bucket"
PATH: Final = "replica"
"""The bucket and the path that the child is given: the gate puts the real ones in their place."""
