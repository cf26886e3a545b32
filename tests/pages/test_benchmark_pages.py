"""The committed records of the benchmarks against the pages and pictures made from them: `make records`."""

import csv
import math
import re

import pytest
from PIL import Image

from benchmarks import amounts, figures, log_size, page, records

TOPICS = records.topics()
PICTURES = sorted(page.PICTURES.glob("*.png"))
RELATIONS = re.compile(r"(<=|>=) \d+(\.\d+)?")


def rows(topic):
    with (records.RESULTS / f"{topic}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("topic", TOPICS)
def test_a_record_has_every_column_and_says_where_it_comes_from(topic):
    for row in rows(topic):
        assert list(row) == records.COLUMNS
        for column in ("cpu", "cores", "threads", "memory_gib", "python", "torch", "numpy", "einops", "durian_adv"):
            assert row[column], column
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", row["date"])


@pytest.mark.parametrize("topic", TOPICS)
def test_the_numbers_of_a_record_are_in_order(topic):
    measurements, origin = records.read(records.RESULTS / f"{topic}.csv")
    assert measurements
    assert origin.threads >= 1
    for m in measurements:
        least = 0 if m.unit in ("waits", "images") else 1e-9
        assert least <= m.p20 <= m.p50 <= m.p80 < math.inf, m
        assert least <= m.ratio_p20 <= m.ratio <= m.ratio_p80 < math.inf, m
        assert m.rounds >= 1, m
        assert m.calls >= 1, m
        assert m.candidate != m.baseline or (m.ratio == 1 and not m.target), m
        assert not m.target or RELATIONS.fullmatch(m.target), m
        assert not m.figure or (m.size > 0 and m.size_unit), m


@pytest.mark.parametrize("topic", TOPICS)
def test_every_timed_baseline_has_a_row_of_its_own(topic):
    measurements, _ = records.read(records.RESULTS / f"{topic}.csv")
    timed = {(m.case, m.candidate) for m in measurements}
    assert {(m.case, m.baseline) for m in measurements if m.unit == "us"} <= timed


def test_make_bench_measures_the_topics_there_are_records_of():
    makefile = (records.ROOT / "Makefile").read_text()
    measured = re.search(r"^TOPICS := (.*)$", makefile, re.MULTILINE).group(1).split()
    assert sorted(measured) == [topic for topic in TOPICS if topic not in ("gpu", "entropy_of_512_images")]


def test_the_page_is_the_one_the_records_make():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run python -m benchmarks.page"


def test_the_readme_quotes_the_records():
    readme = page.README.read_text(encoding="utf-8")
    assert page.with_figures(readme) == readme, "run python -m benchmarks.page"


def test_each_ratio_in_the_readme_stands_in_a_record():
    quoted = re.findall(r"\*\*([\d.,]+) times\*\*", page.README.read_text(encoding="utf-8"))
    ratios = [float(row["ratio"]) for topic in TOPICS for row in rows(topic)]
    assert len(quoted) == 3
    for number in quoted:
        assert any(amounts.short(ratio) == number for ratio in ratios), number


def test_every_picture_the_page_shows_is_there_and_no_other():
    shown = re.findall(r"!\[.+\]\(benchmarks/(\w+\.png)\)", page.PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == [picture.name for picture in PICTURES]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_drawn_from_the_records_there_are(picture):
    topics = TOPICS if picture.stem == "targets" else [picture.stem]
    sources = [records.RESULTS / f"{topic}.csv" for topic in topics]
    with Image.open(picture) as image:
        assert image.text["Records"] == figures.digest(sources), "run python -m benchmarks.page"


def test_the_report_page_quotes_the_record_of_large_logs():
    found = [records.read(log_size.FOLDER / f"{name}.csv")[0] for name in ("report",)]
    text = (records.ROOT / "docs/report.md").read_text(encoding="utf-8")
    for measurements in found:
        assert log_size.table(measurements) in text
        assert max(m.size for m in measurements) >= 1_000_000
