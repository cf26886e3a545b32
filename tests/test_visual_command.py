"""The command ``durian-adv entropy``: runs that are killed, caches, errors, what it tells."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet
import pytest
from photographs import crop, folder_of_photographs
from small_encoder import FLAGS, SMALL

from durian_adv.cli import main
from durian_adv.data.scoring import load_encoder
from durian_adv.data.scoring.cache import Cache
from durian_adv.data.scoring.efficientnet import EfficientNetEncoder
from durian_adv.data.scoring.images import content


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    return folder_of_photographs(tmp_path / "photos")


def test_a_run_without_a_readable_image_fails_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"image": "none.png"}\n{"image": null}\n')
    cache = tmp_path / "c"
    for flags, left in (([], ["in.jsonl"]), (["--cache", str(cache)], ["c", "in.jsonl"])):
        assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *FLAGS, *flags]) == 2
        assert (
            "in.jsonl: expected images that can be read, got none: 1 not readable in 1 rows;" in capsys.readouterr().err
        )
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


def test_a_killed_run_goes_on_where_it_was(tmp_path, capsys):
    home = tmp_path / "photos"
    home.mkdir()
    for i in range(12):
        crop(i, (128, 128)).save(home / f"{i:02}.png")
    arguments = ["entropy", str(home), str(tmp_path / "out.jsonl"), "--batch-size", "1", "--size", "512"]
    code = "import sys, torch; torch.set_num_threads(1); from durian_adv.cli import main; sys.exit(main(sys.argv[1:]))"
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
        (lambda p: None, ["none", "out.jsonl"], "none: does not exist"),
        (lambda p: (p / "in.txt").write_text("a"), ["in.txt", "out.txt"], "in.txt: expected a folder, or a name"),
        (lambda p: (p / "in").mkdir(), ["in", "out.jsonl"], "in: expected a folder with images or parquet files"),
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
            "expected no column 'visual_entropy'",
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
            "in.jsonl, line 1: expected paths in UTF-8",
        ),
        (
            lambda p: pyarrow.parquet.write_table(pa.table({"image": ["x"], "extra_info": ["a"]}), p / "in.parquet"),
            ["in.parquet", "o.parquet"],
            "in.parquet: expected a column 'extra_info' of structs, got string",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "none/o.jsonl"],
            "o.jsonl: parent directory does not exist",
        ),
        (
            lambda p: (p / "in.jsonl").write_text('{"image": "x"}'),
            ["in.jsonl", "o.jsonl", "--cache", "none/c"],
            "c: parent directory does not exist",
        ),
        (
            lambda p: (p / "in.parquet").write_text("x"),
            ["in.parquet", "o.parquet"],
            "in.parquet: expected a table in parquet, got one that cannot be read",
        ),
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
            "in.jsonl: already exists",
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
