"""The command ``durian-adv entropy``: data sets come back as they were, with a column more."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet
import pytest
from photographs import crop, encoded
from small_encoder import FLAGS, SMALL, entropy

from durian_adv.cli import main
from durian_adv.visual import load_encoder
from durian_adv.visual.cache import Cache
from durian_adv.visual.data import JsonLines, for_output
from durian_adv.visual.efficientnet import EfficientNetEncoder
from durian_adv.visual.images import content


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    """Photographs, one twice, one broken, and something else."""
    home = tmp_path / "photos"
    (home / "more").mkdir(parents=True)
    (home / "album.png").mkdir()
    for i in range(4):
        crop(i).save(home / f"{i}.png")
    crop(0).save(home / "more" / "again.PNG")
    (home / "broken.jpg").write_bytes(b"?")
    (home / "notes.txt").write_text("no image")
    return home


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
    assert "row 4, image 0: cannot be read: broken.jpg: ValueError: expected an image, got 1 bytes" in err
    assert err.splitlines()[-1] == (
        "durian-adv entropy: 6 rows, 4 images computed (efficientnet-lite0, stride8, 64 px), 0 known before, "
        "1 not readable in 1 rows"
    )
    assert "100%" in err
    assert "6/6 [" in err
    assert "row/s]" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, "photos"]


def test_a_run_without_a_readable_image_fails_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"image": "none.png"}\n{"image": null}\n')
    cache = tmp_path / "c"
    for flags, left in (([], ["in.jsonl"]), (["--cache", str(cache)], ["c", "in.jsonl"])):
        assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *FLAGS, *flags]) == 2
        assert "in.jsonl: expected images that can be read, got none among 1; nothing is" in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.iterdir()) == left


@pytest.mark.parametrize(("options", "batches"), [([], [8, 1]), (["--batch-size", "4"], [4, 4, 1])])
def test_images_are_encoded_eight_together_if_nothing_is_said(tmp_path, monkeypatch, options, batches):
    for i in range(9):
        crop(i).save(tmp_path / f"{i}.png")
    sizes, inner = [], EfficientNetEncoder.entropies
    monkeypatch.setattr(
        EfficientNetEncoder, "entropies", lambda encoder, images: sizes.append(len(images)) or inner(encoder, images)
    )
    assert main(["entropy", str(tmp_path), str(tmp_path / "out.jsonl"), *FLAGS, *options]) == 0
    assert sizes == batches


def test_images_that_cannot_be_read_are_counted_and_so_are_their_rows(folder, tmp_path, capsys):
    rows = [["none.png", "photos/0.png"], ["none.png", "no.png"], "photos/1.png"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"image": row}) + "\n" for row in rows))
    assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    assert "3 rows, 2 images computed" in (err := capsys.readouterr().err)
    assert err.endswith("3 not readable in 2 rows\n")


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
    assert "images: expected paths for a table by image, got bytes" in capsys.readouterr().err


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


@pytest.mark.parametrize("folder_left", [False, True])
def test_what_a_killed_run_left_half_written_is_replaced(folder, tmp_path, folder_left):
    left = tmp_path / "out.partial.jsonl"
    if folder_left:
        left.mkdir()
        (left / "x").write_text("half")
    else:
        left.write_text("half")
    assert main(["entropy", str(folder), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    assert len(lines(tmp_path / "out.jsonl")) == 6
    assert not left.exists()


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

    source = OnDisk()
    assert for_output(source, tmp_path / "out") is source
    with pytest.raises(
        ValueError, match=r"out.jsonl: expected a name with no suffix, as a folder is written, for this"
    ):
        for_output(source, tmp_path / "out.jsonl")


def test_a_killed_run_goes_on_where_it_was(tmp_path, capsys):
    home = tmp_path / "photos"
    home.mkdir()
    for i in range(12):
        crop(i, (128, 128)).save(home / f"{i:02}.png")
    arguments = ["entropy", str(home), str(tmp_path / "out.jsonl"), "--batch-size", "1", "--size", "512"]
    code = "import sys; from durian_adv.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    cache, known = tmp_path / "out.jsonl.cache", 0
    for _ in range(2400):
        if cache.exists():
            try:
                file = sqlite3.connect(f"file:{cache}?mode=ro", uri=True)
                known = file.execute("SELECT count(*) FROM entropies").fetchone()[0]
                file.close()
            except sqlite3.OperationalError:  # just being written
                known = 0
        if known >= 2:
            break
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.jsonl").exists()

    assert main(arguments) == 0
    summary = capsys.readouterr().err.splitlines()[-1]
    computed, before = (int(summary.split(text)[0].split()[-1]) for text in (" images computed", " known before"))
    assert before >= 2
    assert computed + before == 12
    assert not cache.exists()
    untouched = tmp_path / "whole.jsonl"
    assert main(["entropy", str(home), str(untouched), "--batch-size", "1", "--size", "512"]) == 0
    assert untouched.read_text() == (tmp_path / "out.jsonl").read_text()


def test_what_a_killed_run_had_computed_is_kept_beside_the_output_and_goes_when_it_is_written(folder, tmp_path, capsys):
    left = tmp_path / "out.jsonl.cache"
    cache = Cache(left, load_encoder(**SMALL).name)
    cache[content((folder / "1.png").read_bytes()).key] = 1.25
    cache.close()
    assert main(["entropy", str(folder), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    assert "3 images computed (efficientnet-lite0, stride8, 64 px), 1 known before" in capsys.readouterr().err
    assert lines(tmp_path / "out.jsonl")[1] == {"image": "1.png", "visual_entropy": 1.25}
    assert not left.exists()


def test_a_cache_of_ones_own_serves_other_data_sets_and_other_encoders_do_not_use_it(folder, tmp_path, capsys):
    cache = tmp_path / "kept"
    for name, flags, computed, known in (
        ("a", FLAGS, 4, 0),
        ("b", FLAGS, 0, 4),
        ("c", [*FLAGS[:3], "96"], 4, 0),
        ("d", [*FLAGS, "--resize-first", "8000", "9000"], 4, 0),
    ):
        assert main(["entropy", str(folder), str(tmp_path / f"{name}.jsonl"), "--cache", str(cache), *flags]) == 0
        assert f"{computed} images computed" in (err := capsys.readouterr().err)
        assert f"{known} known before" in err
    assert cache.exists()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda p: None, ["none", "out.jsonl"], "none: expected a folder or a file, got nothing there"),
        (lambda p: (p / "in.csv").write_text("a"), ["in.csv", "out.csv"], "in.csv: expected a name that ends in"),
        (lambda p: (p / "in").mkdir(), ["in", "out.jsonl"], "in: expected a folder with images, got none"),
        (
            lambda p: ((p / "in").mkdir(), (p / "in/\udcff.png").touch()),
            ["in", "out.jsonl"],
            "in: expected paths in UTF-8, got '\\udcff.png'",
        ),
        (
            lambda p: ((p / "in").mkdir(), (p / "in/x.png").touch()),
            ["in", "out.csv"],
            "out.csv: expected a name with .parquet or .jsonl for this input, or with .json",
        ),
        (
            lambda p: (p / "in.jsonl").write_text("{"),
            ["in.jsonl", "o.jsonl"],
            "line 1: expected a JSON object, got '{'",
        ),
        (lambda p: (p / "in.jsonl").write_text("[]"), ["in.jsonl", "o.jsonl"], "line 1: expected a JSON object"),
        (
            lambda p: (p / "in.jsonl").write_bytes('{"image": "x"}'.encode("utf-16-le")),
            ["in.jsonl", "o.jsonl"],
            "line 1: expected a JSON object",
        ),
        (lambda p: (p / "in.jsonl").write_text("{}"), ["in.jsonl", "o.jsonl"], "images: expected a column"),
        (
            lambda p: (p / "in.jsonl").write_text('{"visual_entropy": 1, "image": "x"}'),
            ["in.jsonl", "o.jsonl"],
            "expected no key 'visual_entropy'",
        ),
        (
            lambda p: (p / "in.jsonl").write_bytes(b'{"image": "x"}\n{"image": "\xff"}'),
            ["in.jsonl", "o.jsonl"],
            "in.jsonl, line 2: expected a JSON object, got",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x", "extra_info": "a"}'),
            ["in.jsonl", "o.jsonl"],
            "in.jsonl, line 1: expected extra_info to be an object, got str",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x", "extra_info": {}, "b": Infinity}'),
            ["in.jsonl", "o.jsonl"],
            "in.jsonl, line 1: expected what JSON can hold beside extra_info",
        ),
        (
            lambda p: (p / "in.jsonl").write_text(r'{"image": "x", "extra_info": {}, "b": "\ud800"}'),
            ["in.jsonl", "o.jsonl"],
            "in.jsonl, line 1: expected what JSON can hold beside extra_info",
        ),
        (
            lambda p: (p / "in.jsonl").write_text(r'{"image": "\ud800"}'),
            ["in.jsonl", "o.json"],
            "images: expected paths in UTF-8",
        ),
        (
            lambda p: pyarrow.parquet.write_table(pa.table({"image": ["x"], "extra_info": ["a"]}), p / "in.parquet"),
            ["in.parquet", "o.parquet"],
            "in.parquet: expected a column 'extra_info' of structs, got string",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "none/o.jsonl"],
            "o.jsonl: expected a name in a folder that is there",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "o.jsonl", "--cache", "none/c"],
            "c: expected a name in a folder that is there",
        ),
        (lambda p: (p / "in.parquet").write_text("x"), ["in.parquet", "o.parquet"], "expected a parquet file, got"),
        (
            lambda p: pyarrow.parquet.write_table(pa.table({"image": [], "visual_entropy": []}), p / "in.parquet"),
            ["in.parquet", "o.parquet"],
            "expected no column 'visual_entropy'",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "o.parquet"],
            "o.parquet: expected a name with .jsonl for this input, or with .json",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "in.jsonl"],
            "in.jsonl: expected a name that is not taken yet",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "o.jsonl", "--batch-size", "0"],
            "--batch-size: expected at least 1 image",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "o.jsonl", "--min-pixels", "9", "--max-pixels", "8"],
            "min_pixels: expected at most max_pixels, 8, got 9",
        ),
    ],
)
def test_what_cannot_be_used_is_an_error_without_a_traceback(tmp_path, monkeypatch, capsys, make, arguments, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    assert main(["entropy", *arguments, *FLAGS]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "options", "file"),
    [
        ("datasets", [], "state.json"),
        ("datasets", [], "dataset_dict.json"),
        ("transformers", ["--encoder", "some/model"], None),
        ("tqdm", [], None),
    ],
)
def test_a_package_that_is_not_there_is_named_with_the_extra_that_brings_it(
    folder, tmp_path, monkeypatch, capsys, missing, options, file
):
    monkeypatch.setitem(sys.modules, missing, None)
    for adapter in ("datasets_on_disk", "transformers_encoder"):
        monkeypatch.delitem(sys.modules, f"durian_adv.adapters.{adapter}", raising=False)
    if file is not None:
        (folder / file).write_text("{}")
    assert main(["entropy", str(folder), str(tmp_path / "out.jsonl"), *options]) == 2
    err = capsys.readouterr().err
    assert missing in err
    assert "expected what pip install 'durian-adv[entropy]' brings" in err
