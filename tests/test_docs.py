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


# --- the page of versions ------------------------------------------------------------------------------

TRAINERS = {
    "TRL": ("trl", "requirements/trl.txt", "requirements/trl-oldest.txt"),
    "Unsloth": ("unsloth", "requirements/unsloth-nodeps.txt"),
    "axolotl": ("axolotl", "requirements/axolotl-nodeps.txt"),
    "ms-swift": ("ms-swift", "requirements/swift.txt"),
    "verl": ("verl", "requirements/verl.txt"),
    "OpenRLHF": ("openrlhf", "requirements/openrlhf-nodeps.txt"),
    "SkyRL": ("skyrl", "requirements/others.txt"),
    "Trinity-RFT": ("trinity-rft", "requirements/others-nodeps.txt"),
}


def rows_of_trainers():
    """Trainer -> its rows of the table, each as cells: version, beside it, what, command."""
    table = (ROOT / "docs/versions.md").read_text().partition("## Trainers")[2]
    found, name = {}, ""
    for line in re.findall(r"^\| (.*) \|$", table, re.MULTILINE)[1:]:
        first, *cells = [cell.strip() for cell in f" {line}".split(" |")]
        name = re.sub(r"^\[(.+?)\]\(.*\)$", r"\1", first) or name
        found.setdefault(name, []).append(cells)
    return found


def test_a_row_of_the_versions_says_what_was_run_and_by_which_command():
    targets = set(re.findall(r"^([\w%-]+)(?: [\w%-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, rows in rows_of_trainers().items():
        for version, _, what, command in rows:
            assert what in ("trained", "step", "refused"), (name, version)
            assert command.startswith(("`make ", "by hand: ")), (name, version)
            assert set(re.findall(r"make ([\w-]+)", command)) <= targets, (name, version)


@pytest.mark.parametrize("name", TRAINERS)
def test_the_versions_that_tests_install_have_a_row(name):
    package, *files = TRAINERS[name]
    listed = " ".join(version for version, *_ in rows_of_trainers()[name])
    pinned = [
        v for file in files for v in re.findall(rf"^{package}==([\w.]+)", (ROOT / file).read_text(), re.MULTILINE)
    ]
    lists = {"verl": ["VERL_OLDER"], "OpenRLHF": ["OPENRLHF_OLDER", "OPENRLHF_REFUSED"]}.get(name, [])
    for variable in lists:
        pinned += re.search(rf"^{variable} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert pinned
    assert [version for version in pinned if not re.search(rf"\b{re.escape(version)}\b", listed)] == []
