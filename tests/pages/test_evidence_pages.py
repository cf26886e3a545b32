"""The committed records of the evidence against the page and pictures made from them: `make records`."""

import json
import re
from itertools import groupby

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import figures
from studies.evidence import declaration, page, records
from studies.evidence.conditions import COMPARED, CONDITIONS, MAIN_CONDITION, SGD, Run, runs_of

FOUND = {name: records.of_condition(name) for name in CONDITIONS}
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
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run python -m studies.evidence page"


def test_every_picture_the_page_shows_is_there_and_drawn_from_the_records():
    shown = re.findall(r"!\[.+\]\(evidence/(\w+)\.png\)", page.PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(page.pictures()) == sorted(path.stem for path in page.PICTURES.glob("*.png"))
    for name in shown:
        with Image.open(page.PICTURES / f"{name}.png") as image:
            assert image.text["Records"] == figures.digest(page.sources(name)), "run python -m studies.evidence page"


def held_out(condition):
    """The last accuracy of each run of a condition, out of the table by pyarrow alone."""
    rows = pq.read_table(records.TABLE, columns=["run", "step", "held_out"]).to_pylist()
    chosen = [row for row in rows if row["run"].startswith(f"{condition}/")]
    return {row["run"].partition("/")[2]: row["held_out"] for row in sorted(chosen, key=lambda row: row["step"])}


@pytest.mark.parametrize("condition", [MAIN_CONDITION, *COMPARED], ids=lambda condition: condition.name)
def test_the_differences_on_the_page_are_those_of_the_table(condition):
    """Read again from the table, with nothing of ours in between."""
    finals = {}
    for name in dict.fromkeys((condition.name, "main")):  # the table of other arms takes its baseline from there
        finals = held_out(name) | finals
    about = condition.about[0].upper() + condition.about[1:]
    head = "## The main comparison" if condition is MAIN_CONDITION else f"### {about}"
    text = page.PAGE.read_text(encoding="utf-8").split(f"{head}: ")[1].split("\n##")[0]
    rows = re.findall(r"^\| (\S+) - (\S+) \| (\d+) \| ([+-][\d.]+) \|", text, re.M)
    for arm, baseline, seeds, mean in rows:
        pairs = [(finals[f"{arm}-{seed:03}"], finals[f"{baseline}-{seed:03}"]) for seed in range(int(seeds))]
        assert float(mean) == pytest.approx(100 * np.mean([one - other for one, other in pairs]), abs=0.006)
    pairs = declaration.PAIRS if condition is MAIN_CONDITION else page.side_pairs(condition)
    assert [row[:2] for row in rows] in ([], pairs)


def test_each_arm_at_its_best_rate_is_that_of_the_table():
    text = page.PAGE.read_text(encoding="utf-8")
    text = text.split(f"### Plain SGD, each arm at its best of {len(SGD)}")[1].split("\n##")[0]
    finals = {}
    for condition in SGD:
        for run, value in held_out(condition.name).items():
            arm, seed = run.rsplit("-", 1)
            finals.setdefault((arm, f"{condition.lr:g}"), {})[seed] = value
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


def test_what_the_readme_says_is_on_a_page():
    said = re.findall(r"([+-]\d\.\d\d) (\[[^]]+\])", (page.ROOT / "README.md").read_text(encoding="utf-8"))
    evidence, law = (path.read_text(encoding="utf-8") for path in (page.PAGE, page.ROOT / "docs" / "law.md"))
    assert said
    for mean, interval in said:
        assert f"| {mean} | {interval} |" in evidence or f" {mean} {interval} " in law, mean
