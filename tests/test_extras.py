"""Every extra brings what its part of the package imports: that part is imported where nothing else can be.

An environment for development has the packages of all extras, so what one of them forgot is never missed there.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}

# what is installed by -> the files that must be importable with it and nothing else
# imported where datasets and transformers are: tests/entropy
ELSEWHERE = ("datasets_on_disk.py", "transformers_encoder.py", "__main__.py")

PARTS = {
    "durian-adv[curation]": [
        *(f"durian_adv/data/{name}.py" for name in ("aside", "curation", "samplings", "tables")),
        "durian_adv/cli/curate.py",
    ],
    "durian-adv[report]": ["durian_adv/report/*.py", "durian_adv/data/logs/steps.py", "durian_adv/cli/report.py"],
    "durian-adv[entropy]": ["durian_adv/data/scoring/*.py", "durian_adv/cli/entropy.py", "durian_adv/cli/terminal.py"],
    "durian-adv[demo]": ["benchmarks/rlvr/*.py", "benchmarks/figures.py"],
    "durian-adv[evidence]": ["studies/evidence/*.py", "studies/law/*.py"],
    # `make bench`, but for advantage.py and entropy.py, whose released baselines are installed there alone
    "requirements/bench.txt": [f"benchmarks/{name}.py" for name in ("confidence", "images", "page", "timing")],
    "durian-adv[test]": ["tests/helpers.py", "tests/reference.py", "tests/strategies.py", "tests/conftest.py"],
}

ALONE = """
import importlib, json, sys
from importlib.machinery import PathFinder

class Inside(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in outside else super().find_spec(name, path, target)

outside, modules, statements = json.load(sys.stdin)
sys.meta_path[:] = [Inside if finder is PathFinder else finder for finder in sys.meta_path]
for module in modules:
    importlib.import_module(module)
for statement in statements:
    exec(statement)
"""


def lines(name):
    """The requirements of a file of the repository, or the one that is named."""
    if not name.endswith(".txt"):
        return [name]
    stripped = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line.replace("-e .", "durian-adv") for line in stripped if line and not line.startswith("-c ")]


def closure(name, extras):
    """The distributions that this brings, as far as they are installed here."""
    todo, seen = [Requirement(line) for line in lines(name)], set()
    while todo:
        requirement = todo.pop()
        distribution = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (distribution, extra) in seen:
                continue
            seen.add((distribution, extra))
            try:
                needed = extras[extra] if distribution == "durian-adv" else metadata.requires(distribution) or []
            except metadata.PackageNotFoundError:
                continue
            todo += [r for r in map(Requirement, needed) if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {distribution for distribution, _ in seen}


def files(patterns):
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.name not in ELSEWHERE)


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "tests":
        return parts[-1]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inner_imports(path):
    """The import statements inside functions."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    inside = [node for function in functions for node in ast.walk(function)]
    found = [node for node in inside if isinstance(node, (ast.Import, ast.ImportFrom))]
    return [ast.unparse(node) for node in found]


def imported_alone(name, paths, extras=EXTRAS):
    """Import files in a process that has what ``name`` brings and nothing else; the last line of its error, or ""."""
    inside = closure(name, extras)
    owners = metadata.packages_distributions()
    outside = [top for top, of in owners.items() if not inside & {canonicalize_name(each) for each in of}]
    statements = [line for path in paths for line in inner_imports(path)]
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        input=json.dumps([outside, [module(path) for path in paths], statements]),
        cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


@pytest.mark.parametrize("name", PARTS)
def test_what_an_extra_is_for_can_be_imported_with_it_alone(name):
    paths = files(PARTS[name])
    assert len(paths) >= len(PARTS[name])
    assert imported_alone(name, paths) == ""


def test_what_no_extra_is_for_needs_what_the_package_requires_alone():
    claimed = {path for patterns in PARTS.values() for path in files(patterns)}
    plain = set(files(["durian_adv/*.py", "durian_adv/_src/*.py", "durian_adv/cli/*.py"])) - claimed
    assert ROOT / "durian_adv/cli/main.py" in plain
    assert imported_alone("durian-adv", sorted(plain)) == ""


@pytest.mark.parametrize(("extra", "forgotten"), [("demo", "pyarrow"), ("curation", "matplotlib")])
def test_a_requirement_that_an_extra_forgets_is_missed(extra, forgotten):
    less = {**EXTRAS, extra: [line for line in EXTRAS[extra] if not line.startswith(forgotten)]}
    assert len(less[extra]) == len(EXTRAS[extra]) - 1
    name = f"durian-adv[{extra}]"
    assert imported_alone(name, files(PARTS[name]), less) == f"ModuleNotFoundError: No module named {forgotten!r}"


# what an extra for a trainer may name: packages that trainers forget, and TRL, whose oldest and newest both satisfy it
BESIDE = {"trl": {"requests", "trl"}, "verl": {"wrapt"}, "openrlhf": {"wrapt"}}
# pinned or bounded by a trainer that was run: verl 0.6.1 to 0.8.0, and this package's own floors
THERE = {"trl": "1.0.0", "numpy": "1.26.4", "torch": "2.6.0", "einops": "0.8.0"}


@pytest.mark.parametrize("extra", BESIDE)
def test_an_extra_moves_no_trainer_and_nothing_that_a_trainer_pins(extra):
    required = [Requirement(line) for line in EXTRAS[""] + EXTRAS[extra]]
    assert {canonicalize_name(one.name) for one in required} <= BESIDE[extra] | {"torch", "numpy", "einops"}
    for one in required:
        assert {bound.operator for bound in one.specifier} <= {">="}, one  # an upper bound would move what is newer
        assert one.name not in THERE or one.specifier.contains(THERE[one.name]), one
