"""The command ``durian-adv entropy`` at its edges: hostile files, faulty disks, interrupted runs, what it may touch."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import tempfile
import termios
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from audited import audited
from photographs import crop, encoded, folder_of_photographs
from PIL import Image
from small_encoder import FLAGS, SMALL, entropy

from durian_adv.cli import main
from durian_adv.data import aside
from durian_adv.data.scoring import EntropyScorer, cache, csv_file, json_rows, load_encoder, parquet
from durian_adv.data.scoring import data as sources
from durian_adv.data.scoring.cache import Cache, CacheError
from durian_adv.data.scoring.efficientnet import EfficientNetEncoder
from durian_adv.data.scoring.elsewhere import medium_of
from durian_adv.data.scoring.images import FORMATS, content

COMMAND = [sys.executable, "-c", "import sys; from durian_adv.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.fixture
def folder(tmp_path):
    return folder_of_photographs(tmp_path / "photos")


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


# --- what the command may touch ---------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EOF\n"


def test_an_eps_file_named_jpg_starts_no_process(folder, tmp_path):
    photos = tmp_path / "hostile"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(EPS)
    crop(0).save(photos / "b.png")
    warm = ["entropy", folder, tmp_path / "warm.jsonl", *FLAGS]
    status, opened, events, err = audited(["entropy", photos, tmp_path / "out.jsonl", *FLAGS], warm)
    assert (status, events) == (0, [])
    assert "a.jpg: ValueError: expected an image (AVIF" in err
    assert [path for path in opened if not path.startswith(str(tmp_path))] == []


def test_an_eps_image_that_is_not_decoded_yet_is_refused(tmp_path):
    (tmp_path / "a.eps").write_bytes(EPS)
    with Image.open(tmp_path / "a.eps") as image, pytest.raises(ValueError, match=r"^expected one of .*, got EPS$"):
        content(image)


def other_formats():
    """A photograph in each format that Pillow writes and that is not read."""
    Image.init()
    found = {}
    for kind in sorted(set(Image.SAVE) - {*FORMATS, "MPO"}):
        with warnings.catch_warnings(), contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            warnings.simplefilter("ignore")  # Pillow is about to give up some
            found[kind] = encoded(crop(0), kind)
    return found


OTHER_FORMATS = other_formats()


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_other_formats_of_pillow_are_not_decoded(kind):
    assert {"EPS", "PDF", "TGA", "ICO"} <= set(OTHER_FORMATS)
    with pytest.raises(ValueError, match="expected an image"):
        content(OTHER_FORMATS[kind]).open()


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_each_format_is_read_whatever_its_name_says(kind, tmp_path):
    (tmp_path / "image.txt").write_bytes(encoded(crop(0), kind))
    assert content("image.txt", tmp_path).open().size == (64, 64)


# --- the cache --------------------------------------------------------------------------------------


def locked(path):
    """Hold the cache as another process that writes does."""
    other = sqlite3.connect(path, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    return other


@pytest.mark.parametrize("known", [False, True])
def test_a_cache_that_is_locked_meanwhile_is_an_error_and_no_image_becomes_null(
    folder, tmp_path, monkeypatch, capsys, known
):
    monkeypatch.setattr(cache, "_SECONDS", 0.1)
    kept = tmp_path / "kept"
    arguments = ["entropy", str(folder), str(tmp_path / "out.jsonl"), "--cache", str(kept), *FLAGS]
    if known:
        assert main([*arguments[:2], str(tmp_path / "first.jsonl"), *arguments[3:]]) == 0
        real = Cache.__len__
        monkeypatch.setattr(Cache, "__len__", lambda self: real(self) + 0 * len(holders.append(locked(kept)) or ""))
    else:
        inner = EfficientNetEncoder.entropies
        monkeypatch.setattr(
            EfficientNetEncoder, "entropies", lambda self, images: holders.append(locked(kept)) or inner(self, images)
        )
    holders = []
    assert main(arguments) == 2
    *others, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"durian-adv entropy: {kept}: another process has been writing to this cache for 0.1 s")
    assert [line for line in others if ".png" in line] == []
    assert not (tmp_path / "out.jsonl").exists()
    for holder in holders:
        holder.close()
    monkeypatch.undo()
    assert main(arguments) == 0


def damage(path):
    kept = Cache(path, load_encoder(**SMALL).name)
    kept.update({i.to_bytes(32, "big"): 1.0 for i in range(2000)})
    kept.close()
    content_of = bytearray(path.read_bytes())
    for start in range(4096, len(content_of), 4096):
        content_of[start : start + 64] = b"\xff" * 64
    path.write_bytes(content_of)


def foreign(statement):
    def make(path):
        other = sqlite3.connect(path)
        other.execute(statement)
        other.close()

    return make


def with_text(path):
    kept = Cache(path, load_encoder(**SMALL).name)
    kept.close()
    other = sqlite3.connect(path)
    for number in range(4):
        key = content(encoded(crop(number))).key
        other.execute("INSERT INTO entropies VALUES (?, ?, 'x')", (load_encoder(**SMALL).name, key))
    other.commit()
    other.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"something else " * 100), "expected a cache of entropies, got another file"),
        (damage, "this cache is damaged; delete it, and its entropies are computed again"),
        (
            foreign("CREATE TABLE entropies (encoder TEXT, image BLOB)"),
            "expected a cache of entropies, with the columns encoder, image, entropy, got another file, with encoder, ",
        ),
        (
            foreign("CREATE VIEW entropies AS SELECT 1 AS one"),
            "expected a cache of entropies, with the columns encoder, image, entropy, got another file, with one",
        ),
        (with_text, "this cache is damaged: expected an entropy, got 'x'"),
        (lambda path: path.mkdir(), "this cache cannot be opened or made"),
    ],
)
def test_a_cache_that_cannot_be_used_is_an_error_in_words(folder, tmp_path, capsys, make, message):
    kept = tmp_path / "kept"
    make(kept)
    assert main(["entropy", str(folder), str(tmp_path / "out.jsonl"), "--cache", str(kept), *FLAGS]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"durian-adv entropy: {kept}: {message}")
    assert left(tmp_path) == ["kept", "photos"]


def test_every_method_of_a_cache_names_its_file(tmp_path):
    kept = Cache(tmp_path / "c", "x")
    kept._file.execute("DROP TABLE entropies")
    for act in (lambda: kept[b"a"], lambda: kept.update({b"a": 1.0}), lambda: list(kept), lambda: len(kept)):
        with pytest.raises(CacheError, match=r"c: this cache cannot be used \(no such table: entropies\)"):
            act()


LIMITED = """
import resource, sys
from durian_adv.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("limit", "message"), [(4096, "out.jsonl.cache: "), (50_000, "out.jsonl: cannot be written: File too large")]
)
def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(folder, tmp_path, limit, message):
    rows = [{"image": f"photos/{i % 4}.png", "text": "x" * 1000} for i in range(200)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *FLAGS]
    done = subprocess.run([sys.executable, "-c", LIMITED, str(limit), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert not {"out.jsonl", "out.partial.jsonl"} & set(left(tmp_path))
    assert main(arguments) == 0


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ""])
def test_a_full_disk_leaves_nothing_half_written_in_any_form(tmp_path, suffix):
    noise = ["".join(map(chr, row)) for row in np.random.default_rng(0).integers(97, 123, (200, 1000))]
    table = pa.table({"image": ["a.png"] * 200, "text": noise})
    crop(0).save(tmp_path / "a.png")
    given = tmp_path / f"in{suffix}"
    if suffix == ".csv":
        given.write_text("image,text\n" + "".join(f"a.png,{text}\n" for text in noise))
    else:
        given.mkdir() if suffix == "" else None
        pyarrow.parquet.write_table(table, given if suffix else given / "part.parquet")
    root = ["--image-root", str(tmp_path)]
    arguments = ["entropy", str(given), str(tmp_path / f"out{suffix}"), *root, *FLAGS]
    done = subprocess.run([sys.executable, "-c", LIMITED, "40000", *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"out{suffix}: cannot be written: " in done.stderr
    assert not {f"out{suffix}", f"out.partial{suffix}"} & set(left(tmp_path))


READ_ONLY = """
import os, sys
from durian_adv.cli import main
main(sys.argv[1:2] + sys.argv[2:3] + [sys.argv[4]] + sys.argv[5:])
os.chmod(os.path.dirname(sys.argv[3]), 0o555)
os.chmod(sys.argv[3] + ".cache", 0o444) if os.path.exists(sys.argv[3] + ".cache") else None
if os.geteuid() == 0:
    os.seteuid(65534)  # root writes anywhere
status = main(sys.argv[1:4] + sys.argv[5:])
os.seteuid(os.getuid())
sys.exit(status)
"""


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_cannot_be_written_to_is_an_error_in_words(there):
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        home = Path(home)
        home.chmod(0o755)
        photos, closed = folder_of_photographs(home / "photos"), home / "closed"
        closed.mkdir()
        if there:
            Cache(closed / "out.jsonl.cache", load_encoder(**SMALL).name).close()
        arguments = ["entropy", photos, closed / "out.jsonl", home / "warm.jsonl", *FLAGS]
        done = subprocess.run([sys.executable, "-c", READ_ONLY, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        wrong = "this cache cannot be written to" if there else "this cache cannot be opened or made"
        assert f"out.jsonl.cache: {wrong}" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert left(closed) == (["out.jsonl.cache"] if there else [])


# --- other inputs -----------------------------------------------------------------------------------


def entropies(path):
    if path.suffix in (".jsonl", ".parquet", ""):
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if path.suffix == ".jsonl":
            return [json.loads(line)["visual_entropy"] for line in path.read_text().splitlines()]
        return [value for file in files for value in pyarrow.parquet.read_table(file)["visual_entropy"].to_pylist()]
    return [row["visual_entropy"] for row in json.loads(path.read_text())]


def value_of(*numbers):
    return pytest.approx(sum(entropy(crop(number)) for number in numbers) / len(numbers), abs=1e-6)


def part(number, form):
    image = f"photos/{number}.png"
    return {
        "image": {"type": "image", "image": image},
        "untyped": {"image": image},
        "path": {"type": "image", "path": image},
        "url": {"type": "image_url", "image_url": {"url": image}},
        "url text": {"type": "image_url", "image_url": image},
        "bytes": {"type": "image", "image": {"bytes": encoded(crop(number)), "path": None}},
    }[form]


def table_of(rows, path):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FORMS = ("image", "untyped", "path", "url", "url text")


@pytest.mark.parametrize(
    ("form", "suffix"),
    [(form, suffix) for suffix in (".jsonl", ".json", ".parquet") for form in FORMS] + [("bytes", ".parquet")],
)
def test_images_inside_messages_are_scored(folder, tmp_path, suffix, form):
    rows = [
        {"messages": [{"role": "user", "content": [part(0, form), part(1, form), {"type": "text", "text": "?"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "no image"}]}]},
        {"messages": [{"role": "user", "content": [part(2, form)]}, {"role": "user", "content": [part(3, form)]}]},
    ]
    given = table_of(rows, tmp_path / f"in{suffix}")
    out = tmp_path / f"out{suffix}"
    assert main(["entropy", str(given), str(out), *FLAGS]) == 0
    first, second, third = entropies(out)
    assert (first, third) == (value_of(0, 1), value_of(2, 3))
    assert second is None or np.isnan(second)


def test_the_column_of_messages_may_have_any_name_and_text_is_no_path(folder, tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": [part(0, "image")]}]},
        {"prompt": [{"role": "user", "content": "?"}]},
    ]
    given = table_of(rows, tmp_path / "in.jsonl")
    assert main(["entropy", str(given), str(tmp_path / "out.jsonl"), "--images", "prompt", *FLAGS]) == 0
    assert entropies(tmp_path / "out.jsonl") == [value_of(0), None]


@pytest.mark.parametrize("column", ["videos", "video", "images", "messages"])
def test_a_video_given_frame_by_frame_has_the_mean_of_its_frames(folder, tmp_path, column):
    frames = ["photos/0.png", "photos/1.png", "photos/2.png"]
    cell = {
        "videos": [frames],
        "video": frames,
        "images": [frames],
        "messages": [{"role": "user", "content": [{"type": "video", "video": frames}]}],
    }[column]
    forms = [cell, [{"type": "video", "video": frames}]] if column == "videos" else [cell]
    given = table_of([{column: form} for form in forms], tmp_path / "in.jsonl")
    assert main(["entropy", str(given), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    assert entropies(tmp_path / "out.jsonl") == [value_of(0, 1, 2)] * len(forms)


def message(**part):
    return {"images": None, "messages": [{"role": "user", "content": [part]}]}


OTHERS = {
    "videos": ({"images": ["photos/0.png"], "videos": ["a.mp4"]}, "a video"),
    "video": ({"images": None, "video": "a.mp4"}, "a video"),
    "video's bytes": ({"images": None, "videos": [{"path": "a.mp4", "bytes": None}]}, "a video"),
    "video beside images": ({"images": ["photos/0.png", {"type": "video", "video": "a.mp4"}]}, "a video"),
    "audio": ({"images": ["photos/0.png"], "audio": "a.wav"}, "a sound"),
    "audios": ({"images": [], "audios": ["a.wav"]}, "a sound"),
    "message's video": (message(type="video", video="a.mp4"), "a video"),
    "message's video address": (message(type="video_url", video_url={"url": "a.mp4"}), "a video"),
    "message's audio": (message(type="input_audio", input_audio={"data": "AA=="}), "a sound"),
    "message's file": (message(type="file", file={"file_id": "a"}), "a file"),
    "message's image": (message(type="image", image="photos/0.png"), "an image in the column 'messages'"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_row_that_cannot_be_scored_is_counted_and_said(folder, tmp_path, capsys, kind):
    row, what = OTHERS[kind]
    given = table_of([{"images": ["photos/1.png"]}, row, {"images": None}], tmp_path / "in.jsonl")
    arguments = ["entropy", str(given), str(tmp_path / "out.jsonl"), *FLAGS]
    assert main([*arguments, "--other-inputs", "error"]) == 2
    assert f"in.jsonl, line 2: {what}, which has no visual entropy (--other-inputs error)" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    assert main(arguments) == 0
    assert entropies(tmp_path / "out.jsonl") == [value_of(1), None, None]
    warning, summary = capsys.readouterr().err.splitlines()
    assert warning.endswith(f"in.jsonl, line 2: {what}, which has no visual entropy: the row's is NaN")
    assert summary.endswith(f"0 not readable in 0 rows, 1 rows without entropy for their other inputs ({what} 1)")
    (tmp_path / "out.jsonl").unlink()
    assert main([*arguments, "--other-inputs", "allow"]) == 0
    (summary,) = capsys.readouterr().err.splitlines()
    assert summary.endswith(f"({what} 1)")


MP4 = b"\0\0\0\x18ftypmp42" + bytes(16)
ELSEWHERE = {  # by what the cell holds, whatever its column is called
    "a video": ["clips/a.MP4", "https://x.org/my clip.webm?t=3", {"bytes": MP4, "path": None}, [{"path": "a.mov"}], MP4,
                b"\x1aE\xdf\xa3 webm", {"type": "video_url", "video_url": {"url": "a.mkv"}}],
    "a sound": ["a.wav", {"bytes": b"RIFF\x24\0\0\0WAVEfmt "}, "data:audio/wav;base64,AA==", b"ID3\x04",
                b"\xff\xfb\x90"],
    "a file": ["docs/b.pdf", b"%PDF-1.7"],
    "an image": ["photos/0.png", {"bytes": b"\x89PNG\r\n"}, b"\xff\xd8\xff\xe0", ["data:image/png;base64,AA=="],
                 b"RIFF\x24\0\0\0WEBP", b"\0\0\0\x18ftypavif"],
}  # fmt: skip
CELLS = [(kind, cell) for kind, cells in ELSEWHERE.items() for cell in cells]


@pytest.mark.parametrize(("kind", "cell"), CELLS, ids=[f"{kind}-{place}" for place, (kind, _) in enumerate(CELLS)])
def test_an_input_in_a_column_of_any_name_is_counted_and_said(folder, tmp_path, capsys, kind, cell):
    suffix = ".parquet" if isinstance(cell, bytes) or "bytes" in cell else ".jsonl"  # JSON holds no bytes
    rows = [{"images": "photos/1.png", "clip": None}, {"images": None, "clip": cell}, {"images": None, "clip": None}]
    given, out = table_of(rows, tmp_path / f"in{suffix}"), tmp_path / f"out{suffix}"
    assert main(["entropy", str(given), str(out), "--other-inputs", "error", *FLAGS]) == 2
    assert not out.exists()
    assert main(["entropy", str(given), str(out), *FLAGS]) == 0
    _, warning, summary = capsys.readouterr().err.splitlines()
    assert f" 2: {kind} in the column 'clip', which has no visual entropy: the row's is NaN" in warning
    assert f"1 rows without entropy for their other inputs ({kind} in the column 'clip' 1)" in summary
    first, *others = entropies(out)
    assert first == value_of(1)
    assert all(value is None or np.isnan(value) for value in others)


def test_an_input_beside_images_is_said_once_and_the_entropy_stays(folder, tmp_path, capsys):
    rows = [{"images": "photos/1.png", "source": "a.mp4", "place": [1, 2]}] * 3
    for suffix in (".jsonl", ".parquet"):
        given, out = table_of(rows, tmp_path / f"in{suffix}"), tmp_path / f"out{suffix}"
        assert main(["entropy", str(given), str(out), *FLAGS]) == 0
        assert entropies(out) == [value_of(1)] * 3
        (summary,) = capsys.readouterr().err.splitlines()
        assert "3 rows with images and a video in the column 'source', which is not in their entropy" in summary


TEXTS = [
    "What is in clip.mp4?",
    "It ends in a name: clip.mp4",
    "a.mp4\nb",
    "no dot",
    "",
    "x" * 2000 + ".mp4",
    "4.5",
    "a.b",
]


def test_texts_and_numbers_are_no_input(folder, tmp_path, capsys):
    rows = [{"images": None, "question": text, "tokens": [1, 2], "answer": {"text": text}, "n": 3} for text in TEXTS]
    given = table_of([{"images": "photos/1.png"}, *rows], tmp_path / "in.jsonl")
    assert main(["entropy", str(given), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    assert "other inputs" not in capsys.readouterr().err


def test_a_csv_file_tells_a_video_by_its_name(folder, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("image,clip\nphotos/1.png,\n,clips/a.mp4\n,\n")
    assert main(["entropy", str(tmp_path / "in.csv"), str(tmp_path / "out.csv"), *FLAGS]) == 0
    assert "in.csv, row 2: a video in the column 'clip', which has no visual entropy" in capsys.readouterr().err


def test_pixels_are_told_by_their_shape():
    assert medium_of(np.zeros((4, 4, 3), "uint8")) == medium_of(crop(0)) == "an image"
    assert medium_of(np.zeros((2, 4, 4, 3), "uint8")) == "a video"
    assert medium_of([np.zeros((2, 4, 4, 3), "uint8")]) == "a video"
    assert medium_of(np.zeros((4, 4), "uint8")) is medium_of(np.zeros((4, 4, 3))) is medium_of(3) is None
    assert medium_of(np.array(["a.mp4", "b"], dtype=object)) == "a video"


def test_the_scorer_sees_other_columns_of_a_batch(folder, tmp_path, caplog):
    scorer = EntropyScorer(root=tmp_path, **SMALL)
    batch = {"images": ["photos/1.png", None], "clip": [None, "a.mp4"]}
    values = scorer(batch)["visual_entropy"]
    assert values[0] == value_of(1)
    assert np.isnan(values[1])
    assert "row 2 of the batch: a video in the column 'clip' has no visual entropy" in caplog.text
    assert np.array_equal(np.array(scorer(pa.table(batch))["visual_entropy"]), values, equal_nan=True)


def test_placeholders_in_messages_and_empty_columns_are_no_other_input(folder, tmp_path, capsys):
    content = [{"type": "image"}, {"type": "video"}, {"type": "audio"}, {"type": "text", "text": "?"}]
    row = {"images": ["photos/0.png"], "videos": [], "video": None, "audio": None, "messages": [{"role": "user"}]}
    row["prompt"] = [{"role": "user", "content": content}, {"role": "assistant", "content": None}]
    rows = [row, row | {"prompt": "text", "videos": [None], "video": {"video": None}}]
    given = table_of(rows, tmp_path / "in.jsonl")
    assert main(["entropy", str(given), str(tmp_path / "out.jsonl"), *FLAGS]) == 0
    assert entropies(tmp_path / "out.jsonl") == [value_of(0)] * 2
    assert "other inputs" not in capsys.readouterr().err


@pytest.mark.parametrize(("choice", "status"), [("warn", 2), ("allow", 0)])
def test_where_only_videos_are_nothing_is_written_unless_it_is_allowed(tmp_path, capsys, choice, status):
    given = table_of([{"videos": ["a.mp4"]}] * 12, tmp_path / "in.jsonl")
    assert main(["entropy", str(given), str(tmp_path / "out.jsonl"), "--other-inputs", choice, *FLAGS]) == status
    err = capsys.readouterr().err
    assert "12 rows without entropy for their other inputs (a video 12)" in err
    assert len(err.splitlines()) == (11 if choice == "warn" else 1)
    assert left(tmp_path) == ["in.jsonl"] if status else ["in.jsonl", "out.jsonl"]


def test_the_scorer_says_what_it_cannot_score(caplog):
    found = EntropyScorer(**SMALL)({"image": [crop(0), crop(1)], "video": [None, "a.mp4"]})["visual_entropy"]
    assert found[0] == value_of(0)
    assert np.isnan(found[1])
    assert [record.getMessage() for record in caplog.records] == [
        "row 2 of the batch: a video has no visual entropy, the row's is NaN"
    ]


def test_frames_may_be_arrays_and_tensors():
    frames = np.stack([np.asarray(crop(i)) for i in range(3)])
    found = EntropyScorer(**SMALL)({"video": [frames, list(frames)], "images": [[list(frames)], None]})
    expected = [value_of(0, 1, 2, 0, 1, 2), value_of(0, 1, 2)]
    assert found["visual_entropy"].tolist() == expected


def test_a_table_by_image_counts_what_it_leaves_out(folder, tmp_path, capsys):
    rows = [{"images": ["photos/0.png"], "videos": ["a.mp4"]}, {"images": ["photos/1.png", "photos/0.png"]}]
    given = table_of(rows, tmp_path / "in.json")
    assert main(["entropy", str(given), str(tmp_path / "out.json"), "--by-image", *FLAGS]) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "photos/0.png": value_of(0),
        "photos/1.png": value_of(1),
    }
    err = capsys.readouterr().err
    assert "in.json, row 1: a video, which has no visual entropy" in err
    assert main(["entropy", str(given), str(tmp_path / "out.jsonl"), "--by-image", *FLAGS]) == 2
    assert "out.jsonl: expected a name that ends in .json, for a table by image" in capsys.readouterr().err


# --- JSON arrays and CSV ----------------------------------------------------------------------------


def test_a_json_array_comes_back_with_a_key_more_and_its_numbers_as_they_were(folder, tmp_path):
    first = '{"image": "photos/0.png",\n  "a": 1.50, "b": NaN, "c": "\\ud800"\n }'
    text = f'\ufeff [\n {first},{{"extra_info": {{"x": 1}}}} ,{{}}]\n'
    (tmp_path / "in.json").write_text(text, encoding="utf-8")
    for out in (tmp_path / "out.json", tmp_path / "out.jsonl"):
        assert main(["entropy", str(tmp_path / "in.json"), str(out), *FLAGS]) == 0
        written = out.read_text()
        assert '"a": 1.50, "b": NaN, "c": "\\ud800"' in written
        rows = json.loads(written) if out.suffix == ".json" else [json.loads(line) for line in written.splitlines()]
        assert rows[0]["visual_entropy"] == value_of(0)
        assert rows[1] == {"extra_info": {"x": 1, "visual_entropy": None}, "visual_entropy": None}
        assert rows[2] == {"visual_entropy": None}


def test_a_json_file_may_hold_lines_and_no_rows(folder, tmp_path):
    (tmp_path / "in.json").write_text('{"image": "photos/0.png"}\n{"image": "photos/1.png"}\n')
    assert main(["entropy", str(tmp_path / "in.json"), str(tmp_path / "out.json"), *FLAGS]) == 0
    assert entropies(tmp_path / "out.json") == [value_of(0), value_of(1)]
    (tmp_path / "none.json").write_text("[ ]")
    with pytest.raises(ValueError, match="expected a column 'images' or 'image' or 'messages', got none"):
        json_rows.JsonArray(tmp_path / "none.json", None, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "in.json: expected the end of the array, got the end of the file after 0 rows"),
        ('[{"image": "x"}', "in.json, row 1: expected a comma or the end of the array after it"),
        ('[{"image": "x"},]', "in.json, row 1: expected a row after the comma, got the end of the array"),
        ('[{"image": "x"},', "in.json: expected the end of the array, got the end of the file after 1 rows"),
        ('[{"image": "x"}] x', "in.json: expected nothing after the array, got 'x'"),
        ('[{"image": "x"}, 3]', "in.json, row 2: expected a JSON object, got 3"),
        ('[{"image": "x"}, {"a" 3}]', "in.json, row 2: expected a JSON object, got '{\"a\" 3}]' ("),
        ('[{"image": "x", "image": "y"}]', 'in.json, row 1: expected a JSON object, got \'{"image": "x", "image"'),
        ('[{"image": "x", "image": "y"}]', "(duplicate key 'image')"),
        ('{"image": "x"} 3', "in.json, row 2: expected a JSON object, got 3"),
        (b'[{"image": "\xff"}]', "in.json: expected JSON in UTF-8, got "),
    ],
)
def test_an_array_that_is_none_is_an_error_with_its_row(tmp_path, capsys, text, message):
    (tmp_path / "in.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["entropy", str(tmp_path / "in.json"), str(tmp_path / "out.json"), *FLAGS]) == 2
    assert message in capsys.readouterr().err


def test_csv_comes_back_with_a_column_more(folder, tmp_path, capsys):
    text = 'image,"a, b",text\r\nphotos/0.png,1.50,"two\nlines ""here"""\r\n,x,\r\n\r\nphotos/broken.jpg,y,é\r\n'
    (tmp_path / "in.csv").write_text(text, encoding="utf-8-sig", newline="")
    assert main(["entropy", str(tmp_path / "in.csv"), str(tmp_path / "out.csv"), *FLAGS]) == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv_file.csv.reader(file)
    assert header == ["image", "a, b", "text", "visual_entropy"]
    assert [row[:3] for row in rows] == [
        ["photos/0.png", "1.50", 'two\nlines "here"'], ["", "x", ""], ["photos/broken.jpg", "y", "é"],
    ]  # fmt: skip
    assert float(rows[0][3]) == value_of(0)
    assert [row[3] for row in rows[1:]] == ["", ""]
    assert "in.csv, row 3, image 1: cannot be read" in capsys.readouterr().err


def test_a_value_of_csv_may_be_a_whole_image(tmp_path):
    image = encoded(crop(0, (256, 256)))
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    assert len(url) > 131_072
    (tmp_path / "in.csv").write_text(f'image\n"{url}"\n')
    assert main(["entropy", str(tmp_path / "in.csv"), str(tmp_path / "out.csv"), *FLAGS]) == 0
    assert float((tmp_path / "out.csv").read_text().split(",")[-1]) == pytest.approx(
        entropy(crop(0, (256, 256))), abs=1e-6
    )


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", [], "in.csv: expected a header with the names of columns, got an empty file"),
        ("image,a\nx\n", [], "in.csv, line 2: expected 2 values, as in the header, got 1"),
        ("image,a\n\nx,y,z\n", [], "in.csv, line 3: expected 2 values, as in the header, got 3"),
        ("image,a,a\nx,1,2\n", [], "in.csv: expected columns of different names, got 'a' twice"),
        ("image,visual_entropy\nx,1\n", [], "in.csv: expected no column 'visual_entropy'"),
        ("image,extra_info\nx,1\n", [], "in.csv: expected no column 'extra_info', as CSV holds no objects"),
        ('image\n"x\n', [], "in.csv, line 3: expected CSV in UTF-8, got unexpected end of data"),
        (b"image\n\xff\n", [], "expected CSV in UTF-8, got 'utf-8' codec"),
        ("a\nx\n", [], "images: expected a column 'images' or 'image' or 'messages', got a"),
        ("image\nphotos/0.png\n", ["--extra-info"], "expected no extra_info, as CSV holds no objects"),
    ],
)
def test_csv_that_is_none_is_an_error_with_its_line(folder, tmp_path, capsys, text, options, message):
    (tmp_path / "in.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["entropy", str(tmp_path / "in.csv"), str(tmp_path / "out.csv"), *options, *FLAGS]) == 2
    assert message in capsys.readouterr().err
    assert "out.csv" not in left(tmp_path)


# --- parquet ----------------------------------------------------------------------------------------


def image_rows(*numbers, **more):
    return [{"image": {"bytes": encoded(crop(n)), "path": f"{n}.png"}, "text": "x" * 100, **more} for n in numbers]


def shards(home):
    """A folder as a hub has it."""
    parts = {"data/train-00000-of-00002": (0, 1), "data/train-00001-of-00002": (2,), "data/test-00000-of-00001": (3, 0)}
    for name, numbers in parts.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(image_rows(*numbers)).replace_schema_metadata({"of": name})
        pyarrow.parquet.write_table(table, home / f"{name}.parquet", compression="zstd")
    (home / "README.md").write_text("a data set")
    return home


def test_a_folder_of_shards_becomes_a_folder_of_shards(tmp_path, capsys):
    home = shards(tmp_path / "in")
    broken = pa.Table.from_pylist([{"image": {"bytes": b"?", "path": "a"}}] * 2)
    pyarrow.parquet.write_table(broken, home / "data/z.parquet")
    assert main(["entropy", str(home), str(tmp_path / "out"), "--extra-info", *FLAGS]) == 0
    assert "data/z.parquet, row 2, image 1: cannot be read" in capsys.readouterr().err
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert names == sorted(path.relative_to(home).as_posix() for path in home.rglob("*.parquet"))
    for name, numbers in (("train-00000-of-00002", (0, 1)), ("train-00001-of-00002", (2,))):
        before, after = (pyarrow.parquet.read_table(top / f"data/{name}.parquet") for top in (home, tmp_path / "out"))
        assert after.schema.metadata[b"of"].decode() == f"data/{name}"
        assert after.drop_columns(["visual_entropy", "extra_info"]).equals(before)
        assert after["visual_entropy"].to_pylist() == [value_of(number) for number in numbers]


def test_images_beside_shards_are_refused_with_what_to_do(tmp_path, capsys):
    home = shards(tmp_path / "in")
    crop(0).save(home / "logo.png")
    assert main(["entropy", str(home), str(tmp_path / "out"), *FLAGS]) == 2
    assert "got logo.png beside data/test-00000-of-00001.parquet; name the folder inside it" in capsys.readouterr().err
    assert main(["entropy", str(home / "data"), str(tmp_path / "out"), *FLAGS]) == 0
    assert main(["entropy", str(home / "data"), str(tmp_path / "out.parquet"), *FLAGS]) == 2
    assert "no suffix, as a folder is written" in capsys.readouterr().err


@pytest.mark.parametrize("codec", ["NONE", "SNAPPY", "GZIP", "BROTLI", "LZ4", "ZSTD"])
def test_parquet_is_written_with_the_codec_it_was_read_with(tmp_path, codec):
    pyarrow.parquet.write_table(pa.Table.from_pylist(image_rows(0)), tmp_path / "in.parquet", compression=codec)
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "--extra-info", *FLAGS]) == 0
    group = pyarrow.parquet.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0)
    found = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    assert set(found) == {"image.bytes", "image.path", "text", "visual_entropy", "extra_info.visual_entropy"}
    assert set(found.values()) == {"UNCOMPRESSED" if codec == "NONE" else codec}


def test_columns_keep_the_codec_of_each(tmp_path):
    codecs = {"image.bytes": "NONE", "image.path": "ZSTD", "text": "GZIP"}
    pyarrow.parquet.write_table(pa.Table.from_pylist(image_rows(0)), tmp_path / "in.parquet", compression=codecs)
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *FLAGS]) == 0
    group = pyarrow.parquet.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0)
    found = [group.column(i).compression for i in range(group.num_columns)]
    assert found == ["UNCOMPRESSED", "ZSTD", "GZIP", "UNCOMPRESSED"]


def corrupt(path, column):
    """Overwrite the first page of a column."""
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(0)
    (place,) = (group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == column)
    text = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    text[start : start + place.total_compressed_size] = b"\xa5" * place.total_compressed_size
    path.write_bytes(text)


@pytest.mark.parametrize("column", ["image.bytes", "text"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_damaged_parquet_file_is_named_and_nothing_is_written(tmp_path, capsys, column, whole):
    home = shards(tmp_path / "in")
    bad = home / "data/train-00001-of-00002.parquet"
    corrupt(bad, column)
    given, out = (home, tmp_path / "out") if whole else (bad, tmp_path / "out.parquet")
    assert main(["entropy", str(given), str(out), *FLAGS]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith(f"durian-adv entropy: {bad}: expected a table in parquet, got one that cannot be read (")
    assert not {"out", "out.partial", "out.parquet", "out.partial.parquet"} & set(left(tmp_path))


def test_two_columns_of_one_name_are_refused(tmp_path, capsys):
    rows = pa.table([pa.array(["x"]), pa.array(["y"]), pa.array(["z"])], names=["image", "a", "a"])
    pyarrow.parquet.write_table(rows, tmp_path / "in.parquet")
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *FLAGS]) == 2
    assert "in.parquet: expected columns of different names, got 'a' twice" in capsys.readouterr().err
    with pytest.raises(ValueError, match="batch: expected columns of different names, got 'a' twice"):
        EntropyScorer(**SMALL)(rows)


# --- the terminal -----------------------------------------------------------------------------------


def test_a_terminal_has_a_progress_bar_and_a_file_has_none(folder, tmp_path):
    arguments = [*COMMAND, "entropy", str(folder), str(tmp_path / "out.jsonl"), *FLAGS]
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    seen = b""
    with subprocess.Popen(arguments, stderr=slave) as process:
        os.close(slave)
        while True:
            try:
                more = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            seen += more
            if not more:
                break
    os.close(master)
    assert process.returncode == 0
    assert b"6/6 [" in seen


def test_escape_codes_of_names_do_not_reach_the_terminal(folder, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps({"image": ["\x1b[2J\u202e\n.png", "photos/0.png"]}) + "\n")
    assert main(["entropy", str(tmp_path / "in.jsonl"), str(tmp_path / "\x1b]0;out\x07.jsonl"), *FLAGS]) == 0
    err = capsys.readouterr().err
    assert "\\x1b[2J\\u202e\\n.png: FileNotFoundError" in err
    assert "\x1b" not in err
    assert main(["entropy", str(tmp_path / "\x1b[31m.jsonl"), str(tmp_path / "o.jsonl"), *FLAGS]) == 2
    assert "\\x1b[31m.jsonl: does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["open", "encode", "decode", "write"])
def test_ctrl_c_ends_in_one_line_and_leaves_nothing_half_written(folder, tmp_path, monkeypatch, capsys, where):
    place, name = {
        "open": (sources, "open_source"),
        "encode": (EfficientNetEncoder, "entropies"),
        "decode": (EfficientNetEncoder, "prepare"),
        "write": (parquet.Parquet, "write"),
    }[where]
    inner = getattr(place, name)

    def interrupted(*given):
        found = inner(*given)
        signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(place, name, interrupted)
    pyarrow.parquet.write_table(pa.table({"image": [f"photos/{i}.png" for i in range(4)]}), tmp_path / "in.parquet")
    arguments = ["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *FLAGS]
    assert main(arguments) == 130
    assert capsys.readouterr().err == "durian-adv entropy: interrupted\n"
    assert not {"out.parquet", "out.partial.parquet"} & set(left(tmp_path))
    monkeypatch.undo()
    assert main(arguments) == 0
    known = 4 if where == "write" else 0
    assert f"{4 - known} images computed (efficientnet-lite0, stride8, 64 px), {known} known" in capsys.readouterr().err


def test_a_run_interrupted_by_the_keyboard_says_so_and_goes_on_when_started_again(tmp_path, capsys):
    home = tmp_path / "photos"
    home.mkdir()
    for i in range(40):
        crop(i, (128, 128)).save(home / f"{i:02}.png")
    arguments = ["entropy", str(home), str(tmp_path / "out.jsonl"), "--batch-size", "1"]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "out.jsonl.cache").exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "durian-adv entropy: interrupted\n")
    assert left(tmp_path) == ["out.jsonl.cache", "photos"]
    assert main([*arguments, *FLAGS]) == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("command", ["help", "metrics", "entropy"])
def test_a_reader_that_has_left_is_no_traceback(folder, tmp_path, command, stream):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"prompt": i % 2, "reward": i % 3, "step": 1}) + "\n" for i in range(8)))
    arguments = {
        "help": ["--help"],
        "metrics": ["metrics", str(log)],
        "entropy": ["entropy", str(folder), str(tmp_path / "out.jsonl"), *FLAGS],
    }[command]
    reader, writer = os.pipe()
    os.close(reader)
    other = "stderr" if stream == "stdout" else "stdout"
    done = subprocess.run([*COMMAND, *arguments], **{stream: writer, other: subprocess.PIPE}, text=True)
    os.close(writer)
    said = getattr(done, other)
    assert "Traceback" not in said
    assert "Broken" not in said
    assert "Exception" not in said
    assert done.returncode in (0, 141)


