"""What ``make mutants`` found, as its records have it."""

import csv
import re

import mutants

PAGE = mutants.PAGE.read_text()


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_mutant_was_run_and_nine_of_ten_are_killed():
    columns = ("mutants", "run", "killed", "timed out", "survived")
    record = {row["module"]: {name: int(row[name]) for name in columns} for row in rows(mutants.RECORD)}
    assert [module for module in mutants.TESTS if module in record] == list(record)
    for module, row in record.items():
        assert row["run"] == row["mutants"] == row["killed"] + row["timed out"] + row["survived"], module
    total = sum(row["mutants"] for row in record.values())
    survived = sum(row["survived"] for row in record.values())
    assert 1 - survived / total >= mutants.GOAL
    assert f"| all | {total} | {total} |" in PAGE


def test_every_survivor_has_a_reason():
    survivors = rows(mutants.SURVIVORS)
    assert survivors
    assert [row for row in survivors if len(row["why"]) < 10] == []
    modules = {row["function"].rpartition(".")[0] for row in survivors}
    assert {module.partition("ǁ")[0] for module in modules} <= set(mutants.TESTS)


def test_every_module_is_mutated_or_named_with_the_reason_why_not():
    package = mutants.ROOT / "durian_adv"
    sources = {path.relative_to(package) for path in package.rglob("*.py") if path.name != "__init__.py"}
    mutated = {(mutants.ROOT / mutants.source(module)).relative_to(package) for module in mutants.TESTS}
    assert mutated <= sources
    patterns = set(re.findall(r"`([\w/*]+(?:\.py|/\*))`", PAGE.partition("Not mutated")[2].partition("## ")[0]))
    named = {path for path in sources for pattern in patterns if re.match(pattern.replace("*", ".*") + "$", str(path))}
    assert sources - mutated == named - mutated
    assert {
        pattern for pattern in patterns if not any(re.match(pattern.replace("*", ".*"), str(s)) for s in sources)
    } == set()
