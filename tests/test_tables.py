"""Whole tables, parquet and JSON lines: what is read is what was written, and every row has a name in errors."""

import json
import math

import pyarrow as pa
import pyarrow.parquet
import pytest

from durian_adv.data import json_lines, tables

ROWS = [{"id": "é", "x": 1.5}, {"id": "b", "x": math.nan}, {"id": "c", "x": None}]


def parquet(path, columns):
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture(params=["jsonl", "parquet"])
def table(request, tmp_path):
    path = tmp_path / f"given.{request.param}"
    if request.param == "jsonl":
        path.write_text("\n".join(["", *(json.dumps(row) for row in ROWS)]), encoding="utf-8")
    else:
        parquet(path, {name: [row[name] for row in ROWS] for name in ("id", "x")})
    return tables.read_table(path)


def test_a_table_knows_its_file_its_columns_and_what_to_call_a_row(table, tmp_path):
    kind = table.path.suffix
    assert table.path == tmp_path / f"given{kind}"
    assert table.names == ["id", "x"]
    assert table.column("id") == ["é", "b", "c"]
    assert str(table.column("x")) == "[1.5, nan, None]"
    assert [tables.where(table.path, table.numbers[row]).removeprefix(f"{table.path}, ") for row in range(3)] == (
        ["line 2", "line 3", "line 4"] if kind == ".jsonl" else ["row 1", "row 2", "row 3"]
    )
    with pytest.raises(ValueError, match=r"given\.(jsonl|parquet): expected a column 'y', got id, x$"):
        table.column("y")


def test_columns_come_with_the_numbers_of_their_rows(table, monkeypatch):
    monkeypatch.setattr(tables, "_ROWS", 2)  # of three rows
    first = 2 if table.path.suffix == ".jsonl" else 1
    assert [(number, values[0]) for number, values in tables.read_columns(table.path, ["id", "x", "id"])] == [
        (first, "é"), (first + 1, "b"), (first + 2, "c"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"given\.(jsonl|parquet): expected a column 'y', got id, x$"):
        list(tables.read_columns(table.path, ["id", "y"]))


def test_a_line_comes_as_it_was_written(tmp_path):
    file = tmp_path / "lines"
    file.write_bytes(b' {"b": 1.50,  "a": 1}\t\r\n\n{"a":"\xc3\xa9"}')
    assert [tuple(line) for line in json_lines.objects(file)] == [
        (1, b'{"b": 1.50,  "a": 1}', {"b": 1.5, "a": 1}),
        (3, b'{"a":"\xc3\xa9"}', {"a": "é"}),
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_chosen_rows_are_written_in_any_form_and_read_again(table, suffix, tmp_path):
    path = tmp_path / f"out.{suffix}"
    table.write([True, False, True], path)
    again = tables.read_table(path)
    assert again.column("id") == ["é", "c"]
    assert again.column("x") == [1.5, None]
    if suffix == "jsonl":  # as it is, so that people can read it, in UTF-8 whatever the machine prefers
        assert path.read_bytes().startswith('{"id": "é", "x": 1.5}\n'.encode())
    for choice in ([True, True], [True] * 4):
        with pytest.raises((ValueError, pa.ArrowException)):
            table.write(choice, tmp_path / f"other.{suffix}")


def test_none_of_the_rows_is_a_table_without_rows(table, tmp_path):
    table.with_column("y", [None] * 3).write([False] * 3, tmp_path / "out.parquet")
    assert len(tables.read_table(tmp_path / "out.parquet").rows) == 0


def test_a_column_more_is_of_numbers_even_where_there_is_none(table, tmp_path):
    more = table.with_column("y", [None, None, None])
    assert more.column("y") == [None] * 3
    if table.path.suffix == ".parquet":
        assert more.rows.schema.field("y").type == pa.float64()
    for values in ([1.0, 2.0], [1.0] * 4):
        with pytest.raises((ValueError, pa.ArrowException)):
            table.with_column("y", values)


def test_nan_is_null_in_json_at_any_depth_and_infinity_is_refused(tmp_path):
    assert tables.json_line({"a": math.nan, "b": [math.nan, {"c": math.nan}, "é"]}) == (
        '{"a": null, "b": [null, {"c": null}, "é"]}\n'
    )
    path = tmp_path / "out.jsonl"
    with pytest.raises(
        ValueError, match=r"out\.jsonl, line 2: expected what JSON can hold, got another \(Out of range"
    ):
        tables.write_table(pa.table({"x": [math.nan, math.inf]}), path)


def test_columns_of_several_types_are_for_json_lines(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"x": 1}\n{"x": "a"}\n')
    with pytest.raises(ValueError, match=r"out\.parquet: expected a column 'x' of one type, .*; JSON lines hold any$"):
        tables.read_table(path).write([True, True], tmp_path / "out.parquet")


def test_a_file_is_what_its_name_says(tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv: expected a name that ends in \.parquet or \.jsonl$"):
        tables.read_table(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match=r"a\.parquet"):
        tables.read_table(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a table in parquet, got one that cannot be read \("):
        tables.read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'  {"a": \xff}', "got '{\"a\": \N{REPLACEMENT CHARACTER}}' ("),
        (b"x" * 61, f"got '{'x' * 60}' ("),
        (b"[" * 100_000, f"got '{'[' * 60}' ("),
        (b"[1, 2]", "got [1, 2]"),
        (b'"%s"' % (b"y" * 58), f"got '{'y' * 58}'"),  # 60 characters with the quotes
        (b'"%s"' % (b"y" * 59), f"got '{'y' * 59}..."),
    ],
)
def test_a_line_that_is_no_object_is_shown_in_part(line, told, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"{}\n" + line)
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2: expected a JSON object, got ") as raised:
        list(json_lines.objects(path))
    text = str(raised.value)
    told = f"{path}, line 2: expected a JSON object, {told}"
    assert text.startswith(told) if told.endswith("(") else text == told
