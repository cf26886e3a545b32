"""The pages of the law, their picture and the declaration against the code that makes them: `make records`."""

import csv
import json

from PIL import Image

from benchmarks import figures
from studies.law import analysis, declaration, expectation, page, plan, results, runner


def test_the_pages_are_those_the_law_makes():
    assert page.LAW.read_text(encoding="utf-8") == page.law(), "run python -m studies.law page"
    assert page.WHICH.read_text(encoding="utf-8") == page.which(), "run python -m studies.law page"


def test_the_picture_is_drawn_from_the_laws_curves():
    with page.CURVES.open(encoding="utf-8") as file:
        rows = [(row["panel"], row["line"], float(row["x"]), float(row["worth"])) for row in csv.DictReader(file)]
    made = [
        (panel, line, *point)
        for panel, lines in page.curves().items()
        for line, some in lines.items()
        for point in some
    ]
    assert rows == made, "run python -m studies.law page"
    with Image.open(page.PICTURE) as image:
        assert image.text["Records"] == figures.digest([page.CURVES]), "run python -m studies.law page"


def test_the_picture_of_the_test_is_drawn_from_the_committed_runs():
    if not analysis.complete(results.OUTCOME, results.committed()):
        assert not page.TEST.exists()
        return
    with Image.open(page.TEST) as image:
        assert image.text["Records"] == figures.digest([runner.TABLE]), "run python -m studies.law page"


def test_what_was_expected_follows_from_the_pilots():
    kept = json.loads(expectation.PATH.read_text(encoding="utf-8"))
    assert set(kept) == set(plan.ORDER)
    for outcome, values in kept.items():
        made = expectation.expected(outcome, results.committed())
        assert values == made, f"run python -m studies.law expect {outcome}"


def test_what_was_declared_is_what_the_law_predicts():
    assert declaration.read() == json.loads(json.dumps(declaration.declare())), "run python -m studies.law declare"
