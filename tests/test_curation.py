"""Curation: which prompts are kept, how sure that is, and the two stages."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import beta, norm

import durian_adv
from durian_adv.cli import main
from durian_adv.data.curation import FATES, Curation, accuracy_figure, curate

outcomes = st.lists(st.lists(st.sampled_from((0, 1, math.nan)), min_size=6, max_size=6), max_size=20)


def wilson(k, n, level=0.95):
    """The score interval, from its formula."""
    z, p = norm.ppf(0.5 + level / 2), k / n
    middle, half = (p + z**2 / 2 / n), z * math.sqrt(p * (1 - p) / n + (z / n) ** 2 / 4)
    return max(0, (middle - half) / (1 + z**2 / n)), min(1, (middle + half) / (1 + z**2 / n))


def clopper_pearson(k, n, level=0.95):
    """The exact interval, from the quantiles of the beta distribution."""
    tail = (1 - level) / 2
    return (
        float(beta.ppf(tail, k, n - k + 1)) if k else 0.0,
        float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0,
    )


def repeated(right, samplings):
    return [1] * right + [0] * (samplings - right)


# --- accuracies -------------------------------------------------------------------------------------


@given(outcomes)
def test_accuracies_count_the_known_samplings_of_each_prompt(rows):
    found = curate(np.array(rows, dtype=float).reshape(-1, 6))
    for i, row in enumerate(rows):
        known = [x for x in row if not math.isnan(x)]
        assert found.samplings[i] == len(known)
        assert found.correct[i] == sum(known)
        assert found.accuracy[i] == pytest.approx(sum(known) / len(known) if known else math.nan, nan_ok=True)


@given(outcomes, st.randoms(use_true_random=False))
def test_a_table_of_prompt_and_correct_in_any_order_gives_what_the_array_gives(rows, random):
    array = curate(np.array(rows, dtype=float).reshape(-1, 6), prompts=[f"p{i}" for i in range(len(rows))])
    table = [(f"p{i}", None if math.isnan(x) else bool(x)) for i, row in enumerate(rows) for x in row]
    random.shuffle(table)
    found = curate([x for _, x in table], prompts=[name for name, _ in table])
    place = {name: i for i, name in enumerate(found.prompt)}
    order = [place[name] for name in array.prompt]
    for field in Curation._fields[1:7]:
        np.testing.assert_array_equal(getattr(found, field)[order], getattr(array, field))


@given(outcomes, st.sampled_from(("estimate", "possible", "certain")))
def test_numbers_of_correct_samplings_give_what_the_samplings_give(rows, keep):
    array = np.array(rows, dtype=float).reshape(-1, 6)
    known = (~np.isnan(array)).sum(1)
    expected = curate(array, keep=keep, prompts=[i // 2 for i in range(len(rows))])
    found = curate(np.nansum(array, 1), samplings=known, keep=keep, prompts=[i // 2 for i in range(len(rows))])
    for field in Curation._fields[:7]:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def test_one_number_of_samplings_is_that_of_all_prompts():
    found = curate([0, 3, 24], samplings=24)
    assert found.samplings.tolist() == [24, 24, 24]
    assert found.correct.tolist() == [0, 3, 24]
    assert curate(np.zeros((3, 0))).samplings.tolist() == [0, 0, 0]


def test_prompt_ids_may_be_anything_hashable_and_keep_their_type():
    found = curate([1, 0, 1, 0], prompts=[("a", 1), 7, "x", ("a", 1)])
    assert found.prompt.tolist() == [("a", 1), 7, "x"]
    assert found.samplings.tolist() == [2, 1, 1]
    ids = curate([[1, 0]], prompts=np.array([5])).prompt.tolist()
    assert ids == [5]


# --- the band and the cut ---------------------------------------------------------------------------


def test_both_edges_of_the_band_are_kept_and_the_cut_belongs_to_stage_1():
    fates = curate(
        [repeated(k, 1000) for k in (83, 84, 249, 250, 870, 871)],
        cut=0.25,
    ).fate.tolist()
    assert fates == ["too_hard", "stage_2", "stage_2", "stage_1", "stage_1", "too_easy"]


def test_an_interval_that_touches_the_band_may_lie_in_it_and_one_that_fills_it_does():
    low, high = (getattr(curate([[0, 0, 1, 1, 1]]), edge)[0] for edge in ("low", "high"))
    for band, keep, kept in (
        ((high, 1.0), "possible", True),
        ((math.nextafter(high, 1), 1.0), "possible", False),
        ((0.0, low), "possible", True),
        ((0.0, math.nextafter(low, 0)), "possible", False),
        ((low, high), "certain", True),
        ((math.nextafter(low, 1), high), "certain", False),
        ((low, math.nextafter(high, 0)), "certain", False),
    ):
        (fate,) = curate([[0, 0, 1, 1, 1]], band=band, cut=band[0], keep=keep).fate
        assert fate.startswith("stage") == kept, (band, keep)


def test_the_default_band_is_that_of_the_reviews_and_the_cut_a_third():
    found = curate([[0, 1]])
    assert found.band == (0.084, 0.87)
    assert found.cut == 1 / 3


@given(outcomes, st.sampled_from(("estimate", "possible", "certain")))
def test_fates_follow_from_accuracy_and_interval(rows, keep):
    found = curate(np.array(rows, dtype=float).reshape(-1, 6), keep=keep, band=(0.2, 0.8), cut=0.5)
    for p, low, high, fate in zip(found.accuracy, found.low, found.high, found.fate, strict=True):
        inside = {
            "estimate": 0.2 <= p <= 0.8,
            "possible": not math.isnan(p) and not (high < 0.2 or low > 0.8),
            "certain": low >= 0.2 and high <= 0.8,
        }[keep]
        assert inside == fate.startswith("stage")
        if inside:
            assert fate == ("stage_2" if p < 0.5 else "stage_1")
        else:
            assert fate == ("too_hard" if p < 0.2 else "too_easy" if p > 0.8 else "uncertain")
    assert set(found.of("stage_1")) | set(found.of("stage_2")) == set(
        found.prompt[np.char.startswith(found.fate, "stage")]
    )


def test_edges_belong_to_the_band_whatever_is_kept():
    hard, easy = curate([repeated(0, 8)]).high[0], curate([repeated(8, 8)]).low[0]
    assert curate([repeated(0, 8)], keep="possible", band=(hard, 0.9), cut=0.5).fate.tolist() == ["stage_2"]
    assert curate([repeated(8, 8)], keep="possible", band=(0.01, easy), cut=0.1).fate.tolist() == ["stage_1"]
    for method in ("wilson", "exact"):
        lowest = curate([repeated(0, 200)], keep="certain", band=(0.0, 0.5), cut=0.2, method=method)
        assert lowest.fate.tolist() == ["stage_2"]
        highest = curate([repeated(200, 200)], keep="certain", band=(0.5, 1.0), cut=0.6, method=method)
        assert highest.fate.tolist() == ["stage_1"]
    certain = curate([repeated(1, 10), repeated(9, 10)], keep="certain", band=(0.1, 0.9))
    assert certain.fate.tolist() == ["uncertain", "uncertain"]
    assert curate([[1]], keep="possible", band=(0.1, 0.9)).fate.tolist() == ["stage_1"]


def test_the_cut_may_lie_on_an_edge_of_the_band():
    for cut, fate in ((0.25, "stage_1"), (0.75, "stage_2")):
        assert curate([[0, 1]], band=(0.25, 0.75), cut=cut).fate.tolist() == [fate]


def test_prompts_without_any_sampling_are_counted():
    found = curate(np.zeros((2, 0)))
    assert found.samplings.tolist() == found.correct.tolist() == [0, 0]
    assert found.fate.tolist() == ["uncertain"] * 2


# --- intervals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("samplings", [1, 8, 24, 48])
def test_intervals_are_those_of_their_formulas(samplings):
    rows = [repeated(k, samplings) for k in range(samplings + 1)]
    for method, formula in (("wilson", wilson), ("exact", clopper_pearson)):
        for level in (0.95, 0.8):
            found = curate(rows, method=method, confidence_level=level)
            expected = np.array([formula(k, samplings, level) for k in range(samplings + 1)])
            np.testing.assert_allclose(np.stack([found.low, found.high], 1), expected, atol=1e-9)
    continuity = curate(rows, method="wilsoncc")
    plain = curate(rows)
    assert (continuity.low <= plain.low).all()
    assert (continuity.high >= plain.high).all()


def test_no_success_in_eight_samplings_is_not_certain_and_none_in_two_hundred_is():
    for samplings, fate in ((8, "stage_2"), (200, "too_hard")):
        found = curate([repeated(0, samplings)], keep="possible")
        assert found.fate.tolist() == [fate]
    assert curate([repeated(2, 8)], keep="certain").fate.tolist() == ["uncertain"]
    assert curate([repeated(100, 200)], keep="certain").fate.tolist() == ["stage_1"]


def test_a_prompt_without_a_known_sampling_is_uncertain_whatever_is_kept():
    for keep in ("estimate", "possible", "certain"):
        found = curate([[math.nan, None]], keep=keep)
        assert found.fate.tolist() == ["uncertain"]
        assert (found.low[0], found.high[0]) == (0, 1)


def test_nothing_gives_nothing():
    assert curate(np.zeros((0, 8))).prompt.tolist() == []
    assert curate([], prompts=[]).fate.tolist() == []
    assert accuracy_figure(curate([], prompts=[])).axes


# --- the picture ------------------------------------------------------------------------------------


def test_the_picture_counts_every_sampled_prompt_once(tmp_path):
    rng = np.random.default_rng(0)
    found = curate(rng.random((500, 8)) < rng.beta(0.4, 0.4, (500, 1)), keep="certain", band=(0.02, 0.98))
    figure = accuracy_figure(found)
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches[:-1]) == 500  # the last is the band
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    shown = [fate for fate in FATES if (found.fate == fate).any()]
    assert labels == [f"{fate.replace('_', ' ')}: {(found.fate == fate).sum()}" for fate in shown]
    figure.savefig(tmp_path / "histogram.png")
    with Image.open(tmp_path / "histogram.png") as image:
        assert image.size == (700, 400)
    ragged = accuracy_figure(curate([1, 0, 1], prompts=[1, 1, 2]))
    assert "1 to 2 samplings" in ragged.axes[0].get_xlabel()


def test_the_picture_has_a_stacked_bar_for_each_accuracy_there_can_be():
    found = curate([repeated(k, 4) for k in (0, 1, 1, 2, 2, 2, 3, 4)])
    (axes,) = accuracy_figure(found).axes
    *bars, band = axes.patches
    heights = {}
    for bar in bars:
        assert bar.get_width() == pytest.approx(0.25)
        heights.setdefault(round(bar.get_x() + 0.125, 6), []).append(bar)
    assert {x: sum(bar.get_height() for bar in of) for x, of in heights.items()} == {
        0: 1,
        0.25: 2,
        0.5: 3,
        0.75: 1,
        1: 1,
    }
    for of in heights.values():  # one on the other
        assert max(bar.get_y() + bar.get_height() for bar in of) == sum(bar.get_height() for bar in of)
    assert {len({bar.get_facecolor() for bar in bars}), len(axes.containers)} == {4}
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.084, 0.87))
    assert band.get_zorder() < bars[0].get_zorder()
    assert [line.get_xdata() for line in axes.lines] == [[1 / 3, 1 / 3]]
    assert [text.get_text() for text in axes.texts] == ["cut 0.33"]
    assert axes.get_xlim() == (-0.125, 1.125)
    assert axes.get_title() == "8 prompts by accuracy"
    assert axes.get_ylabel() == "prompts"
    assert axes.get_xlabel() == "accuracy over 4 samplings (gray: the band 0.084 to 0.87)"


def test_many_or_mixed_samplings_have_ten_bars_and_prompts_without_one_none():
    many = accuracy_figure(curate([repeated(k, 1000) for k in (0, 500, 1000)]))
    mixed = accuracy_figure(curate([1, 0, 1, 1, 0, 1, math.nan], prompts=[1, 1, 1, 2, 2, 3, 4]))
    for figure, xlabel in ((many, "1000 samplings"), (mixed, "1 to 3 samplings")):
        (axes,) = figure.axes
        assert axes.patches[0].get_width() == pytest.approx(0.1)
        assert axes.get_xlim() == pytest.approx((-0.05, 1.05))
        assert axes.get_title() == "3 prompts by accuracy"
        assert xlabel in axes.get_xlabel()
    assert "over 0 samplings" in accuracy_figure(curate([[math.nan]])).axes[0].get_xlabel()


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([[[0.5, 1]]], {}, r"correct: expected 0, 1 or NaN, got 0\.5"),
        ([[[2, 1]]], {}, r"correct: expected 0, 1 or NaN, got 2\.0"),
        ([["a"]], {}, r"correct: expected an array of bool, 0, 1 or NaN, got \['a'\] \(could not convert .*\)"),
        ([["a" * 90]], {}, r"correct: expected an array of bool, 0, 1 or NaN, got \['a{58} \(could not convert .*\)"),
        ([[10**400]], {}, r"correct: expected an array of bool, 0, 1 or NaN, got \[10{58} \(.* too large .*\)"),
        ([[1, 0]], {}, r"prompts: expected the prompt of each sampling with correct of shape \(2,\)"),
        ([np.zeros((1, 1, 1))], {}, r"correct: expected shape \(B, k\), or \(N,\) with prompts, got \(1, 1, 1\)"),
        ([1], {}, r"correct: expected shape \(B, k\), or \(N,\) with prompts, got \(\)"),
        ([[1, 0]], {"prompts": [1]}, "prompts: expected 2 ids, one per row of correct, got 1"),
        ([[[1]]], {"band": (0.9, 0.1)}, r"band: expected 0 <= low < high <= 1, got \(0\.9, 0\.1\)"),
        ([[[1]]], {"band": (0.5, 0.5)}, r"band: expected 0 <= low < high <= 1, got \(0\.5, 0\.5\)"),
        ([[[1]]], {"band": (0.5, 1.5)}, r"band: expected 0 <= low < high <= 1, got \(0\.5, 1\.5\)"),
        ([[[1]]], {"band": 0.5}, r"band: expected two numbers, the lowest and the highest accuracy, got 0\.5"),
        ([[[1]]], {"band": "ab"}, "band: expected two numbers, the lowest and the highest accuracy, got 'ab'"),
        ([[[1]]], {"band": (0.1,)}, r"band: expected two numbers, the lowest and the highest accuracy, got \(0\.1,\)"),
        ([[[1]]], {"band": (0.1, "b")}, r"band\[1\]: expected a number, got str"),
        ([[[1]]], {"cut": "a"}, "cut: expected a number, got str"),
        ([[[1]]], {"cut": 0.9}, r"cut: expected a number in the band \[0\.084, 0\.87\], got 0\.9"),
        ([[[1]]], {"cut": 0.05}, r"cut: expected a number in the band \[0\.084, 0\.87\], got 0\.05"),
        ([[[1]]], {"keep": "all"}, "keep: expected one of 'estimate', 'possible', 'certain', got 'all'"),
        ([[[1]]], {"method": "wald"}, "method: expected one of 'wilson', 'wilsoncc', 'exact', got 'wald'"),
        ([[[1]]], {"confidence_level": "a"}, "confidence_level: expected a number, got str"),
        ([[[1]]], {"confidence_level": 1}, r"confidence_level: expected a number in \(0, 1\), got 1\.0"),
        ([[[1]]], {"confidence_level": 0}, r"confidence_level: expected a number in \(0, 1\), got 0\.0"),
        ([[1, 5]], {"samplings": 4}, r"correct: expected integers from 0 up, no more than samplings, got 5\.0"),
        ([[1, math.nan]], {"samplings": 4}, r"correct: expected integers from 0 up, no more than samplings, got nan"),
        ([[0.5]], {"samplings": 4}, r"correct: expected integers from 0 up, no more than samplings, got 0.5"),
        ([[1]], {"samplings": [-4]}, r"samplings: expected integers from 0 up, got -4\.0"),
        ([[1]], {"samplings": math.inf}, "samplings: expected integers from 0 up, got inf"),
        ([[1]], {"samplings": [4, 4]}, r"samplings: expected one integer, or as many as correct, \(1,\), got \(2,\)"),
        ([[1]], {"samplings": "x"}, r"samplings: expected an array of integers, got 'x' \(could not convert .*\)"),
        ([[[1]]], {"samplings": 4}, r"correct: expected shape \(B,\) with samplings, got \(1, 1\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        curate(*arguments, **options)
    with pytest.raises(TypeError, match=r"^band"):
        curate([[1]], band=b"ab")
    with pytest.raises(ValueError, match="fate: expected one of"):
        curate([[1]]).of("stage_3")


# --- the command ------------------------------------------------------------------------------------

LOG = [(name, k < right) for name, right in (("easy", 8), ("mid", 5), ("hard", 1), ("never", 0)) for k in range(8)]


def samplings(path, rows=LOG, **names):
    prompt, correct = names.get("prompt", "prompt"), names.get("correct", "correct")
    rows = [{prompt: name, correct: value} for name, value in rows]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_command_writes_two_tables_with_accuracies_and_intervals(tmp_path, capsys, suffix):
    log = samplings(tmp_path / f"log{suffix}")
    first, second, picture = (tmp_path / name for name in ("one.jsonl", f"two{suffix}", "p.png"))
    assert main(["curate", log, str(first), str(second), "--picture", str(picture)]) == 0
    assert capsys.readouterr().err == ("durian-adv curate: 4 prompts: 1 too hard, 1 stage 2, 1 stage 1, 1 too easy\n")
    (row,) = lines(first)
    assert (row["prompt"], row["samplings"], row["correct"], row["accuracy"]) == ("mid", 8, 5, 0.625)
    assert (row["low"], row["high"]) == pytest.approx(wilson(5, 8))
    written = lines(second) if suffix == ".jsonl" else pyarrow.parquet.read_table(second).to_pylist()
    assert [r["prompt"] for r in written] == ["hard"]
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_the_command_splits_the_rows_of_a_dataset_and_keeps_them_as_they_are(tmp_path, capsys):
    log = samplings(tmp_path / "log.jsonl", [(n, 0.1 + 0.9 * c) for n, c in LOG], prompt="uid", correct="reward")
    messages = [{"role": "user", "content": "?"}]
    rows = [{"id": n, "prompt": messages, "answer": n} for n in ("hard", "new", "mid", "never")]
    data = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), data)
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    options = ["--prompt", "uid", "--correct", "reward", "--above", "0.5", "--keep", "possible", "--method", "exact"]
    assert main(["curate", log, *out, *options, "--dataset", str(data)]) == 0
    assert "4 prompts: 2 stage 2, 1 stage 1, 1 not sampled" in capsys.readouterr().err
    assert lines(tmp_path / "1.jsonl") == [{**rows[2], "accuracy": 0.625}]
    assert lines(tmp_path / "2.jsonl") == [{**rows[0], "accuracy": 0.125}, {**rows[3], "accuracy": 0.0}]


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ([], {}),
        (["--band", "0.3", "0.7"], {"band": (0.3, 0.7)}),
        (["--cut", "0.7"], {"cut": 0.7}),
        (["--keep", "certain", "--band", "0", "0.95"], {"keep": "certain", "band": (0.0, 0.95)}),
        (["--keep", "possible"], {"keep": "possible"}),
        (["--keep", "estimate"], {}),
        (["--confidence-level", "0.5"], {"confidence_level": 0.5}),
        (["--method", "wilsoncc"], {"method": "wilsoncc"}),
        (["--method", "exact"], {"method": "exact"}),
        (["--method", "wilson"], {}),
    ],
)
def test_each_option_reaches_the_library(tmp_path, options, given):
    correct = [0, 1, 3, 4, 6, 8]
    log = samplings(tmp_path / "log.jsonl", [(i, k < right) for i, right in enumerate(correct) for k in range(8)])
    out = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    assert main(["curate", log, *map(str, out), *options]) == 0
    found = curate(correct, samplings=8, **given)
    columns = ("samplings", "correct", "accuracy", "low", "high")
    numbers = zip(*(getattr(found, name).tolist() for name in columns), strict=True)
    rows = [{"prompt": i} | dict(zip(columns, row, strict=True)) for i, row in enumerate(numbers)]
    for stage, path in zip(("stage_1", "stage_2"), out, strict=True):
        assert lines(path) == [row for row, fate in zip(rows, found.fate, strict=True) if fate == stage]


def test_the_prompt_of_a_rollout_log_is_its_step_and_its_number(tmp_path, capsys):
    log = tmp_path / "rollouts.jsonl"
    rows = [{"step": step, "prompt": 0, "reward": float(k < 3 * step)} for step in (1, 2) for k in range(8)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    options = ["--correct", "reward", "--prompt", "step", "prompt", "--cut", "0.5"]
    assert main(["curate", str(log), *out, *options]) == 0
    assert "2 prompts: 1 stage 2, 1 stage 1" in capsys.readouterr().err
    assert [(r["step"], r["prompt"], r["accuracy"]) for r in lines(tmp_path / "2.jsonl")] == [(1, 0, 0.375)]


def test_a_sampling_is_correct_above_the_number_given_and_not_at_it(tmp_path, capsys):
    log = samplings(tmp_path / "log.jsonl", [("a", 0.5), ("a", 0.75), ("a", 1), ("a", 0)])
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(["curate", log, *out, "--above", "0.5"]) == 0
    (row,) = lines(tmp_path / "1.jsonl")
    assert (row["samplings"], row["correct"]) == (4, 2)


def test_an_empty_table_and_a_missing_correctness_are_no_accident(tmp_path, capsys):
    out = [str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")]
    log = samplings(tmp_path / "log.parquet", [("a", None), ("a", 1.0), ("a", math.nan)])
    assert main(["curate", log, *out, "--above", "0.5"]) == 0
    assert "1 too easy" in capsys.readouterr().err
    assert pyarrow.parquet.read_table(out[0]).num_rows == 0


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('{"prompt": 1}\n', [], "expected a column 'correct', got prompt"),
        ("", [], "expected a column 'prompt', got none"),
        ('{"prompt": 1, "correct": 3}\n', [], "log.jsonl, line 1: correct: expected 0, 1, true, false or null, got 3"),
        (
            '{"prompt": 1, "correct": "x"}\n',
            [],
            "log.jsonl, line 1: correct: expected 0, 1, true, false or null, got 'x'",
        ),
        ('{"prompt": 1, "correct": "x"}\n', ["--above", "0"], "correct: expected a number or null, got 'x'"),
        ('{"prompt": 1, "correct": 1' + "0" * 400 + "}\n", [], "correct: expected 0, 1, true, false or null, got 100"),
        ('{"prompt": [1], "correct": 1}\n', [], "line 1: prompt: expected an integer or a string, got [1]"),
        ('\n{"correct": 1}\n{"prompt": 2}', [], "line 2: prompt: expected an integer or a string, got None"),
        (
            '{"prompt": 1, "correct": 1}\n{"prompt": "1", "correct": 0}',
            [],
            "line 2: expected ids of one type, got '1' where another row has 1",
        ),
        ('{"prompt": 1, "correct"\n', [], "log.jsonl, line 1: expected a JSON object, got"),
        ('{"prompt": 1, "correct": 1}\n[]', [], "log.jsonl, line 2: expected a JSON object, got []"),
        ('{"prompt": 1, "correct": 1}\n', ["--cut", "0.01"], "cut: expected a number in the band"),
        ('{"prompt": 1, "correct": 1}\n', ["--dataset", "log.jsonl", "--id", "x"], "expected a column 'x'"),
        (
            '{"prompt": 1, "correct": 1, "accuracy": 1}\n',
            ["--dataset", "log.jsonl", "--id", "prompt"],
            "expected no column 'accuracy'",
        ),
    ],
)
def test_what_cannot_be_used_is_an_error_without_a_traceback(tmp_path, monkeypatch, capsys, text, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.jsonl").write_text(text)
    assert main(["curate", "log.jsonl", "1.jsonl", "2.jsonl", *options]) == 2
    assert message in capsys.readouterr().err


def test_json_lines_are_written_as_they_were_read(tmp_path, capsys):
    rows = [
        {"id": "2024-01-01", "level": 1, "text": "x" * 3_000_000},
        {"id": "2024-01-02", "level": "two", "deep": {"a": [1, "b", None]}, "huge": 2**70},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = samplings(tmp_path / "log.jsonl", [(row["id"], k < 3) for row in rows for k in range(6)])
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(["curate", log, *out, "--dataset", str(data)]) == 0
    assert lines(tmp_path / "1.jsonl") == [{**row, "accuracy": 0.5} for row in rows]
    out = [str(tmp_path / "3.parquet"), str(tmp_path / "4.parquet")]
    capsys.readouterr()
    assert main(["curate", log, *out, "--dataset", str(data)]) == 2
    assert "3.parquet: expected a column 'level' of one type, as parquet needs" in capsys.readouterr().err
    assert main(["curate", log, *out]) == 0
    assert pyarrow.parquet.read_table(out[0]).column("prompt").to_pylist() == [row["id"] for row in rows]
    assert pyarrow.parquet.read_table(out[1]).schema == pyarrow.parquet.read_table(out[0]).schema


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_of_samplings_counts_are_kept_and_not_rows(tmp_path, suffix):
    peaks = []
    for rows in (1_000, 20_000):
        log = tmp_path / f"{rows}{suffix}"
        samplings(log, [(f"p{i % 50}", i % 3 == 0) for i in range(rows)])
        out = [str(tmp_path / f"{rows}-{stage}.jsonl") for stage in (1, 2)]
        main(["curate", str(log), *out])  # what is loaded but once
        for path in out:
            (tmp_path / path).unlink()
        tracemalloc.start()
        assert main(["curate", str(log), *out]) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    batch = 0 if suffix == ".jsonl" else 8_192 * 150  # bytes: two columns of a part of the file, as Python's own values
    assert peaks[1] < 1.5 * peaks[0] + batch


@pytest.mark.parametrize("value", [b"bytes", math.inf])
def test_what_json_cannot_hold_is_an_error_and_leaves_no_half_of_the_output(tmp_path, capsys, value):
    data = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pa.table({"id": ["hard", "mid"], "image": [value, value]}), data)
    log = samplings(tmp_path / "log.jsonl")
    assert main(["curate", log, str(tmp_path / "1.parquet"), str(tmp_path / "2.jsonl"), "--dataset", str(data)]) == 2
    assert "2.jsonl, line 1: expected what JSON can hold" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.parquet", "log.jsonl"]


FORMS = {
    "samplings": ([{"prompt": name, "correct": int(value)} for name, value in LOG], []),
    "lists": (
        [
            {"prompt": name, "correct": [value for other, value in LOG if other == name]}
            for name in ("easy", "mid", "hard", "never")
        ],
        [],
    ),
    "lists in parts": (
        [{"prompt": name, "correct": [value, None]} for name, value in LOG] + [{"prompt": "mid", "correct": []}],
        [],
    ),
    "rewards": ([{"prompt": name, "correct": [0.1 + 0.9 * value]} for name, value in LOG], ["--above", "0.5"]),
    "counts": (
        [
            {"prompt": name, "correct": n, "samplings": 8}
            for name, n in (("easy", 8), ("mid", 5), ("hard", 1), ("never", 0))
        ],
        [],
    ),
    "counts in parts": (
        [{"prompt": name, "hits": int(value), "tries": 1} for name, value in LOG],
        ["--correct", "hits", "--samplings", "tries"],
    ),
    "counts of one number": (
        [{"prompt": name, "correct": float(n)} for name, n in (("easy", 8), ("mid", 5), ("hard", 1), ("never", 0))],
        ["--samplings", "8"],
    ),
    "rates": (
        [
            {"prompt": name, "pass": p, "k": 8}
            for name, p in (("easy", 1), ("mid", 0.625), ("hard", 0.125), ("never", 0.0))
        ],
        ["--rate", "pass", "--samplings", "k"],
    ),
    "rounded rates": (
        [{"prompt": name, "pass": p} for name, p in (("easy", 1.0), ("mid", 0.63), ("hard", 0.12), ("never", 0.0))],
        ["--rate", "pass", "--samplings", "8"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_samplings_are_read_in_every_form(tmp_path, capsys, form, suffix):
    rows, options = FORMS[form]
    log = tmp_path / f"log{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), log)
    else:
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    assert main(["curate", str(log), *map(str, out), *options]) == 0
    assert capsys.readouterr().err == "durian-adv curate: 4 prompts: 1 too hard, 1 stage 2, 1 stage 1, 1 too easy\n"
    (mid,), (hard,) = map(lines, out)
    assert (mid["prompt"], mid["samplings"], mid["correct"]) == ("mid", 8, 5)
    assert (hard["prompt"], hard["samplings"], hard["correct"]) == ("hard", 8, 1)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": 1, "correct": 3}], [], "line 1: correct: expected 0, 1, true, false or null, got 3; counts need "),
        ([{"prompt": 1, "correct": [1, 2]}], [], "line 1: correct: expected 0, 1, true, false or null, got 2"),
        (
            [{"prompt": 1, "correct": 1}, {"prompt": 2, "correct": 1, "samplings": 8}],
            [],
            "line 2: samplings: expected none, as in the rows before, got 8",
        ),
        (
            [{"prompt": 1, "correct": 1, "samplings": 8}, {"prompt": 2, "correct": 1}],
            [],
            "line 2: samplings: expected an integer from 0 up, got None",
        ),
        (
            [{"prompt": 1, "correct": 9, "samplings": 8}],
            [],
            "correct: expected at most the number of samplings, 8, got 9",
        ),
        ([{"prompt": 1, "correct": -1, "samplings": 8}], [], "correct: expected an integer from 0 up, got -1"),
        ([{"prompt": 1, "correct": True, "samplings": 8}], [], "correct: expected an integer from 0 up, got True"),
        ([{"prompt": 1, "correct": 0.5, "samplings": 8}], [], "correct: expected an integer from 0 up, got 0.5"),
        ([{"prompt": 1, "correct": 1, "n": "8"}], ["--samplings", "n"], "n: expected an integer from 0 up, got '8'"),
        ([{"prompt": 1, "correct": 1}], ["--samplings", "n"], "n: expected an integer from 0 up, got None"),
        (
            [{"prompt": 1, "correct": 1, "samplings": 8}],
            ["--above", "0.5"],
            "line 1: samplings: expected none with --above, as it makes correct a count",
        ),
        (
            [{"prompt": 1, "correct": 1}],
            ["--above", "0.5", "--samplings", "8"],
            "--above: expected none with --samplings, as counts and rates are of correct ones already",
        ),
        (
            [{"prompt": 1, "p": 0.5}],
            ["--rate", "p"],
            "--samplings: expected a column or a number, as a rate alone says",
        ),
        (
            [{"prompt": 1, "p": 1.5}],
            ["--rate", "p", "--samplings", "8"],
            "line 1: p: expected a rate from 0 to 1, got 1.5",
        ),
        ([{"prompt": 1, "p": None}], ["--rate", "p", "--samplings", "8"], "p: expected a rate from 0 to 1, got None"),
        ([{"prompt": 1, "p": True}], ["--rate", "p", "--samplings", "8"], "p: expected a rate from 0 to 1, got True"),
        (
            [{"prompt": 1, "p": 0.34}],
            ["--rate", "p", "--samplings", "8"],
            "p: expected a rate of 8 samplings, to two decimals, such as 0.375, got 0.34",
        ),
    ],
)
def test_samplings_that_do_not_fit_are_an_error_with_their_row(tmp_path, monkeypatch, capsys, rows, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["curate", "log.jsonl", "1.jsonl", "2.jsonl", *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


KILLED = """
import os, signal, sys
from durian_adv.cli import main
from durian_adv.data import tables
where, at, *arguments = sys.argv[1:]
module, name = {"write": (tables.Table, "write"), "rename": (os, "replace")}[where]
inner, calls = getattr(module, name), []