def test_what_is_still_to_be_written_to_a_reader_that_has_left_goes_nowhere(tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"prompt": i % 2, "reward": i % 3, "step": 1}) + "\n" for i in range(8)))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["metrics", str(log)]) == 141
        print("more", flush=True)


def test_an_error_of_the_disk_that_names_no_file_gets_the_name_of_the_output(tmp_path):
    full = r"out\.jsonl: cannot be written: No space left on device$"
    with pytest.raises(OSError, match=full), aside.naming(tmp_path / "out.jsonl"):
        Path("/dev/full").write_text("text")
    with pytest.raises(FileNotFoundError, match="none/x"), aside.naming(tmp_path / "out.jsonl"):
        (tmp_path / "none/x").write_text("")


def test_a_parquet_file_without_row_groups_gets_the_column(tmp_path):
    schema = pa.schema({"image": pa.string()})
    pyarrow.parquet.ParquetWriter(tmp_path / "in.parquet", schema).close()
    assert pyarrow.parquet.ParquetFile(tmp_path / "in.parquet").metadata.num_row_groups == 0
    assert main(["entropy", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), *FLAGS]) == 0
    after = pyarrow.parquet.read_schema(tmp_path / "out.parquet")
    assert after == schema.append(pa.field("visual_entropy", pa.float64()))


def test_a_full_disk_behind_the_standard_output_is_an_error(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"prompt": i % 2, "reward": i % 3, "step": 1}) + "\n" for i in range(8)))
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "metrics", str(log)], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "durian-adv metrics: [Errno 28] No space left on device"
