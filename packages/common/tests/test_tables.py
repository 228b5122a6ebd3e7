"""Tables and JSON lines: what is written is read back, and each mistake is one line with the line of the file."""

import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_common.errors import DataError
from clip_common.tables import (
    csv_text,
    explain_unknown,
    json_lines_text,
    markdown_table,
    read_json,
    read_json_lines,
    read_lines,
    read_table,
    read_text,
)

CELL = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NAME = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff"), max_size=6).map(str.strip)


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "größe 大 [1]"
    folder.mkdir()
    return folder / "t.csv"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def put(file: Path, text: str | bytes) -> Path:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refused(read, file: Path, message: str, **options) -> None:
    with pytest.raises(DataError) as caught:
        list(read(file, **options))
    assert str(caught.value).startswith(f"{file}{message}"), caught.value
    assert "\n" not in str(caught.value)


# text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends(file, mark, end):
    put(file, mark + end.join(["ä,b", "1,2", "", "  ", "3,4"]).encode())
    assert read_text(file) == end.join(["ä,b", "1,2", "", "  ", "3,4"])
    assert list(read_lines(file)) == [(1, "ä,b"), (2, "1,2"), (5, "3,4")]
    assert list(read_table(file, needed=("ä", "b"))) == [(2, {"ä": "1", "b": "2"}), (5, {"ä": "3", "b": "4"})]


def test_a_form_feed_and_a_unicode_line_separator_end_no_line(file):
    put(file, "a\tb\nx\x0c\u2028y\tz\n")
    assert list(read_lines(file))[1:] == [(2, "x\x0c\u2028y\tz")]
    assert list(read_table(file, needed=())) == [(2, {"a": "x\x0c\u2028y", "b": "z"})]


@pytest.mark.parametrize("read", [read_text, read_lines, read_table, read_json, read_json_lines])
def test_what_is_no_text_is_one_line(file, read):
    options = {"needed": ()} if read is read_table else {}
    refused(read, file, ": cannot be read (No such file or directory)", **options)
    refused(read, file.parent, ": cannot be read (Is a directory)", **options)
    refused(read, put(file, "a,b\n".encode("utf-16")), ": not UTF-8 text (invalid start byte at byte 0)", **options)
    refused(read, put(file, b"name,v\ncaf\xe9,1\n"), ": not UTF-8 text (", **options)


# tables


@given(st.lists(NAME, min_size=1, max_size=4, unique=True), st.data())
def test_csv_that_is_written_is_read_back(scratch, header, data):
    rows = data.draw(st.lists(st.lists(CELL, min_size=len(header), max_size=len(header)), max_size=4))
    if len(header) == 1:
        header = ["n" + header[0]]  # a lone empty or blank name is a blank line
    else:
        rows = [row for row in rows if any(cell.strip() for cell in row)]
    put(scratch / "t.csv", csv_text(header, rows))
    found = list(read_table(scratch / "t.csv", needed=header, known=header, delimiter=","))
    assert [list(row.values()) for _, row in found] == rows
    assert all(list(row) == header for _, row in found)


@given(st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=6))
def test_line_numbers_are_those_of_the_file(scratch, cells):
    """Each row's number is that of the line on which it begins, however many lines the cells before it take."""
    rows = [[f"r{place}", *row] for place, row in enumerate(cells)]
    text = csv_text(["id", "a", "b"], rows)
    put(scratch / "t.csv", text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line, row in read_table(scratch / "t.csv", needed=("id",), delimiter=","):
        assert lines[line - 1].startswith(f"{row['id']},")


@given(st.lists(st.lists(st.floats() | st.integers() | st.none(), min_size=2, max_size=2), max_size=4))
def test_numbers_are_read_back_bit_for_bit(scratch, rows):
    put(scratch / "t.csv", csv_text(["x", "y"], rows))
    found = [list(row.values()) for _, row in read_table(scratch / "t.csv", needed=("x", "y"))]
    assert found == [["" if value is None else str(value) for value in row] for row in rows]
    assert all(
        float(cell) == value or math.isnan(value)
        for cells, row in zip(found, rows, strict=True)
        for cell, value in zip(cells, row, strict=True)
        if isinstance(value, float)
    )


def test_csv_is_as_the_standard_library_writes_it():
    rows = [["a, b", 'say "no"', 3], ["é", None, 0.1], ["two\nlines", "", -1]]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([["x", "y", "z"], *rows])
    assert csv_text(["x", "y", "z"], rows) == stream.getvalue()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_tables_of_other_writers(file, quoting, delimiter):
    rows = [("path", "title"), ("ä 1.jpg", 'a "dog", black'), ("b.jpg", ""), ("c.jpg", '"')]
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=delimiter, quoting=quoting).writerows(rows)
    assert [tuple(row.values()) for _, row in read_table(file, needed=("path",))] == rows[1:]


