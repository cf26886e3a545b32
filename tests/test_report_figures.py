"""The figures of a report, and a page with them, made as a user makes it."""

import html.parser
import math
import re

import pytest
import torch
from steps import a_step, report, summed

from durian_adv.report import advice, figures, verdict

PNGS = {f"{name}.png" for name in ("pull", "extremes", "difficulty", "buckets", "changes")}


class Reader(html.parser.HTMLParser):
    """Tags that are left open, what is loaded, ids."""

    def __init__(self, page):
        super().__init__()
        self.open, self.loaded, self.ids = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_loads_nothing(tmp_path, capsys):
    status, page, printed = report(tmp_path, capsys, [a_step(k, k) for k in range(3)])
    assert status == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == PNGS | {"report.html", "steps.csv"}
    found = Reader(page)
    assert found.open == []
    assert all(link.startswith("#") for link in found.loaded)
    assert {link[1:] for link in found.loaded} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"url\((?!#)|@import|<script", page)
    for used in set(re.findall(r"var\((--[a-z-]+)", page)):
        assert len(re.findall(rf"{used}: #", page)) == 2, used  # in light and in dark
    drawn = page[page.index("<svg") : page.rindex("</svg>")]
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#000000"}  # every color is the page's
    summary = summed(*(a_step(k, k) for k in range(3)), buckets=12)
    headline, recommended = verdict.verdict(summary).headline, advice.advise(summary).headline
    assert headline in page
    assert printed.out == f"{headline}\n{recommended}\n{tmp_path}/out/report.html\n"


def test_the_same_log_gives_the_same_page(tmp_path, capsys):
    pages = [report(tmp_path, capsys, [a_step(k, k) for k in range(3)])[1] for _ in range(2)]
    assert pages[0] == pages[1]


def test_steps_are_drawn_by_their_numbers_and_names_in_the_order_of_the_log():
    assert figures._steps(summed(a_step(0, 5), a_step(1, 1))) == ([1, 0], [1.0, 5.0], "step")
    assert figures._steps(summed(a_step(0, "b"), a_step(1, "a"))) == (
        [0, 1],
        [1.0, 2.0],
        "steps, in the order of the log",
    )


@pytest.mark.parametrize(
    "steps",
    [
        [a_step(0, None, prompts=1, width=1)],
        [a_step(0, None, prompts=1)],
        [a_step(0, None, entropy=False, confidence=False)],
        [a_step(0, "a"), a_step(1, "c"), a_step(2, "b", entropy=False)],
        [a_step(5, 5), a_step(1, 1)],
        [a_step(0, 0)._replace(rewards=torch.full((240,), math.nan, dtype=torch.float64))],
        [a_step(0, 0)._replace(rewards=a_step(0).rewards * 1e308)],
        [a_step(0, 0)._replace(rewards=(a_step(0).rewards > 0.5) * 5e-324)],
        [a_step(0, 0)._replace(rewards=torch.rand(240, dtype=torch.float64))],
        [a_step(0, None, prompts=200, width=20)],
        [a_step(k, k, prompts=2, width=2, entropy=False) for k in range(70)],
        [a_step(0, 0, prompts=30, width=4), a_step(1, 1, prompts=30, width=5)],
    ],
    ids=(
        "one rollout",
        "one prompt",
        "no scores",
        "steps with names",
        "unordered steps",
        "no rewards",
        "largest numbers",
        "smallest numbers",
        "continuous rewards",
        "many rollouts",
        "many steps",
        "groups of two sizes",
    ),
)
def test_a_log_at_the_edges_has_a_page_without_a_warning(tmp_path, capsys, steps):
    status, page, printed = report(tmp_path, capsys, steps)
    # besides what the log was read as, and what its rewards and grouping suggest, nothing is said
    assert status == 0
    assert all(line.startswith("durian-adv report: ") for line in printed.err.splitlines()), printed.err
    words = re.findall(r"[\w.]+", re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))
    assert not {"nan", "inf", "None"} & set(words)
    assert Reader(page).open == []


def test_more_buckets_than_bars_are_a_line(tmp_path, capsys):
    _, page, _ = report(tmp_path, capsys, [a_step(0, prompts=120)], "--num-confidence-buckets", "60")
    assert "60 buckets of confidence" in page


def test_many_steps_are_joined_to_means():
    assert figures._joined(range(10)) == list(range(10))
    each = -(-1000 // figures.DRAWN_STEPS)
    joined = figures._joined(range(1000))
    assert len(joined) <= figures.DRAWN_STEPS
    assert joined[:2] == [(each - 1) / 2, each + (each - 1) / 2]
    long, short = (figures._steps(summed(*(a_step(k, k, prompts=2, width=2) for k in range(n))))[2] for n in (61, 60))
    assert (long, short) == ("step (each point: mean of 2 steps)", "step")
    assert figures._joined([]) == []


def test_what_goes_by_correctness_is_left_out_where_it_is_not_known(tmp_path, capsys):
    by_correctness = (
        "one rollout correct",
        "<th>correct</th>",
        "<th>extreme</th>",
        "share of all wrong",
        "and extreme ones",
    )
    step = a_step(0)
    _, page, _ = report(tmp_path, capsys, [step])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == PNGS
    assert all(words in page for words in by_correctness)
    _, page, _ = report(tmp_path, capsys, [step._replace(rewards=step.rewards + 1)], "--success-threshold", "0.5")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"buckets.png", "changes.png"}
    assert not any(words in page for words in by_correctness)
    assert "depends on which rollouts are correct, and\n  this log does not say that." in page
    assert "hard prompts from easy ones depends on which rollouts are correct" in page


def test_one_prompt_has_nothing_to_be_compared_with(tmp_path, capsys):
    steps = [a_step(k, k, prompts=1, width=5) for k in range(3)]
    _, page, _ = report(tmp_path, capsys, steps)
    assert not list((tmp_path / "out").glob("*.png"))
    assert "without knowing which" not in page
    assert "15 rollouts of 3 prompts in 3 steps, 1 prompt per step" in " ".join(page.split())
    assert "1 bucket of confidence: 1 prompt in it, far too few" in page
    assert "(<code>--num-confidence-buckets</code>, <code>--entropy-quantiles</code>)" in page
    _, page, _ = report(tmp_path, capsys, [steps[0]._replace(name=None)])
    assert "5 rollouts of 1 prompt;" in " ".join(page.split())


def test_durian_without_scores_is_drawn_as_grpo(tmp_path, capsys):
    _, page, _ = report(tmp_path, capsys, [a_step(0, entropy=False, confidence=False)])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"pull.png", "extremes.png"}
    assert "GRPO (and Durian, without scores)</text>" in page
    _, page, _ = report(tmp_path, capsys, [a_step(0)])
    assert "without scores" not in page
    assert ">Durian</text>" in page
