"""Progress of long work, without printing: the caller supplies the display (`clip_common.cli.progress`)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)`."""

Reporter = Callable[[str], AbstractContextManager[Progress | None]]
"""Opens a display: `with reporter("embedding") as progress: …`."""


def silent(description: str) -> AbstractContextManager[Progress | None]:
    """Show nothing: the default reporter."""
    return nullcontext(None)