def test_a_quote_in_a_tab_separated_table_is_a_letter_unless_a_pair_encloses_the_cell(file):
    put(file, 'a\tb\n"no" entry\t5" wide\n"whole, ""so"""\t"\n\tlast\n')
    found = [tuple(row.values()) for _, row in read_table(file, needed=("a", "b"))]
    assert found == [('"no" entry', '5" wide'), ('whole, "so"', '"'), ("", "last")]


def test_spaces_around_names_and_columns_besides_the_needed(file):
    put(file, " a , b,c\n1,2,3\n")
    assert list(read_table(file, needed=("b",))) == [(2, {"a": "1", "b": "2", "c": "3"})]


def test_a_table_without_rows_is_empty(file):
    assert list(read_table(put(file, "a,b\n\n"), needed=("a",))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ", line 1: no column name, path; needed are name,path, got nothing"),
        ("\n\nname\n", ", line 3: no column path; needed are name,path, got name"),
        ("name,path,lable\n", ", line 1: unknown column 'lable': did you mean label? known are name, path, label"),
        ("nome,label\n", ", line 1: unknown column 'nome': did you mean name? known are name, path, label"),
        ("name,path,xyz\n", ", line 1: unknown column 'xyz': known are name, path, label"),
        ("name,path,name\n", ", line 1: two columns of the same name, in name,path,name: rename one"),
        ("name,path\na\n", ", line 2: expected 2 cells as in the header, got fewer (1)"),
        ("name,path\na,b,\n", ", line 2: expected 2 cells as in the header, got more (3)"),
        ('name,path\n"a\n\nb",c\nd\n', ", line 5: expected 2 cells as in the header, got fewer (1)"),
        ('name,path\na,b\n"c,d\ne,f\n', ", line 3: not comma-separated values (unexpected end of data)"),
        ('name,path\n"a"b,c\n', ", line 2: not comma-separated values ("),
        ('name,path\n"' + "a," * 70_000, ", line 2: not comma-separated values ("),
        ("name\tpath\na\n", ", line 2: expected 2 cells as in the header, got fewer (1)"),
        ("name\tpath\n\na\tb\tc\n", ", line 3: expected 2 cells as in the header, got more (3)"),
    ],
)
def test_each_mistake_in_a_table_is_one_line(file, text, message):
    refused(read_table, put(file, text), message, needed=("name", "path"), known=("name", "path", "label"))


@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_one_line(scratch, content):
    put(scratch / "t.csv", b"a,b\n" + content)
    messages = []
    for read, options in ((read_table, {"needed": ("a",)}), (read_json_lines, {}), (read_json, {})):
        try:
            list(read(scratch / "t.csv", **options))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) >= 2  # it is no JSON
    assert all(message.startswith(str(scratch / "t.csv")) and "\n" not in message for message in messages)


# JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | CELL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELL, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(CELL, JSON, max_size=3), max_size=4))
def test_json_lines_that_are_written_are_read_back(scratch, rows):
    put(scratch / "t.jsonl", json_lines_text(rows))
    assert list(read_json_lines(scratch / "t.jsonl")) == list(enumerate(rows, start=1))


