"""Captions in tables of text: columns by header; a row that is not of its table costs that row."""

import re
from collections.abc import Iterator
from pathlib import Path

from clip_common.captions.columns import Row, find_columns, make_row
from clip_common.captions.problems import Place, ReadLog
from clip_common.captions.splits import find_file_split
from clip_common.errors import DataError
from clip_common.tables import read_bytes

DELIMITERS = "\t|,;"
"""Delimiters of a table, in the order in which they are tried on its header."""

_IMAGE = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?)"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


def parse_table(file: Path, log: ReadLog) -> Iterator[Row]:
    """Parse a table with a header, separated by commas, semicolons, tabs or pipes.

    Cells may be quoted. Where the caption is the last column it may hold the delimiter unquoted. In a .csv a quoted
    caption may go over several lines. A file without a header, but with the name of an image and a caption in its first
    line, has the columns image and caption; not if a number is between them.
    """
    text = read_lenient_text(file, log)
    if text is None:
        return
    start = re.match(r"(?:\s*\n)?", text).end()  # type: ignore[union-attr]
    first_line = text[start:].partition("\n")[0]
    place = Place(file, 1 + text.count("\n", 0, start))
    if not first_line.strip():
        log.add("file", place, "holds no captions")
        return
    if _NOT_UTF8.search(first_line):
        log.add("file", place, "not UTF-8 text: save it with the encoding UTF-8")
        return
    try:
        delimiter, header, roles = _read_header(first_line, log)
    except DataError as error:
        if not _is_data(first_line) or log.columns:
            log.add("file", place, str(error))
            return
        delimiter, header, roles = _find_delimiter(first_line), ["image", "caption"], {"image": 0, "caption": 1}
    else:
        start += len(first_line) + 1
        said = "; ".join(f"{role} from column {header[column]}" for role, column in roles.items())
        log.notes.append(f"{file}: {said}")
    split = find_file_split(file)
    splitter = _Splitter(delimiter, len(header), roles["caption"] == len(header) - 1, strict=file.suffix == ".csv")
    whole = _NOT_UTF8.search(text) is None
    for number, cells in splitter.split(text, start):
        place = Place(file, number)
        if isinstance(cells, str):
            log.add("row", place, cells)
        elif not whole and _NOT_UTF8.search("".join(cells)):
            log.add("row", place, f"not UTF-8 text, {delimiter.join(cells)!r:.80}: save it with the encoding UTF-8")
        elif len(cells) == len(header):
            row = make_row({role: cells[column] for role, column in roles.items()}, place, log, split=split)
            if row is not None:
                yield row
        else:
            wanted = f"expected {len(header)} cells ({delimiter.join(header)!r:.60})"
            log.add("row", place, f"{wanted}, got {len(cells)} in {delimiter.join(cells)!r:.80}")


def parse_token(file: Path, log: ReadLog) -> Iterator[Row]:
    """Parse the original `name.jpg#k<TAB>caption`, which has no header."""
    text = read_lenient_text(file, log)
    split = find_file_split(file)
    for number, line in enumerate((text or "").split("\n"), start=1):
        place = Place(file, number)
        key, tab, caption = line.partition("\t")
        if not line.strip():
            continue
        if _NOT_UTF8.search(line):
            log.add("row", place, f"not UTF-8 text, {line!r:.80}: save it with the encoding UTF-8")
        elif not tab:
            log.add("row", place, f"expected 'name.jpg#0<TAB>caption', got {line!r:.80}")
        else:
            row = make_row({"image": key.rpartition("#")[0] or key, "caption": caption}, place, log, split=split)
            if row is not None:
                yield row


def read_lenient_text(file: Path, log: ReadLog) -> str | None:
    r"""Return a file's text with \n for line ends, bytes that are not UTF-8 as surrogates; None if unreadable."""
    try:
        content = read_bytes(file)
    except DataError as error:
        log.add("file", Place(file), str(error).removeprefix(f"{file}: "))
        return None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        log.add("file", Place(file), "not UTF-8 text but UTF-16: save it with the encoding UTF-8")
        return None
    return content.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


def read_header(line: str) -> list[str]:
    """Return the cells of a header, separated by the delimiter that makes it one with captions, else the commonest."""
    try:
        return _read_header(line, ReadLog())[1]
    except DataError:
        return _header_cells(line, _find_delimiter(line))


