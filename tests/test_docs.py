"""Every example of the documentation and the README runs, every link leads somewhere."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import durian_adv

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])


def names(pages):
    return [page.name for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_the_examples_of_a_page_give_what_it_says(page):
    failed, _ = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_the_links_of_a_page_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_paper_index_names_tests_and_functions_that_exist():
    index = (ROOT / "docs/paper-index.md").read_text()
    for test in re.findall(r"`(test_\w+\.py)`", index):
        assert (ROOT / "tests" / test).exists(), test
    for name in durian_adv.__all__:
        assert name in index or name in ("DurianComponents", "ArgumentError", "ArgumentTypeError"), name


def test_the_tests_that_the_page_on_trust_names_exist():
    tests = "\n".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/trust.md").read_text())
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_the_quick_start_prints_what_it_says_when_pasted():
    readme = (ROOT / "README.md").read_text()
    code, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", readme, re.DOTALL).groups()
    ran = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", shown)


def test_the_citation_has_the_version_of_the_package():
    assert f"\nversion: {durian_adv.__version__}\n" in (ROOT / "CITATION.cff").read_text()
