"""How long work says where it is, without printing: the caller brings the display (`clip_common.cli.progress`)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)`."""

Reporter = Callable[[str], AbstractContextManager[Progress | None]]
"""Opens a display: `with reporter("embedding") as progress: …`."""


def silent(description: str) -> AbstractContextManager[Progress | None]:
    """A reporter that shows nothing."""
    return nullcontext(None)