def test_names_that_are_no_utf8_are_read_back_and_letters_stay_letters(file):
    rows = [{"ä": os.fsdecode(b"latin \xe9.jpg"), "b": "Zoë 😀"}]
    assert "Zoë 😀" in json_lines_text(rows)
    assert list(read_json_lines(put(file, json_lines_text(rows)))) == [(1, rows[0])]


def test_blank_lines_count(file):
    put(file, '\n{"a": 1}\r\n \t\n{"a": 2}')
    assert list(read_json_lines(file, needed=("a",), known=("a",))) == [(2, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ", line 2: not JSON ("),
        ("[1]", ", line 2: expected a JSON object, got '[1]'"),
        ("3", ", line 2: expected a JSON object, got '3'"),
        ('{"a": 1' + "0" * 5000 + "}", ", line 2: not JSON (Exceeds the limit"),
        ('{"a": ' + "[" * 100_000, ", line 2: not JSON ("),
        ('{"b": 1}', ", line 2: no key a; needed are a, got b"),
        ('{"aa": 1}', ", line 2: unknown key 'aa': did you mean a? known are a, b"),
    ],
)
def test_each_mistake_in_json_lines_is_one_line(file, line, message):
    refused(read_json_lines, put(file, f'{{"a": 1}}\n{line}\n'), message, needed=("a",), known=("a", "b"))


def test_a_json_file_is_read_or_one_line(file):
    assert read_json(put(file, '\ufeff{"ä": [1, null]}')) == {"ä": [1, None]}
    refused(read_json, put(file, '{"a": \n'), ": not JSON (")
    refused(read_json, put(file, ""), ": not JSON (")


def test_a_needed_name_that_is_absent_is_the_likeliest_meant():
    known = ("start_s", "start")
    assert explain_unknown("star", kind="key", known=known) == "unknown key 'star': did you mean start? known are " + (
        "start_s, start"
    )
    assert "did you mean start_s?" in explain_unknown("star", kind="key", known=known, wanted=("start_s",))


# Markdown


def parse(markdown: str) -> list[list[str]]:
    lines = [line.removeprefix("|").removesuffix("|") for line in markdown.split("\n")]
    table = [[cell.strip().replace("\\|", "|") for cell in re_split(line)] for line in lines]
    assert set("".join(table.pop(1))) <= set("-:")
    return table


def re_split(line: str) -> list[str]:
    return line.replace("\\|", "\0").replace("|", "\n").replace("\0", "\\|").split("\n")


MARKDOWN_CELL = CELL.map(lambda text: " ".join(text.split()).replace("\\", "").replace("\0", ""))


@given(st.lists(st.tuples(MARKDOWN_CELL, MARKDOWN_CELL, MARKDOWN_CELL), min_size=1, max_size=4), st.booleans())
def test_a_markdown_table_holds_its_cells(rows, align):
    header, *rest = rows
    text = markdown_table(header, rest, align=align)
    assert parse(text) == [[cell.strip() for cell in row] for row in rows]
    assert len(text.split("\n")) == len(rows) + 1


def test_a_markdown_table_to_the_letter():
    rows = [["a|b", "1.0"], ["two\nlines \\| x", "10.0"]]
    assert markdown_table(["name", "score"], rows) == (
        "| name | score |\n| --- | --- |\n| a\\|b | 1.0 |\n| two lines \\| x | 10.0 |"
    )
    assert markdown_table(["name", "score"], rows, align=True) == (
        "| name           | score |\n"
        "| -------------- | ----: |\n"
        "| a\\|b           |   1.0 |\n"
        "| two lines \\| x |  10.0 |"
    )
    assert markdown_table(["", ""], []) == "|  |  |\n| --- | --- |"


def test_only_the_standard_library_is_imported():
    code = "import sys, clip_common.tables; sys.exit(bool({'torch', 'numpy', 'filelock'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_come_one_by_one(file):
    """The rows before a mistake are of use, such as to list what they name."""
    rows = read_table(put(file, "a,b\n1,2\n3\n"), needed=("a",))
    assert json.dumps(next(rows)) == '[2, {"a": "1", "b": "2"}]'
    with pytest.raises(DataError):
        next(rows)
