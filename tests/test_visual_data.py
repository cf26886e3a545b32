"""Data sets with visual entropies: what comes back is what was there, with a column more."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet
import pytest
from photographs import crop, encoded, folder_of_photographs
from small_encoder import FLAGS, entropy

from durian_adv.cli import main
from durian_adv.data.scoring.data import for_output
from durian_adv.data.scoring.json_rows import JsonLines


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    return folder_of_photographs(tmp_path / "photos")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_folder_becomes_a_table(folder, tmp_path, capsys, suffix):
    out = tmp_path / f"out{suffix}"
    assert main(["entropy", str(folder), str(out), "--extra-info", *FLAGS]) == 0
    rows = lines(out) if suffix == ".jsonl" else pyarrow.parquet.read_table(out).to_pylist()
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png", "3.png", "broken.jpg", "more/again.PNG"]
    expected = [*(entropy(crop(i)) for i in range(4)), math.nan, entropy(crop(0))]
    for row, value in zip(rows, expected, strict=True):
        for found in (row["visual_entropy"], row["extra_info"]["visual_entropy"]):
            if suffix == ".jsonl" and found is None:  # JSON knows no NaN, and parquet tells it from null
                found = math.nan
            assert found == pytest.approx(value, abs=1e-6, nan_ok=True)
    err = capsys.readouterr().err
    assert "row 5, image 1: cannot be read: broken.jpg: ValueError: expected an image (AVIF, BMP" in err
    assert err.splitlines()[-1] == (
        "durian-adv entropy: 6 rows, 4 images computed (efficientnet-lite0, stride8, 64 px), 0 known before, "
        "1 not readable in 1 rows"
    )
    assert len(err.splitlines()) == 2  # no progress bar, as nobody watches
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, "photos"]


@pytest.mark.parametrize("extra", [[], ["--extra-info"]])
def test_the_text_of_a_json_line_stays(folder, tmp_path, extra):
    line = r'{"image":"photos/0.png", "a": NaN, "b": -Infinity, "c": 1.50e400, "d": "\ud800\u00e9", "e": 0.10}'
    (tmp_path / "in.jsonl").write_bytes(f"{line}\r\n{{}}".encode())
    assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *FLAGS, *extra]) == 0
    first, second = (tmp_path / "out.jsonl").read_text().splitlines()
    assert first.startswith(line[:-1] + ', "visual_entropy": ')
    found = json.loads(first)
    assert found["visual_entropy"] > 0
    assert second.startswith('{"visual_entropy": null')
    assert "extra_info" not in found if not extra else found["extra_info"]["visual_entropy"] == found["visual_entropy"]


def test_json_lines_come_back_as_they_were_with_a_key_more(folder, tmp_path):
    rows = [
        {"problem": "<image>?", "images": ["photos/0.png", "photos/1.png"], "answer": "4", "mixed": 1},
        {"problem": "no image", "answer": ["é", None], "mixed": "x"},
        {"images": "photos/2.png", "extra_info": {"index": 3}},
        {"images": ["photos/broken.jpg"], "extra_info": None},
    ]
    table = tmp_path / "in.jsonl"
    table.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    assert main(["entropy", str(table), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    values = [(entropy(crop(0)) + entropy(crop(1))) / 2, None, entropy(crop(2)), None]
    for row, value, found in zip(rows, values, lines(tmp_path / "out.jsonl"), strict=True):
        assert found.pop("visual_entropy") == pytest.approx(value, abs=1e-6)
        if "extra_info" in row:
            assert found["extra_info"].pop("visual_entropy") == pytest.approx(value, abs=1e-6)
            row = {**row, "extra_info": row["extra_info"] or {}}
        assert found == row
        assert list(found) == list(row)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_column_of_images_and_the_folder_of_their_paths_can_be_named(folder, tmp_path, suffix):
    table, out = tmp_path / f"in{suffix}", tmp_path / "out.json"
    pictures = {"pictures": ["0.png"], "image": ["1.png"]}
    if suffix == ".jsonl":
        table.write_text(json.dumps(pictures))
    else:
        pyarrow.parquet.write_table(pa.table(pictures), table)
    where = ["--images", "pictures", "--image-root", str(folder)]
    assert main(["entropy", str(table), str(out), "--device", "cpu", "--batch-size", "1", *where, *FLAGS]) == 0
    assert json.loads(out.read_text()) == {"0.png": pytest.approx(entropy(crop(0)), abs=1e-6)}


@pytest.mark.parametrize("extra", ["none", "struct", "made", "no struct"])
def test_a_parquet_file_comes_back_as_it_was_with_a_column_more(tmp_path, capsys, extra):
    images = [[{"bytes": encoded(crop(i)), "path": None}] for i in range(3)] * 200
    columns = {"prompt": [[{"role": "user", "content": str(i)}] for i in range(600)], "images": images}
    if extra == "struct":
        columns["extra_info"] = [None if i % 5 == 4 else {"index": i, "split": "train"} for i in range(600)]
    elif extra == "no struct":
        columns["extra_info"] = ["x"] * 600
    before = pa.table(columns).replace_schema_metadata({"of": "somebody"})
    pyarrow.parquet.write_table(before, tmp_path / "in.parquet")
    options = ["--extra-info"] if extra == "made" else []
    status = main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *options, *FLAGS])
    if extra == "no struct":
        assert status == 2
        assert "expected a column 'extra_info' of structs, got string" in capsys.readouterr().err
        return
    assert status == 0
    assert "600 rows, 3 images computed" in capsys.readouterr().err
    after = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert after.schema.metadata[b"of"] == b"somebody"
    values = after.column("visual_entropy").to_pylist()
    assert values == pytest.approx([entropy(crop(i)) for i in range(3)] * 200, abs=1e-6)
    for name in ("prompt", "images"):
        assert after.column(name).equals(before.column(name))
    if extra != "none":
        told = after.column("extra_info").to_pylist()
        assert [row.pop("visual_entropy") for row in told] == values
        kept = columns.get("extra_info", [None] * 600)
        assert told == [row or ({} if extra == "made" else {"index": None, "split": None}) for row in kept]


def test_a_table_by_image_has_every_image_once_by_its_path(folder, tmp_path, capsys):
    rows = [{"images": ["photos/0.png", "photos/1.png"]}, {"images": "photos/0.png"}, {"images": ["photos/broken.jpg"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.json"), *FLAGS]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["photos/0.png", "photos/1.png", "photos/broken.jpg"]
    assert list(found.values()) == pytest.approx([entropy(crop(0)), entropy(crop(1)), None], abs=1e-6)
    pyarrow.parquet.write_table(pa.table({"image": [b"x"]}), tmp_path / "in.parquet")
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "other.json"), *FLAGS]) == 2
    assert "in.parquet, row 1: expected paths for a table by image, got bytes" in capsys.readouterr().err


@pytest.mark.parametrize("features", [None, {}, {"extra_info": {"index": {"dtype": "int64", "_type": "Value"}}}])
@pytest.mark.parametrize("extra", [False, True])
def test_what_datasets_keeps_in_a_parquet_file_learns_of_the_columns(tmp_path, features, extra):
    told = {} if features is None else {"info": {"features": features}}
    columns = {"image": [encoded(crop(0))]} | ({"extra_info": [{"index": 1}]} if features else {})
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(told)})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    options = [*FLAGS, *(["--extra-info"] if extra else [])]
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *options]) == 0
    found = json.loads(pyarrow.parquet.read_schema(tmp_path / "out.parquet").metadata[b"huggingface"])
    if features is None:
        assert found == told
        return
    value = {"dtype": "float64", "_type": "Value"}
    expected = {**features, "visual_entropy": value}
    if extra or features:
        expected["extra_info"] = {**features.get("extra_info", {}), "visual_entropy": value}
    assert found == {"info": {"features": expected}}


def test_tables_without_rows_are_tables_with_a_column_more(tmp_path):
    pyarrow.parquet.write_table(pa.table({"image": pa.array([], pa.string())}), tmp_path / "in.parquet")
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *FLAGS]) == 0
    schema = pyarrow.parquet.read_schema(tmp_path / "out.parquet")
    assert schema == pa.schema({"image": pa.string(), "visual_entropy": pa.float64()})


def test_a_table_that_has_grown_meanwhile_is_an_error(tmp_path):
    table = tmp_path / "in.jsonl"
    table.write_text('{"image": "x"}\n')
    source = JsonLines(table, None, tmp_path)
    table.write_text('{"image": "x"}\n{"image": "y"}\n')
    with pytest.raises(ValueError, match="shorter"):
        source.write([1.0], tmp_path / "out.jsonl", False)


def test_a_data_set_on_disk_is_written_as_a_folder(tmp_path):
    class OnDisk:
        """Of no kind that has a suffix."""

        kinds = ("",)

    source = OnDisk()
    assert for_output(source, tmp_path / "out", False, print) is source
    with pytest.raises(
        ValueError, match=r"out.jsonl: expected a name with no suffix, as a folder is written, for this"
    ):
        for_output(source, tmp_path / "out.jsonl", False, print)