def killed(*given, **options):
    calls.append(given)
    if len(calls) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*given, **options)

setattr(module, name, killed)
main(arguments)
"""


@pytest.mark.parametrize(
    ("where", "at", "picture"),
    [("write", 2, False), ("rename", 1, False), ("rename", 2, False), ("rename", 3, False), ("rename", 4, True)],
)
def test_a_run_killed_anywhere_leaves_nothing_that_looks_whole_and_is_repeated_by_starting_it_again(
    tmp_path, where, at, picture
):
    log = samplings(tmp_path / "log.jsonl")
    stages = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    outputs = [*stages, *([tmp_path / "p.png"] if picture else [])]
    arguments = ["curate", log, *map(str, stages), *(["--picture", str(outputs[2])] if picture else [])]
    done = subprocess.run([sys.executable, "-c", KILLED, where, str(at), *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    # the first rename is of the journal, so the first stage has its name after the second
    assert [path.exists() for path in outputs] == [where == "rename" and at > 2 + i for i in range(len(outputs))]
    if stages[0].exists():  # of this pair alone is the first stage known to be half of a result
        assert main([*arguments[:3], str(tmp_path / "other.jsonl")]) == 2
    assert main(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", *(path.name for path in outputs)}
    assert [len(lines(path)) for path in stages] == [1, 1]
    assert main(arguments) == 2


def test_an_error_while_writing_leaves_what_was_there(tmp_path, capsys):
    log = samplings(tmp_path / "log.jsonl")
    arguments = [
        "curate",
        log,
        str(tmp_path / "1.jsonl"),
        str(tmp_path / "2.jsonl"),
        "--picture",
        str(tmp_path / "p.xyz"),
    ]
    assert main(arguments) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert main([*arguments[:3], str(tmp_path / "none/2.jsonl")]) == 2
    assert "2.jsonl: parent directory does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("codec", ["ZSTD", "GZIP", "NONE"])
def test_rows_of_parquet_keep_their_codec(tmp_path, codec):
    log = samplings(tmp_path / "log.jsonl")
    data = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pa.table({"id": ["hard", "mid"], "x": [[1], [2]]}), data, compression=codec)
    out = [str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")]
    assert main(["curate", log, *out, "--dataset", str(data)]) == 0
    for path in out:
        group = pyarrow.parquet.ParquetFile(path).metadata.row_group(0)
        found = {group.column(i).compression for i in range(group.num_columns)}
        assert found == {"UNCOMPRESSED" if codec == "NONE" else codec}


def test_two_columns_of_one_name_are_refused(tmp_path, capsys):
    twice = pa.table([pa.array(["a"]), pa.array([1]), pa.array([0])], names=["prompt", "correct", "correct"])
    pyarrow.parquet.write_table(twice, tmp_path / "log.parquet")
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(["curate", str(tmp_path / "log.parquet"), *out]) == 2
    assert "log.parquet: expected columns of different names, got 'correct' twice" in capsys.readouterr().err
    log = samplings(tmp_path / "log.jsonl")
    assert main(["curate", log, *out, "--dataset", str(tmp_path / "log.parquet"), "--id", "prompt"]) == 2
    assert "log.parquet: expected columns of different names, got 'correct' twice" in capsys.readouterr().err


def test_prompts_of_one_sampling_each_are_told_with_what_may_be_wrong(tmp_path, capsys):
    log = samplings(tmp_path / "log.jsonl", [(f"p{i}", i % 2) for i in range(20)])
    assert main(["curate", log, str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]) == 0
    finding, summary = capsys.readouterr().err.splitlines()
    assert "--prompt" in finding
    assert summary == "durian-adv curate: 20 prompts: 10 too hard, 10 too easy"


def test_no_file_is_written_over(tmp_path, capsys):
    log, free = samplings(tmp_path / "log.jsonl"), str(tmp_path / "free.jsonl")
    before = (tmp_path / "log.jsonl").read_text()
    for outputs in ((log, free), (free, log), (free, free), (free, str(tmp_path / "2.jsonl"), "--picture", log)):
        assert main(["curate", log, *outputs]) == 2
        err = capsys.readouterr().err
        assert "already exists" in err or "given for two outputs" in err
    assert (tmp_path / "log.jsonl").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("ids", [(7, 8), (7.0, 8.0)])
def test_numbers_and_their_text_are_one_id(tmp_path, capsys, ids):
    log = samplings(tmp_path / "log.jsonl", [(i, k < 4) for i in (7, 8) for k in range(8)])
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"id": i}) + "\n" for i in ("7", *ids[1:], "9")))
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(["curate", log, *out, "--dataset", str(data)]) == 0
    assert [row["id"] for row in lines(tmp_path / "1.jsonl")] == ["7", ids[1]]
    assert "1 not sampled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"id": "mid"}', "", '{"id": null}'], "data.jsonl, line 3: id: expected an integer or a string, got None"),
        (
            ['{"id": 1}', '{"id": "1"}'],
            "data.jsonl, line 2: expected ids of one type, got '1' where another row has 1",
        ),
    ],
)
def test_an_id_of_a_dataset_that_cannot_be_used_is_named_with_its_line(tmp_path, capsys, rows, message):
    log, data = samplings(tmp_path / "log.jsonl"), tmp_path / "data.jsonl"
    data.write_text("\n".join(rows))
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(["curate", log, *out, "--dataset", str(data)]) == 2
    assert message in capsys.readouterr().err


def test_an_id_of_two_columns_is_told_whole(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": 1, "prompt": prompt, "correct": 1}) + "\n" for prompt in (2, "2")))
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(["curate", str(log), *out, "--prompt", "step", "prompt"]) == 2
    assert "line 2: expected ids of one type, got 1, '2' where another row has 1, 2\n" in capsys.readouterr().err


def test_of_no_samplings_there_are_no_prompts(tmp_path, capsys):
    log = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(
        pa.table({"prompt": pa.array([], pa.string()), "correct": pa.array([], pa.bool_())}), log
    )
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(["curate", str(log), *out]) == 0
    assert capsys.readouterr().err == "durian-adv curate: 0 prompts: none\n"
    assert lines(tmp_path / "1.jsonl") == lines(tmp_path / "2.jsonl") == []


@pytest.mark.parametrize(("rows", "told"), [(LOG, "prompts look like 'easy'"), ([], "there are none")])
def test_a_dataset_of_which_no_row_was_sampled_is_an_error(tmp_path, capsys, rows, told):
    log = samplings(tmp_path / "log.parquet", rows or LOG)
    if not rows:
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(log).slice(0, 0), log)
    (tmp_path / "data.jsonl").write_text('{"id": "other"}\n')
    out = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    assert main(["curate", log, *out, "--dataset", str(tmp_path / "data.jsonl")]) == 2
    assert f"data.jsonl: no id matches a prompt of {log} (for example 'other'; {told})" in capsys.readouterr().err


def test_a_parquet_file_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "log.parquet").write_text("no")
    assert main(["curate", str(tmp_path / "log.parquet"), str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]) == 2
    assert "log.parquet: expected a table in parquet, got one that cannot be read" in capsys.readouterr().err


def test_a_name_that_tells_no_format_is_refused_before_any_work(capsys):
    assert main(["curate", "none.jsonl", "1.csv", "2.csv"]) == 2
    assert "1.csv: expected a name that ends in .parquet or .jsonl" in capsys.readouterr().err


def test_a_package_that_is_not_there_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("tables", "samplings"):
        monkeypatch.delitem(sys.modules, f"durian_adv.data.{name}", raising=False)
        monkeypatch.delattr(durian_adv.data, name, raising=False)
    assert main(["curate", "log.jsonl", "1.jsonl", "2.jsonl"]) == 2
    err = capsys.readouterr().err
    assert "pyarrow" in err
    assert "expected what pip install 'durian-adv[curation]' brings" in err
