"""Text files of data: tables (CSV, TSV) and JSON in, each error with the line of the file; CSV, JSON and Markdown out.

    for line, row in read_table(file, needed=("image", "group")):
        if not row["group"]:
            raise DataError(f"{file}, line {line}: expected a group, got nothing")

Line numbers are those an editor shows, from 1: a quoted cell of several lines counts them all, and its row has the
number of the line it begins on. Needs the standard library only.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_common.errors import DataError, check_list

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_text(file: Path) -> str:
    """Return a file's text, from UTF-8 with or without a byte-order mark; line ends stay as they are.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 text ({error.reason} at byte {error.start}): save it with the encoding UTF-8"
        ) from error


def read_bytes(file: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    r"""Yield the number and the text of each line that is not blank; lines end in \n, \r\n or \r.

    Raises:
        DataError: As `read_text`.
    """
    # not splitlines(): a cell or a caption may hold a form feed or a Unicode line separator
    for number, line in enumerate(_unix(read_text(file)).split("\n"), start=1):
        if line.strip():
            yield number, line


def read_table(
    file: Path, *, needed: Sequence[str], known: Collection[str] | None = None, delimiter: str | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    r"""Yield the line number and the cells by column of each row of a table with a header; blank lines are skipped.

    Comma-separated cells are as RFC 4180 has them: one in quotes may hold commas, line breaks and doubled quotes.
    In a tab-separated table a row is a line, and a quote is a letter, unless a pair encloses the whole cell.

    Args:
        file: In UTF-8. Spaces around the names in its header do not count.
        needed: Columns that the table must have.
        known: Columns that it may have, `needed` included; None allows any.
        delimiter: "," or "\t"; None takes "\t" if the header holds one.

    Raises:
        DataError: The file cannot be read, a column is absent, unknown or duplicate, a row has too few or too many
            cells, or a quote is never closed.
    """
    check_list(known or (), "known")
    check_list(needed, "needed")
    text = read_text(file)
    if delimiter is None:
        delimiter = "\t" if "\t" in _unix(text).lstrip("\n").partition("\n")[0] else ","
    rows = _rows_by_tab(text) if delimiter == "\t" else _rows_by_comma(text, file)
    line, header = next(rows, (1, []))
    columns = [name.strip() for name in header]
    _check_names(columns, kind="column", needed=needed, known=known, at=f"{file}, line {line}")
    if len(set(columns)) < len(columns):
        raise DataError(f"{file}, line {line}: two columns of the same name, in {','.join(columns)}: rename one")
    for line, cells in rows:
        if len(cells) != len(columns):
            if len(cells) == 1 and not cells[0].strip():
                continue  # blank, but for spaces
            more = "more" if len(cells) > len(columns) else "fewer"
            raise DataError(
                f"{file}, line {line}: expected {len(columns)} cells as in the header, got {more} ({len(cells)})"
            )
        yield line, dict(zip(columns, cells, strict=True))


def read_json(file: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        DataError: The file cannot be read, or is not JSON.
    """
    return _parse_json(read_text(file), at=str(file))


def read_json_lines(
    file: Path, *, needed: Sequence[str] = (), known: Collection[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each line of a file of JSON objects; blank lines are skipped.

    Args:
        file: In UTF-8, one object a line.
        needed: Keys that each object must have.
        known: Keys that an object may have, `needed` included; None allows any.

    Raises:
        DataError: The file cannot be read, a line is not JSON or not an object, or a key is absent or unknown.
    """
    check_list(known or (), "known")
    check_list(needed, "needed")
    for number, line in read_lines(file):
        at = f"{file}, line {number}"
        value = _parse_json(line, at=at)
        if not isinstance(value, dict):
            raise DataError(f"{at}: expected a JSON object, got {line.strip()!r:.60}")
        _check_names(value, kind="key", needed=needed, known=known, at=at)
        yield number, value


def explain_unknown(name: str, *, kind: str, known: Collection[str], wanted: Collection[str] = ()) -> str:
    """Return the part of a message that says that a name is unknown, which are known, and which was probably meant.

    Args:
        name: The unknown name.
        kind: What it names: column, key, …
        known: The names that are known.
        wanted: Those of them that are needed and absent: the likeliest to be meant.
    """
    check_list(wanted, "wanted")
    check_list(known, "known")
    near = difflib.get_close_matches(name, wanted, n=1) or difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"unknown {kind} {name!r:.60}: {meant}known are {', '.join(known)}"


def csv_text(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    r"""Return comma-separated lines, each ended by \n, which `read_table` reads back cell by cell.

    Args:
        header: Names of the columns.
        rows: Cells as text or numbers; None is an empty cell.
    """
    check_list(header, "header")
    stream = io.StringIO()
    writer = csv.writer(stream)  # ends rows in \r\n, so that it quotes a cell that holds either
    lines = []
    for row in (header, *rows):
        writer.writerow(row)
        lines.append(stream.getvalue().removesuffix("\r\n") + "\n")
        stream.seek(0)
        stream.truncate()
    return "".join(lines)


def json_lines_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return one JSON object a line, which `read_json_lines` reads back.

    Letters are written as they are, apart from the lone surrogates that stand for the bytes of a file name that is not
    UTF-8: those are escaped.
    """
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", "".join(lines))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, align: bool = False) -> str:
    r"""Return a Markdown table without a line end at its end; a | in a cell becomes \|, unless it is that already;
    a line break becomes a space.

    Args:
        header: Names of the columns.
        rows: Cells as text, as many as columns.
        align: Pad the cells, so that the columns line up as plain text too: the first to the left, others, which hold
            numbers, to the right.
    """
    check_list(header, "header")
    table = [[re.sub(r"(?<!\\)\|", r"\|", " ".join(cell.splitlines())) for cell in row] for row in (header, *rows)]
    rule = ["---"] * len(header)
    if align:
        first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
        table = [
            [cells[0].ljust(first), *(cell.rjust(width) for cell, width in zip(cells[1:], others, strict=True))]
            for cells in table
        ]
        rule = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (table[0], rule, *table[1:]))


def _rows_by_comma(text: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:  # such as a quote that is never closed
        raise DataError(f"{file}, line {line}: not comma-separated values ({error})") from error


def _rows_by_tab(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(_unix(text).split("\n"), start=1):
        if line:
            yield number, [_unquote(cell) for cell in line.split("\t")]


def _unquote(cell: str) -> str:
    return cell.strip()[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell.strip()) else cell


def _check_names(
    given: Collection[str], *, kind: str, needed: Sequence[str], known: Collection[str] | None, at: str
) -> None:
    absent = [name for name in needed if name not in given]
    if known is not None:
        for name in given:
            if name not in known:
                raise DataError(f"{at}: {explain_unknown(name, kind=kind, known=known, wanted=absent)}")
    if absent:
        got = ",".join(given) or "nothing"
        raise DataError(f"{at}: no {kind} {', '.join(absent)}; needed are {','.join(needed)}, got {got}")


def _parse_json(text: str, *, at: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{at}: not JSON ({error})") from error


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
