"""The records of the evidence and what is written from them. Nothing is trained here."""

import csv
import json
import re
from itertools import groupby

import numpy as np
import pytest
from PIL import Image

from benchmarks import figures
from benchmarks.evidence import comparison, declaration, page, records
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.conditions import COMPARED, CONDITIONS, MAIN_CONDITION, SGD, Run, runs_of

FOUND = {name: records.read_all(name) for name in CONDITIONS}
RUNS = [(CONDITIONS[name], arm, seed, record) for name, found in FOUND.items() for (arm, seed), record in found.items()]


def test_every_record_is_whole_and_of_the_plan():
    planned = {run.name for run in runs_of(CONDITIONS.values())}
    (warm,) = {record.head["warm"] for *_, record in RUNS}
    for condition, arm, seed, record in RUNS:
        run = Run(condition, arm, seed)
        assert run.name in planned
        assert {name: record.head[name] for name in ("arm", "seed", "condition", "warm")} == json.loads(
            json.dumps(records.settings_of(run, warm))
        )
        assert [row["step"] for row in record.steps] == list(range(condition.steps))
        assert all(np.isfinite(list(row.values())).all() for row in record.steps)
        assert record.head["final"]["sampled"] == pytest.approx(record.steps[-1]["held_out"], abs=1e-5)
        assert all(record.head["origin"].values())


@pytest.mark.parametrize("name", CONDITIONS)
def test_no_seed_is_dropped(name):
    """All arms of a seed are run before the next seed, so that what is missing is missing at the end."""
    order = [(run.arm, run.seed) for run in runs_of([CONDITIONS[name]])]
    there = [key in FOUND[name] for key in order]
    assert there == sorted(there, reverse=True)


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_arm_of_a_seed_sees_the_same_first_batch(name):
    by_seed = sorted(FOUND[name].items(), key=lambda item: item[0][1])
    for _, some in groupby(by_seed, key=lambda item: item[0][1]):
        firsts = {tuple(record.steps[0][c] for c in ("accuracy", "length", "effective")) for _, record in some}
        assert len(firsts) == 1


def test_what_was_declared_came_before_the_runs_and_is_what_was_run():
    plan = declaration.read()
    assert plan["learning_rate"] == MAIN_CONDITION.lr
    for record in FOUND["main"].values():
        assert record.head["origin"]["date"] >= plan["date"]
        assert record.head["warm"] == plan["warm"]
    again = declaration.declare(plan["warm"]) | {"date": plan["date"]}
    assert json.loads(json.dumps(again)) == plan


def test_the_page_is_the_one_the_records_make():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run python -m benchmarks.evidence page"