def _read_header(line: str, log: ReadLog) -> tuple[str, list[str], dict[str, int]]:
    """Return the delimiter, the header, and the number of the column of each role."""
    for delimiter in sorted(DELIMITERS, key=lambda one: one != _find_delimiter(line)):
        header = _header_cells(line, delimiter)
        try:
            roles = find_columns(header, log)
        except DataError:
            continue
        return delimiter, header, {role: header.index(name) for role, name in roles.items()}
    find_columns(_header_cells(line, _find_delimiter(line)), log)
    raise AssertionError("the commonest delimiter is one of those tried")


def _header_cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip().strip('"').strip() for cell in line.split(delimiter)]


def _find_delimiter(line: str) -> str:
    return max(DELIMITERS, key=line.count)


def _is_data(line: str) -> bool:
    """Return whether a first line has the name of an image and a caption that is more than a number: no header."""
    return re.match(rf'"?[^,;|\t]*{_IMAGE}"?[,;|\t](?!\s*\d+\s*[,;|\t])', line, re.IGNORECASE) is not None


class _Splitter:
    """Splits text into rows, and rows into cells.

    Args:
        delimiter: One of `DELIMITERS`.
        width: Number of columns.
        caption_last: The last column may hold the delimiter unquoted.
        strict: A quoted cell may go over several lines, and one that is never closed is a fault; otherwise its quote is
            a letter.
    """

    def __init__(self, delimiter: str, width: int, caption_last: bool, *, strict: bool) -> None:
        self.delimiter = delimiter
        self.width = width
        self.caption_last = caption_last
        self.strict = strict
        inside = '[^"]' if strict else r'[^"\n]'
        mark = re.escape(delimiter)
        self.quoted = re.compile(rf'[ ]*"((?:{inside}|"")*)"[ ]*(?=[{mark}\n]|\Z)')
        self.quoted_last = re.compile(rf'[ ]*"((?:{inside}|"")*)"[ ]*(?=\n|\Z)')
        self.next_row = re.compile(rf'\n"?[^\n"{mark}]+{_IMAGE}"?{mark}', re.IGNORECASE)

    def split(self, text: str, start: int) -> Iterator[tuple[int, list[str] | str]]:
        """Yield the line of each row from `start` that is not blank, and its cells, or why it cannot be split."""
        number, here = text.count("\n", 0, start) + 1, start
        while here < len(text):
            end = text.find("\n", here)
            end = len(text) if end < 0 else end
            line = text[here:end]
            cells: list[str] | str
            if '"' in line:
                cells, end = self._split_quoted(text, here, end)
            else:
                cells = line.split(self.delimiter, self.width - 1 if self.caption_last else -1)
            if self.delimiter == "|" and not isinstance(cells, str):
                cells = self._mend([cell.strip() for cell in cells])
            if line and not line.isspace():
                yield number, cells
            number += 1 + text.count("\n", here, end)
            here = end + 1

    def _split_quoted(self, text: str, here: int, line_end: int) -> tuple[list[str] | str, int]:
        """Return the cells of a row that holds quotes, or what is wrong with it, and where the row ends."""
        cells: list[str] = []
        at = here
        while True:
            last = self.caption_last and len(cells) == self.width - 1
            found = (self.quoted_last if last else self.quoted).match(text, at)
            # a quote that is never closed would take in all rows up to the next quote
            if found and not ("\n" in found[0] and self.next_row.search(found[0])):
                cell, at = found[1].replace('""', '"'), found.end()
            else:
                stop = -1 if last else text.find(self.delimiter, at, line_end)
                stop = line_end if stop < 0 else stop
                cell, at = text[at:stop], stop
                if self.strict and cell.lstrip().startswith('"') and cell.count('"') % 2:
                    said = (
                        f"not comma-separated values (a quote is never closed), {text[here:line_end]!r:.80}: close it"
                    )
                    return said, line_end
            cells.append(cell)
            if at >= len(text) or text[at] == "\n":
                return cells, at
            at += 1

    def _mend(self, cells: list[str]) -> list[str]:
        """Return the cells of a row, a comment's number apart from the comment: one row of results.csv lacks a pipe."""
        number = (
            re.fullmatch(r"(\d+) +(\S.*)", cells[-1]) if self.caption_last and len(cells) == self.width - 1 else None
        )
        return [*cells[:-1], *number.groups()] if number else cells
