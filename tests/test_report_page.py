"""The page of a report, made as a user makes it."""

import csv
import html.parser
import itertools
import json
import math
import re
import sys
import tracemalloc
import weakref

import pytest
import reference
import torch
from steps import a_step, components, summed

from durian_adv import baselines, rollout_log
from durian_adv.cli import main
from durian_adv.report import figures, verdict
from durian_adv.report.summary import Summary

PNGS = {f"{name}.png" for name in ("pull", "extremes", "difficulty", "buckets", "changes")}


def lines(steps):
    for step in steps:
        for i, prompt in enumerate(step.prompt_index.tolist()):
            row = {"prompt": step.prompts[prompt], "reward": step.rewards[i].item()}
            if step.name is not None:
                row["step"] = step.name
            for score in ("visual_entropy", "confidence"):
                if getattr(step, score) is not None:
                    row[score] = getattr(step, score)[i].item()
            yield json.dumps(row) + "\n"


def report(tmp_path, capsys, steps, *options):
    """The status, the page and what was printed."""
    (tmp_path / "log.jsonl").write_text("".join(lines(steps)))
    status = main(["report", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "out"), *options])
    page = tmp_path / "out/report.html"
    return status, page.read_text() if page.exists() else "", capsys.readouterr()


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
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#000000"}  # every colour is the page's
    headline = verdict.verdict(summed(*(a_step(k, k) for k in range(3)), buckets=12)).headline
    assert headline in page
    assert printed.out == f"{headline}\n{tmp_path}/out/report.html\n"


def test_the_same_log_gives_the_same_page(tmp_path, capsys):
    pages = [report(tmp_path, capsys, [a_step(k, k) for k in range(3)])[1] for _ in range(2)]
    assert pages[0] == pages[1]