def test_every_picture_the_page_shows_is_there_and_drawn_from_the_records():
    shown = re.findall(r"!\[.+\]\(evidence/(\w+)\.png\)", page.PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(page.pictures()) == sorted(path.stem for path in page.PICTURES.glob("*.png"))
    for name in shown:
        with Image.open(page.PICTURES / f"{name}.png") as image:
            assert image.text["Records"] == figures.digest(page.sources(name)), "run python -m benchmarks.evidence page"


def held_out(path):
    """The last accuracy in a record's own text."""
    with path.open() as file:
        next(file)
        return float(list(csv.DictReader(file))[-1]["held_out"])


@pytest.mark.parametrize("condition", [MAIN_CONDITION, *COMPARED], ids=lambda condition: condition.name)
def test_the_differences_on_the_page_are_those_of_the_csv_files(condition):
    """Read again from the files' own text, with nothing of ours in between."""
    finals = {}
    for name in dict.fromkeys((condition.name, "main")):  # the table of other arms takes its baseline from there
        for path in (records.FOLDER / name).glob("*.csv"):
            finals.setdefault(path.stem, held_out(path))
    about = condition.about[0].upper() + condition.about[1:]
    head = "## The main comparison" if condition is MAIN_CONDITION else f"### {about}"
    text = page.PAGE.read_text(encoding="utf-8").split(f"{head}: ")[1].split("\n##")[0]
    rows = re.findall(r"^\| (\S+) - (\S+) \| (\d+) \| ([+-][\d.]+) \|", text, re.M)
    for arm, baseline, seeds, mean in rows:
        pairs = [(finals[f"{arm}-{seed:03}"], finals[f"{baseline}-{seed:03}"]) for seed in range(int(seeds))]
        assert float(mean) == pytest.approx(100 * np.mean([one - other for one, other in pairs]), abs=0.006)
    pairs = declaration.PAIRS if condition is MAIN_CONDITION else page.side_pairs(condition)
    assert [row[:2] for row in rows] in ([], pairs)


def test_each_arm_at_its_best_rate_is_that_of_the_csv_files():
    text = page.PAGE.read_text(encoding="utf-8")
    text = text.split(f"### Plain SGD, each arm at its best of {len(SGD)}")[1].split("\n##")[0]
    finals = {}
    for condition in SGD:
        for path in (records.FOLDER / condition.name).glob("*.csv"):
            arm, seed = path.stem.rsplit("-", 1)
            finals.setdefault((arm, f"{condition.lr:g}"), {})[seed] = held_out(path)
    best = {}
    for arm, shares, rate in re.findall(r"^\| (\S+) ((?:\| [\d.]+% )+)\| ([\d.]+) \|$", text, re.MULTILINE):
        means = [np.mean(list(finals[arm, f"{condition.lr:g}"].values())) for condition in SGD]
        assert [float(share) for share in re.findall(r"[\d.]+", shares)] == pytest.approx(
            100 * np.array(means), abs=0.006
        )
        assert f"{SGD[int(np.argmax(means))].lr:g}" == rate
        best[arm] = finals[arm, rate]
    assert {*best} == {*SGD[0].arms}
    differences = re.findall(r"^\| (\S+) - (\S+) \| \d+ \| ([+-][\d.]+) \|", text, re.MULTILINE)
    assert [(arm, baseline) for arm, baseline, _ in differences] == page.side_pairs(SGD[0])
    for arm, baseline, mean in differences:
        paired = [best[arm][seed] - best[baseline][seed] for seed in best[arm]]
        assert float(mean) == pytest.approx(100 * np.mean(paired), abs=0.006)


def test_what_the_readme_says_is_on_the_page():
    said = re.findall(r"([+-]\d\.\d\d) (\[[^]]+\])", (page.ROOT / "README.md").read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    assert said
    assert all(f"| {mean} | {interval} |" in text for mean, interval in said)


# --- the statistics -------------------------------------------------------------------------------------------------


def record_of(final: float) -> records.Record:
    return records.Record({"final": {"sampled": final}}, [])


def test_intervals_do_not_depend_on_what_was_drawn_before():
    found = [comparison.interquartile_means(runs_with(0.02, 0.005), ["a", "b"]) for _ in range(2)]
    np.random.seed(7)
    wanted = np.random.random(3).tolist()
    np.random.seed(7)
    found.append(comparison.interquartile_means(runs_with(0.02, 0.005), ["a", "b"]))
    assert np.random.random(3).tolist() == wanted  # nor does what is drawn later on them
    assert found[0] == found[1] == found[2]
    point, low, high = found[0]["a"]
    assert low < point < high


def runs_with(difference: float, deviation: float, seeds: int = 20) -> comparison.Records:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=seeds)
    noise = deviation * (noise - noise.mean()) / noise.std(ddof=1)
    shared = rng.normal(0.5, 0.1, seeds)
    return {("a", s): record_of(shared[s] + difference + noise[s]) for s in range(seeds)} | {
        ("b", s): record_of(shared[s]) for s in range(seeds)
    }


def test_a_difference_is_paired_by_seed():
    (found,) = comparison.differences(runs_with(0.02, 0.005), [("a", "b")], 0.01)
    assert (found.mean, found.deviation, found.seeds) == (pytest.approx(0.02), pytest.approx(0.005), 20)
    assert 0.0170 < found.low < 0.0190 < 0.0210 < found.high < 0.0230
    assert found.verdict(0.01) == "different"


@pytest.mark.parametrize(
    ("difference", "deviation", "verdict"),
    [
        (0.0005, 0.005, "indistinguishable within 1 point"),
        (0.005, 0.005, "different, by less than the margin"),
        (0.005, 0.05, "undecided"),
    ],
)
def test_verdicts(difference, deviation, verdict):
    (found,) = comparison.differences(runs_with(difference, deviation), [("a", "b")], 0.01)
    assert found.verdict(0.01) == verdict


def test_holm_corrects_over_the_family():
    records_ = runs_with(0.002, 0.005)
    (alone,) = comparison.differences(records_, [("a", "b")], 0.01)
    family = comparison.differences(records_, [("a", "b"), ("b", "a")], 0.01)
    assert alone.p_corrected == alone.p
    assert family[0].p_corrected == pytest.approx(2 * alone.p)


def test_seeds_that_one_arm_lacks_are_left_out_and_two_are_too_few():
    some = {key: record for key, record in runs_with(0.02, 0.005, 6).items() if key != ("b", 3)}
    (found,) = comparison.differences(some, [("a", "b")], 0.01)
    assert found.seeds == 5
    few = {key: record for key, record in some.items() if key[1] < 2}
    assert comparison.differences(few, [("a", "b")], 0.01) == []


def test_what_is_declared_detectable_is_found_that_often():
    """The power routine against simulation: 20 seeds, 10 comparisons, one of them true."""
    size = comparison.detectable(1.0, 20, 10)
    rng, found = np.random.default_rng(1), 0
    for _ in range(2000):
        d = rng.normal(size, 1.0, 20)
        t = d.mean() / (d.std(ddof=1) / np.sqrt(20))
        found += abs(t) > 3.1737  # the 0.9975 quantile of t with 19 degrees of freedom
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


def test_the_deviation_of_paired_differences_comes_from_residuals():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(8, 1)) + rng.normal(size=(1, 4000)) + 0.3 * rng.normal(size=(8, 4000))
    deviation, freedom = comparison.residual_deviation(values)
    assert deviation == pytest.approx(0.3 * np.sqrt(2), rel=0.02)
    assert freedom == 7 * 3999


def test_every_arm_of_the_plan_exists():
    assert {arm for condition in CONDITIONS.values() for arm in condition.arms} == set(ARMS)
