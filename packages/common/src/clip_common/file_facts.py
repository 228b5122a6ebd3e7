"""What was found out about files, kept while they stay the same: their hashes, or whether they can be read."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clip_common.runs.files import write_text

_SETTLED_NS = 2 * 10**9
"""A file that changed less than two seconds ago may change again within one tick of its clock: it is not noted."""


class FileFacts:
    """One text for each file, or part of a file, valid while the file's size and time of change stay the same.

    Several processes may use one `file`: the last to save keeps what the others saved before. A file of facts that is
    damaged counts as empty, because every fact can be found again.

    Args:
        file: A JSON file, read now if it exists.

    Example:
        facts = FileFacts(Path("runs/cache/hashes.json"))
        digest = facts.recall(photo, lambda: sha256(photo.read_bytes()).hexdigest())
        facts.save()
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known = self._read()
        self._new: dict[str, list[object]] = {}

    def find(self, path: Path, *, part: str = "") -> str | None:
        """Return the text of a file that has not changed since; None if there is none.

        Raises:
            OSError: There is no such file.
        """
        known = self._known.get(_key(path, part))
        if known is None or known[:2] != _state(path):
            return None
        return str(known[2])

    def note(self, path: Path, text: str, *, part: str = "") -> None:
        """Remember the text of a file, unless the file has only just changed."""
        state = _state(path)
        if time.time_ns() - state[1] > _SETTLED_NS:
            self._known[_key(path, part)] = self._new[_key(path, part)] = [*state, text]

    def recall(self, path: Path, work: Callable[[], str], *, part: str = "") -> str:
        """Return the text of a file; if there is none, do the work that finds it, and note it.

        Raises:
            OSError: There is no such file, or what `work` raises.
        """
        known = self.find(path, part=part)
        if known is None:
            before = _state(path)
            known = work()
            if _state(path) == before:  # else the text may be that of the earlier content
                self.note(path, known, part=part)
        return known

    def save(self) -> None:
        """Write what is new, if anything is; a full or read-only disk costs the facts, not the work that found them."""
        if not self._new:
            return
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, json.dumps(self._read() | self._new))
        self._new = {}

    def _read(self) -> dict[str, list[object]]:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict):
            return {}
        return {key: fact for key, fact in content.items() if isinstance(fact, list) and len(fact) == 3}


def _key(path: Path, part: str) -> str:
    return str(path.absolute()) + (f"|{part}" if part else "")


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