def test_the_table_beside_the_page_has_every_step(tmp_path, capsys):
    _, page, _ = report(tmp_path, capsys, [a_step(k, k, prompts=4) for k in range(40)])
    with (tmp_path / "out/steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(k) for k in range(40)]
    step = a_step(7, 7, prompts=4)
    largest = components(step.rewards, None, None, step.prompt_index).grpo.abs().max().item()
    assert float(rows[7]["largest, GRPO"]) == largest
    assert float(rows[7]["reward_mean"]) == pytest.approx(step.rewards.mean().item())
    assert "30 of 40 steps; all" in page
    shown = [int(name) for name in re.findall(r"<tr><td>(\d+)</td><td>4</td>", page)]
    assert len(shown) == 30
    assert (shown[0], shown[-1], max(b - a for a, b in itertools.pairwise(shown))) == (0, 39, 2)


def test_what_a_step_does_not_have_is_an_empty_cell(tmp_path, capsys):
    report(tmp_path, capsys, [a_step(0, 0), a_step(1, 1, entropy=False)])
    with (tmp_path / "out/steps.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["scored, visual_entropy"]) == 30
    assert second["scored, visual_entropy"] == ""


def test_steps_are_drawn_by_their_numbers_and_names_in_the_order_of_the_log():
    assert figures._steps(summed(a_step(0, 5), a_step(1, 1))) == ([1, 0], [1.0, 5.0], "step")
    assert figures._steps(summed(a_step(0, "b"), a_step(1, "a"))) == (
        [0, 1],
        [1.0, 2.0],
        "steps, in the order of the log",
    )


def test_the_options_reach_the_method(tmp_path, capsys):
    steps = [a_step(0)]
    options = ("--weights", "1", "0", "0", "--num-confidence-buckets", "2", "--eps", "0.5", "--success-threshold", "2")
    _, page, _ = report(tmp_path, capsys, steps, *options, "--correction", "0")
    assert "0° apart (cosine 1.000" in page
    assert "weights=[1.0, 0.0, 0.0]" in page
    assert "none above 2, so right and wrong are not told apart" in page.replace("\n  ", " ")
    with (tmp_path / "out/steps.csv").open() as file:
        (row,) = csv.DictReader(file)
    largest = baselines.batch_std_advantage(steps[0].rewards.view(30, 8), eps=0.5, correction=0).abs().max().item()
    assert float(row["largest, batch std"]) == pytest.approx(largest)


def test_names_of_prompts_are_text(tmp_path, capsys):
    step = a_step(0)
    names = [f"<script>alert({i})</script>" + "long " * 100 for i in range(30)]
    _, page, _ = report(tmp_path, capsys, [step._replace(prompts=names)])
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    assert "long long…" in page


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
    assert (status, printed.err) == (0, "")
    words = re.findall(r"[\w.]+", re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))
    assert not {"nan", "inf", "None"} & set(words)
    assert Reader(page).open == []


def test_more_buckets_than_bars_are_a_line(tmp_path, capsys):
    _, page, _ = report(tmp_path, capsys, [a_step(0, prompts=120)], "--num-confidence-buckets", "60")
    assert "60 buckets of confidence" in page


def test_a_log_without_steps_is_cut_and_keys_are_named(tmp_path, capsys):
    text = "".join(lines([a_step(0, None)])).replace('"prompt"', '"uid"')
    (tmp_path / "log.jsonl").write_text(text)
    arguments = ["report", str(tmp_path / "log.jsonl"), "--out", str(tmp_path), "--key", "prompt=uid"]
    assert main([*arguments, "--batch-prompts", "10"]) == 0
    assert "in 3 steps, 10 prompts a step" in " ".join((tmp_path / "report.html").read_text().split())
    assert main([*arguments, "--key", "reward"]) == 2
    assert "--key: expected NAME=KEY, got 'reward'" in capsys.readouterr().err


def test_several_logs_are_one(tmp_path, capsys):
    for k in range(2):
        (tmp_path / f"{k}.jsonl").write_text("".join(lines([a_step(k, k)])))
    assert main(["report", *(str(tmp_path / f"{k}.jsonl") for k in range(2)), "--out", str(tmp_path)]) == 0
    assert "0.jsonl and 1 more: 480 rollouts of 60 prompts" in " ".join((tmp_path / "report.html").read_text().split())


def test_a_long_log_is_not_held_in_memory(tmp_path, monkeypatch):
    """Rollouts go as their step has been counted; what grows with the log is a row of numbers a step."""
    monkeypatch.setattr(rollout_log, "_HELD", 256)
    monkeypatch.setattr("durian_adv.report.figures.draw", lambda summary, folder: {})
    monkeypatch.setattr("durian_adv.report.page.write", lambda *_, **__: "")
    held, most, add = [], [], Summary.add

    def watched(summary, step):
        held.append(weakref.ref(step.rewards))
        add(summary, step)
        most.append(sum(reference() is not None for reference in held))

    monkeypatch.setattr(Summary, "add", watched)
    peaks = []
    for steps in (4, 40):
        log = tmp_path / "log.jsonl"
        log.write_text("".join(lines(a_step(k, k, prompts=40) for k in range(steps))))
        arguments = ["report", str(log), "--out", str(tmp_path / "out")]
        tracemalloc.start()
        assert main(arguments) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(most) == 44
    assert max(most) <= 2
    assert peaks[1] - peaks[0] < 36 * 8_000  # bytes; each step has 320 rollouts of 32 bytes, in Python many more


@pytest.mark.parametrize(
    ("text", "complaint"), [("", "expected at least one rollout"), ('{"prompt": 1}', "expected the key 'reward'")]
)
def test_a_log_that_cannot_be_used_leaves_no_page(tmp_path, capsys, text, complaint):
    (tmp_path / "log").write_text(text)
    assert main(["report", str(tmp_path / "log"), "--out", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["report", str(tmp_path / "log")]) == 2
    assert "pip install 'durian-adv[report]'" in capsys.readouterr().err


def test_many_steps_are_joined_to_means():
    assert figures._joined(range(10)) == list(range(10))
    joined = figures._joined(range(1000))
    assert len(joined) <= figures.DRAWN_STEPS
    assert joined[:2] == [1.0, 4.0]
    assert figures._joined([]) == []


@pytest.mark.parametrize(
    ("scale", "header"),
    [
        (lambda r: 0.1 + 0.8 * (r > 0.5), "rewards from 0.1 to 0.9, SHARE of them correct (above 0.5)"),
        (lambda r: -1.0 + 2 * (r > 0.5), "rewards from -1 to 1, SHARE of them correct (above 0.5)"),
        (lambda r: 0.2 + 0.3 * (r > 0.5), "rewards from 0.2 to 0.5, none above 0.5, so right and wrong are not told"),
        (lambda r: 1.0 + (r > 0.5), "rewards from 1 to 2, all above 0.5, so right and wrong are not told apart"),
        (lambda r: torch.full_like(r, math.nan), "no rewards"),
        (lambda r: torch.where(r > 0.5, math.inf, r), "every reward is 0.1"),
    ],
)
def test_the_head_of_the_page_says_what_the_rewards_are(tmp_path, capsys, scale, header):
    step = a_step(0)
    _, page, _ = report(tmp_path, capsys, [step._replace(rewards=scale(step.rewards).double())])
    text = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())
    share = f"{(step.rewards > 0.5).double().mean():.0%}"
    assert header.replace("SHARE", share) in text


def test_what_goes_by_correctness_is_left_out_where_it_is_not_known(tmp_path, capsys):
    step = a_step(0)
    _, page, _ = report(tmp_path, capsys, [step])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == PNGS
    for words in (
        "one rollout correct",
        "<th>correct</th>",
        "<th>extreme</th>",
        "share of all wrong",
        "and extreme ones",
    ):
        assert words in page
    _, page, _ = report(tmp_path, capsys, [step._replace(rewards=step.rewards + 1)])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"buckets.png", "changes.png"}
    for words in (
        "one rollout correct",
        "<th>correct</th>",
        "<th>extreme</th>",
        "share of all wrong",
        "and extreme ones",
    ):
        assert words not in page
    assert "cannot be told without knowing which rollouts are" in page
    assert "cannot be said without knowing which rollouts are correct" in page


def test_one_prompt_has_nothing_to_be_compared_with(tmp_path, capsys):
    steps = [a_step(k, k, prompts=1, width=5) for k in range(3)]
    _, page, _ = report(tmp_path, capsys, steps)
    assert not list((tmp_path / "out").glob("*.png"))
    assert "without knowing which" not in page
    assert "15 rollouts of 3 prompts in 3 steps, 1 prompt a step" in " ".join(page.split())
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


def test_the_page_counts_the_prompts_without_signal(tmp_path, capsys):
    step = a_step(0)
    outcomes = reference.outcomes(step.rewards.numpy(), prompt_index=step.prompt_index.numpy())
    lost = sum(kind == "none" for *_, kind in outcomes)
    _, page, _ = report(tmp_path, capsys, [step])
    assert f"here those of {lost} of 30 prompts" in " ".join(page.split())
