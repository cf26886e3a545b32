"""Data sets on disk from somebody else: nothing is fetched, nothing embedded, and what comes back is what was there."""

from __future__ import annotations

import json
import socket
import threading

import datasets
import numpy as np
import pyarrow as pa
import pytest
from audited import audited
from datasets import Audio, Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value, Video
from photographs import crop, encoded

from durian_adv.cli import main
from durian_adv.data.scoring import EntropyScorer

SMALL = {"layer": "stride8", "size": 64}
FLAGS = ["--layer", "stride8", "--size", "64"]
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def value_of(number):
    return pytest.approx(EntropyScorer(**SMALL)({"image": [crop(number)]})["visual_entropy"][0], abs=1e-5)


def save(rows, schema, features, path):
    """Save rows as they are: the library itself would embed what they name."""
    Dataset(pa.Table.from_pylist(rows, schema)).save_to_disk(path)
    DatasetInfo(features=Features(features)).write_to_directory(str(path))
    return path


@pytest.fixture
def listening():
    """A server that counts who connects."""
    server = socket.create_server(("127.0.0.1", 0))
    reached = []

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            reached.append(connection.getpeername())
            connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1], reached
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


KINDS = {
    "image": (Image(), FILE),
    "more": (List(Image()), pa.list_(FILE)),
    "deep": (
        {"image": Image(), "text": Value("string")},
        pa.struct([("image", FILE), ("text", pa.string())]),
    ),
    "audio": (Audio(), FILE),
    "film": (Video(), FILE),
}


def hostile(tmp_path, port, columns):
    """Rows that name files of this machine and addresses in every column; and the data set's types and features."""
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    crop(1).save(secret / "secret.png")
    (secret / "secret.txt").write_text("SECRET WORDS")
    paths = [f"{protocol}://127.0.0.1:{port}/x.png" for protocol in ("ftp", "http", "https", "hf", "s3")]
    paths += [str(secret / "secret.png"), f"file://{secret}/secret.txt", str(secret / "secret.txt")]
    cells = [{"bytes": encoded(crop(0)), "path": None}, *({"bytes": None, "path": path} for path in paths)]
    rows = [
        {"image": cell, "more": [cell, cell], "deep": {"image": cell, "text": "t"}, "audio": cell, "film": cell}
        for cell in cells
    ]
    schema = pa.schema({name: KINDS[name][1] for name in columns})
    features = {name: KINDS[name][0] for name in columns}
    return [{name: row[name] for name in columns} for row in rows], schema, features, secret


@pytest.mark.parametrize("column", ["image", "more"])
@pytest.mark.parametrize("splits", [False, True])
def test_a_data_set_on_disk_reaches_for_nothing_and_takes_nothing_along(tmp_path, listening, splits, column):
    port, reached = listening
    rows, schema, features, secret = hostile(tmp_path, port, ["image", "more", "deep"])
    given = tmp_path / "in"
    if splits:
        given.mkdir()
        (given / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        save(rows, schema, features, given / "train")
        save(rows[::-1], schema, features, given / "test")
    else:
        save(rows, schema, features, given)
    # what is imported late is imported by a data set of the same kinds
    Dataset.from_list(rows[:1], Features(features)).save_to_disk(tmp_path / "plain")
    options = ["--images", column, "--extra-info", *FLAGS]
    warm = ["entropy", tmp_path / "plain", tmp_path / "warm", *options]
    status, opened, events, err = audited(["entropy", given, tmp_path / "out", *options], warm)
    assert (status, reached, events) == (0, [], []), err
    # a table may name any file: it is opened as an image, and nothing of it but its entropy is written
    outside = {path for path in opened if not path.startswith((str(tmp_path / "in"), str(tmp_path / "out")))}
    assert outside <= {str(secret / "secret.png"), str(secret / "secret.txt"), "/dev/null"}
    taken = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert b"SECRET WORDS" not in taken
    assert (secret / "secret.png").read_bytes() not in taken
    whole = datasets.load_from_disk(tmp_path / "out")
    for part, of in (("train", rows), ("test", rows[::-1])) if splits else ((None, rows),):
        found = whole if part is None else whole[part]
        assert {name: found.features[name] for name in features} == features
        written = found.data.to_pylist()
        values = [row.pop("visual_entropy") for row in written][:: 1 if of is rows else -1]
        assert [list(row.pop("extra_info")) for row in written] == [["visual_entropy"]] * len(rows)
        assert written == of
        assert values[0] == value_of(0)
        assert values[6] == value_of(1)
        assert np.isnan([*values[1:6], *values[7:]]).all()


def test_sounds_and_videos_of_a_data_set_on_disk_are_neither_decoded_nor_embedded(tmp_path, listening, capsys):
    port, reached = listening
    rows, schema, features, _ = hostile(tmp_path, port, KINDS)
    given = save(rows, schema, features, tmp_path / "in")
    capsys.readouterr()
    assert main(["entropy", str(given), str(tmp_path / "out"), *FLAGS]) == 2
    err = capsys.readouterr().err
    assert "in, row 1: a sound, which has no visual entropy" in err
    assert f"{len(rows)} rows without entropy for their other inputs (a sound {len(rows)})" in err
    assert main(["entropy", str(given), str(tmp_path / "out"), "--other-inputs", "allow", *FLAGS]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1  # no progress bar of the library's
    found = datasets.load_from_disk(tmp_path / "out")
    assert {name: found.features[name] for name in features} == features
    assert found.data.select(list(features)).to_pylist() == rows
    assert reached == []


def test_a_data_set_on_disk_that_is_damaged_is_an_error_with_its_name(tmp_path, capsys):
    rows = {"image": [{"bytes": encoded(crop(0)), "path": None}] * 3}
    Dataset.from_dict(rows, features=Features({"image": Image()})).save_to_disk(tmp_path / "in")
    (arrow,) = (tmp_path / "in").glob("*.arrow")
    whole = arrow.read_bytes()
    for damaged in (whole[:200], b"?" * len(whole), b""):
        arrow.write_bytes(damaged)
        assert main(["entropy", str(tmp_path / "in"), str(tmp_path / "out"), *FLAGS]) == 2
        assert f"{tmp_path / 'in'}: expected a data set saved by datasets, got " in capsys.readouterr().err
    (tmp_path / "in/state.json").write_text(json.dumps({}))
    assert main(["entropy", str(tmp_path / "in"), str(tmp_path / "out"), *FLAGS]) == 2
    assert "in: expected a data set saved by datasets, got KeyError" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_splits_number_their_rows_from_one(tmp_path, capsys):
    splits = {name: Dataset.from_dict({"image": ["none.png"] * rows}) for name, rows in (("train", 2), ("test", 1))}
    splits["train"] = Dataset.from_dict({"image": [None, "none.png"]})
    crop(0).save(tmp_path / "a.png")
    splits["more"] = Dataset.from_dict({"image": [str(tmp_path / "a.png")]})
    DatasetDict(splits).save_to_disk(tmp_path / "in")
    assert main(["entropy", str(tmp_path / "in"), str(tmp_path / "out"), *FLAGS]) == 0
    err = capsys.readouterr().err
    assert "in, split train, row 2, image 1: cannot be read" in err
    assert "in, split test, row 1, image 1: cannot be read" in err
    assert datasets.load_from_disk(tmp_path / "out")["more"]["visual_entropy"] == [value_of(0)]
