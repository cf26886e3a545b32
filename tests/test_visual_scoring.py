"""Entropies of rows: each distinct image is computed once, in batches that fit; and the cache."""

from __future__ import annotations

import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import crop
from small_encoder import Counting, entropy, score, shared_encoder

from durian_adv.data.scoring.cache import Cache, CacheError
from durian_adv.data.scoring.media import Media, pictures_of
from durian_adv.data.scoring.rows import row_entropies

OPTIONS = {"batch_size": 2, "root": None, "unreadable": print, "unscored": print}


def test_several_images_have_their_mean_and_one_that_cannot_be_read_makes_it_nan():
    a, b, c = (crop(i) for i in range(3))
    values, told = score([[a, b, c], [], None, [a, b"?"], [a]], shared_encoder())
    assert values[0] == pytest.approx((entropy(a) + entropy(b) + entropy(c)) / 3, abs=1e-6)
    assert all(math.isnan(v) for v in values[1:4])
    assert values[4] == pytest.approx(entropy(a), abs=1e-6)
    assert [what[:2] for what in told] == [(3, 1)]


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=12), st.integers(1, 5), st.booleans())
def test_each_distinct_image_is_computed_once_whatever_the_rows_and_batches(rows, batch_size, grouped):
    sizes = [(64, 64), (64, 48), (48, 64)]
    images = [crop(i, sizes[i % 3]) for i in range(7)]
    single, encoder = Counting(), Counting(grouped)
    alone = {i: single.entropies([single.prepare(images[i])[1]])[0] for i in {i for row in rows for i in row}}
    values, told = score([[images[i] for i in row] for row in rows], encoder, batch_size=batch_size)
    assert not told
    assert sum(encoder.batches) == len(alone)
    assert max(encoder.batches, default=0) <= batch_size
    for row, value in zip(rows, values, strict=True):
        expected = sum(alone[i] for i in row) / len(row) if row else math.nan
        assert value == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_images_wait_for_others_of_their_size_but_not_forever():
    cells = [crop(i, (33 + i, 64)) for i in range(20)]  # no two of one size
    encoder, taken = Counting(grouped=True), []
    found = row_entropies((taken.append(i) or Media([c], []) for i, c in enumerate(cells)), encoder, {}, **OPTIONS)
    next(found)
    assert len(taken) == 16  # eight batches of two
    assert len(list(found)) == 19
    assert encoder.batches == [1] * 20
    two = Counting(grouped=True)
    score([crop(i, (64, 48 + 16 * (i % 2))) for i in range(8)], two)
    assert two.batches == [4, 4]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_full_batch_does_not_wait(grouped):
    encoder, taken = Counting(grouped), []
    found = row_entropies((taken.append(i) or Media([crop(i)], []) for i in range(4)), encoder, {}, **OPTIONS)
    assert [next(found)[0], next(found)[0], taken, encoder.batches] == [0, 1, [0, 1], [2]]


def test_every_image_of_a_row_is_looked_at_even_if_one_cannot_be_read():
    known = {}
    (value,), told = score([[b"?", crop(0), b"!"]], Counting(), known)
    assert math.isnan(value)
    assert [what[:2] for what in told] == [(0, 0), (0, 2)]
    assert list(known.values()) == pytest.approx([entropy(crop(0))], abs=1e-6)


def test_an_encoder_that_loses_an_image_is_an_error():
    encoder = Counting()
    encoder.entropies = lambda prepared: [1.0] * (len(prepared) - 1)
    with pytest.raises(ValueError, match="shorter"):
        score([crop(0), crop(1)], encoder)


def test_where_too_many_wait_the_fullest_batch_goes_first():
    # eight batches of four: ten sizes, three images of each, then two more of another size
    cells = [crop(i, (33 + i // 3, 64)) for i in range(30)] + [crop(i, (50, 64)) for i in range(30, 32)]
    encoder = Counting(grouped=True)
    found = row_entropies(map(pictures_of, cells), encoder, {}, **{**OPTIONS, "batch_size": 4})
    first = [next(found)[0] for _ in range(3)]
    assert encoder.batches == [3]
    assert first == [0, 1, 2]
    assert sorted(row for row, _ in found) == list(range(3, 32))
    assert encoder.batches == [3] * 10 + [2]


def test_a_row_of_many_images_is_encoded_in_batches():
    values, told = score([[crop(i) for i in range(7)]], encoder := Counting(), batch_size=2)
    assert (encoder.batches, told) == ([2, 2, 2, 1], [])
    assert values == pytest.approx([sum(entropy(crop(i)) for i in range(7)) / 7], abs=1e-6)


# --- the cache --------------------------------------------------------------------------------------


def test_the_cache_keeps_entropies_by_image_and_encoder(tmp_path):
    first, other = (Cache(tmp_path / "c", name) for name in ("one", "two"))
    first.update({b"a": 1.5, b"b": math.nan})
    first[b"c"] = 2.0
    assert first[b"a"] == 1.5
    assert math.isnan(first[b"b"])
    assert sorted(first) == [b"a", b"b", b"c"]
    assert (len(first), len(other)) == (3, 0)
    assert b"a" not in other
    with pytest.raises(KeyError, match="b'a'"):
        other[b"a"]
    with pytest.raises(TypeError, match=r"^a cache of entropies forgets nothing$"):
        del first[b"a"]
    first.close()
    assert Cache(tmp_path / "c", "one")[b"c"] == 2.0


def test_a_cache_that_is_dropped_leaves_no_open_file(tmp_path):
    """Python 3.13 warns of a connection that is collected open, as that of a scorer nobody closes was."""
    cache = Cache(tmp_path / "c", "one")
    file = cache._file
    del cache
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        file.execute("SELECT 1")


def test_a_cache_may_be_dropped_in_a_thread_that_did_not_open_it(tmp_path, recwarn):
    with ThreadPoolExecutor(1) as elsewhere:
        cache = elsewhere.submit(Cache, tmp_path / "c", "one").result()
        file = cache._file
        del cache  # SQLite lets no other thread close it
        assert elsewhere.submit(lambda: file.execute("SELECT 1").fetchone()).result() == (1,)
        elsewhere.submit(file.close).result()
    assert not recwarn.list


def test_the_cache_waits_a_minute_for_another_process_that_writes(tmp_path):
    cache = Cache(tmp_path / "c", "one")
    assert cache._file.execute("PRAGMA busy_timeout").fetchone() == (60_000,)  # of milliseconds


def test_another_file_is_no_cache(tmp_path):
    (tmp_path / "c").write_text("something else " * 100)
    with pytest.raises(CacheError, match="c: expected a cache of entropies, got another file"):
        Cache(tmp_path / "c", "one")
    with pytest.raises(CacheError, match="none/c: parent directory does not exist"):
        Cache(tmp_path / "none/c", "one")


def test_what_is_known_is_not_computed_again(tmp_path):
    cells = [crop(i) for i in range(3)]
    known = Cache(tmp_path / "c", "x")
    before, _ = score(cells, Counting(), known)
    idle = Counting()
    again, _ = score([*cells, [cells[0], cells[1]]], idle, known)
    assert again == [*before, (before[0] + before[1]) / 2]
    assert idle.batches == []
