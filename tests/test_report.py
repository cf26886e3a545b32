"""The report, made as a user makes it: what it says is what the library computes."""

import csv
import html.parser
import itertools
import json
import math
import re
import sys
import tracemalloc
import weakref

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings

from durian_adv import baselines, durian_components, rollout_log
from durian_adv.cli import main
from durian_adv.report import figures, verdict
from durian_adv.report.summary import METHODS, TENTHS, Summary
from durian_adv.rollout_log import Step

PNGS = {f"{name}.png" for name in ("pull", "extremes", "difficulty", "buckets", "changes")}


def components(rewards, visual_entropy, confidence, prompt_index, buckets=3):
    return durian_components(
        rewards,
        visual_entropy=visual_entropy,
        confidence=confidence,
        prompt_index=prompt_index,
        num_confidence_buckets=buckets,
    )


def a_step(seed, name=0, prompts=30, width=8, entropy=True, confidence=True, slope=2.0):
    """Rewards that depend on the confidence by ``slope`` and on nothing else."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=prompts)
    right = rng.random((prompts, width)) < 1 / (1 + np.exp(-slope * score))[:, None]
    index = torch.arange(prompts).repeat_interleave(width)
    return Step(
        name,
        [f"p{i}" for i in range(prompts)],
        index,
        torch.tensor(0.9 * right + 0.1).flatten(),
        torch.tensor(rng.normal(size=prompts))[index] if entropy else None,
        torch.tensor(score)[index] if confidence else None,
    )


def summed(*steps, buckets=3):
    summary = Summary(lambda *batch: components(*batch, buckets=buckets))
    for step in steps:
        summary.add(step)
    return summary


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


# --- the numbers ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 20), st.integers(2, 6))
def test_what_is_added_up_is_what_the_reference_says_of_each_step(seed, prompts, width):
    steps = [a_step(seed + k, name=k, prompts=prompts, width=width) for k in range(3)]
    summary = summed(*steps)
    for k, step in enumerate(steps):
        flat = {"rewards": step.rewards.numpy(), "prompt_index": step.prompt_index.numpy()}
        scores = {"visual_entropy": step.visual_entropy.numpy(), "confidence": step.confidence.numpy()}
        durian = reference.durian(**flat, **scores, num_confidence_buckets=3)["advantages"]
        of = dict(
            zip(
                METHODS,
                (reference.grpo(**flat), reference.dr_grpo(**flat), reference.batch_std(**flat), durian),
                strict=True,
            )
        )
        kinds = [kind for *_, kind in reference.outcomes(**flat)]
        for method, advantages in of.items():
            near = {"abs": 1e-9}
            assert summary.columns[f"largest, {method}"][k] == pytest.approx(np.abs(advantages).max(), **near)
            for start in ("GRPO", "Durian"):
                cosine = reference.moved(of[start], advantages)[1]
                assert summary.columns[f"{start} to {method}"][k] == pytest.approx(cosine, **near)
            for kind, share in reference.update_shares(advantages, kinds, flat["prompt_index"]).items():
                assert summary.columns[f"{kind}, {method}"][k] == pytest.approx(share, **near)
    outcomes = [reference.outcomes(step.rewards.numpy(), prompt_index=step.prompt_index.numpy()) for step in steps]
    every = [outcome for step in outcomes for outcome in step]
    for kind in ("extreme_failure", "other", "extreme_success"):
        assert summary.kinds[kind] == sum(outcome[2] == kind for outcome in every)
    assert summary.kinds["no_signal"] == sum(outcome[2] == "none" for outcome in every)
    assert summary.compared == sum(outcome[2] != "none" for outcome in every) == int(summary.ratios.sum())
    tenths = summary.tenths("confidence")
    assert sum(tenth.prompts for tenth in tenths) == 3 * prompts
    wrong = sum(n - hits for n, hits, _ in every)
    assert sum(tenth.errors for tenth in tenths) == pytest.approx(1 if wrong else 0)


def test_pulls_are_relative_to_the_mean_of_their_step():
    summary = summed(a_step(0, 0), a_step(1, 1))
    counts = [sums[0] for sums in summary.pull.values()]
    for row in range(1, 1 + 2 * len(METHODS)):
        assert sum(sums[row] for sums in summary.pull.values()) == pytest.approx(sum(counts))
    for sums in summary.pull.values():  # proportional, so alike
        assert sums[1 + METHODS.index("Dr. GRPO")] == pytest.approx(sums[1 + METHODS.index("batch std")], rel=1e-4)


def test_the_prompts_that_change_most_are_those_of_all_steps():
    steps = [a_step(k, name=k) for k in range(3)]
    summary = summed(*steps)
    ratios = []
    for step in steps:
        parts = components(step.rewards, step.visual_entropy, step.confidence, step.prompt_index)
        grpo, durian = (
            torch.zeros(30, dtype=torch.float64).index_add(0, step.prompt_index, a.abs())
            for a in (parts.grpo, parts.advantages)
        )
        ratios += ((durian / durian.sum()) / (grpo / grpo.sum()))[grpo > 0].tolist()
    assert [change.ratio for change in summary.raised] == pytest.approx(sorted(ratios)[:-6:-1])
    assert [change.ratio for change in summary.lowered] == pytest.approx(sorted(ratios)[:5])
    assert summary.notable == sum(ratio > 1.25 or ratio < 1 / 1.25 for ratio in ratios)
    for change in summary.raised:
        assert change.durian / change.grpo == pytest.approx(change.ratio)
        members = steps[change.step].rewards.view(30, 8)[int(change.prompt[1:])]
        assert (members > 0.5).sum() == change.correct


def test_tenths_are_means_and_their_standard_errors():
    step = a_step(0, prompts=40)
    tenths = summed(step).tenths("confidence")
    accuracy = (step.rewards.view(40, 8) > 0.5).double().mean(1)[step.confidence.view(40, 8)[:, 0].argsort()]
    for k, members in enumerate(accuracy.view(TENTHS, 4)):
        assert tenths[k].prompts == 4
        assert tenths[k].accuracy == pytest.approx(members.mean().item())
        assert tenths[k].error == pytest.approx(members.std().item() / 2)


def test_shuffled_scores_show_what_chance_does():
    by_difficulty = summed(*(a_step(k, k, prompts=200, slope=4.0) for k in range(3)))
    by_nothing = summed(*(a_step(k, k, prompts=200, slope=0.0) for k in range(3)))
    real, chance = (by_difficulty.mean(f"{name}, confidence") for name in ("spread", "spread by chance"))
    assert real > 3 * chance > 0
    real, chance = (by_nothing.mean(f"{name}, confidence") for name in ("spread", "spread by chance"))
    assert chance / 2 < real < 2 * chance


def test_buckets_are_measured_by_the_std_of_all_rewards():
    step = a_step(0)
    summary = summed(step, buckets=1)
    assert summary.columns["std of all rewards"][0] == pytest.approx(step.rewards.std().item())
    (bucket,) = summary.buckets("confidence").values()
    assert bucket.std == bucket.low == bucket.high == pytest.approx(1)
    assert (bucket.prompts, bucket.fewest) == (30, 30)


def test_prompts_that_a_method_pulls_at_nothing_are_not_compared():
    step = a_step(0)
    size = torch.tensor([1e-300] * 80 + [1e300] * 160, dtype=torch.float64)
    far = torch.where(step.rewards > 0.5, size, 0.0)
    effective = [len(set(row)) > 1 for row in far.view(30, 8).tolist()]
    assert any(effective[:10])
    summary = summed(step._replace(rewards=far))
    assert summary.compared == sum(effective[10:])
    assert min(change.ratio for change in summary.lowered) > 0


def test_steps_without_signal_have_no_part_in_means_and_angles():
    alone = summed(a_step(0))
    nothing = a_step(1, 1, prompts=10)._replace(rewards=torch.ones(80, dtype=torch.float64))
    both = summed(a_step(0), nothing, nothing)
    for column in (*(f"other, {method}" for method in METHODS), "extreme_ratio", "spread, confidence"):
        assert both.mean(column) == alone.mean(column) > 0
    for method in METHODS[1:]:
        assert both.angle("GRPO", method) == alone.angle("GRPO", method) > 0
    assert both.mean("prompts", of_effective=False) == pytest.approx((30 + 10 + 10) / 3)
    assert summed(nothing).mean("extreme_ratio") == summed(nothing).angle("GRPO", "Durian") == 0


# --- what they say ----------------------------------------------------------------------------------


def said(*steps, buckets=3):
    return verdict.verdict(summed(*steps, buckets=buckets))


def titles(found):
    return " | ".join(f"{finding.tone}: {finding.title}" for finding in found.findings)


def test_the_verdict_grows_with_the_angle():
    index = torch.arange(80).repeat_interleave(4)
    for small, word in ((1.0, "hardly"), (0.6, "a little"), (0.01, "clearly")):
        # half of the prompts have rewards that are smaller: for GRPO alike, for a shared std not
        rewards = torch.cat([torch.tensor([[1.0, 0, 0, 0]] * 40), torch.tensor([[small, 0, 0, 0]] * 40)]).double()
        step = Step(0, list(range(80)), index, rewards.flatten(), None, torch.zeros(320).double())
        parts = components(step.rewards, None, step.confidence, index)
        cosine = reference.moved(parts.grpo, parts.advantages)[1]
        found = said(step, buckets=1)
        assert word in found.headline
        assert f"{math.degrees(math.acos(min(1.0, cosine))):.0f}° apart" in found.because
        changed = "Much of this change needs no difficulty scores" in titles(found)
        assert changed == (small < 1)


def test_what_is_missing_is_said():
    assert "without difficulty scores" in said(a_step(0, entropy=False, confidence=False)).headline
    found = titles(said(a_step(0, entropy=False, prompts=60)))
    assert "careful: No visual entropy in this log" in found
    assert "No confidence" not in found
    nothing = a_step(0)._replace(rewards=torch.ones(240, dtype=torch.float64))
    assert "no prompt of this log has any signal" in said(nothing).headline


def test_too_few_and_few_and_enough_prompts():
    assert "Too few prompts a step to tell: 3 on average" in said(a_step(3, prompts=3), buckets=12).headline
    one_score = said(a_step(0, prompts=30), buckets=20)  # enough prompts for the buckets of the other
    assert "Too few" not in one_score.headline
    assert "far too few" in titles(one_score)
    assert "plain: Durian is 7° from batch std, and 7° from GRPO" in titles(said(a_step(0, prompts=60)))
    assert "12 buckets of confidence: about 5 prompts in each, few" in titles(said(a_step(0, prompts=60), buckets=12))
    assert "good: 3 buckets of confidence: about 20 prompts in each" in titles(said(a_step(0, prompts=60)))


def test_difficulty_that_tells_nothing_and_that_points_the_other_way():
    steps = [a_step(k, k, prompts=200) for k in range(2)]
    found = titles(said(*steps))
    assert "good: Confidence tells hard prompts from easy ones" in found
    assert "careful: Visual entropy does not tell hard prompts from easy ones" in found
    turned = [step._replace(confidence=-step.confidence) for step in steps]
    assert "careful: Confidence points the other way" in titles(said(*turned))
    hard = [step._replace(visual_entropy=-step.confidence) for step in steps]
    assert "good: Visual entropy tells hard prompts from easy ones" in titles(said(*hard))
    one = [step._replace(confidence=torch.zeros_like(step.confidence)) for step in steps]
    assert "plain: One value of confidence for all" in titles(said(*one))
    assert "Buckets of confidence" not in titles(said(*one))  # one bucket does not differ from itself


def test_an_advantage_larger_than_grpo_s_is_said():
    # a bucket of sure prompts where one rollout of many is wrong
    rewards = torch.ones(24, 8, dtype=torch.float64)
    rewards[0, 0] = 0
    rewards[12:, ::2] = 0
    index = torch.arange(24).repeat_interleave(8)
    sure = torch.arange(24.0, 0.0, -1.0).double()[index]
    step = Step(None, list(range(24)), index, rewards.flatten(), None, sure)
    assert "exceeds GRPO's" in titles(said(step, buckets=2))
    assert "good: Durian's largest advantage" in titles(said(a_step(0, prompts=90), buckets=1))


def test_prompts_without_a_score_are_not_a_bucket():
    step = a_step(0, prompts=60)
    unknown = step._replace(confidence=torch.full_like(step.confidence, math.nan))
    assert "careful: No confidence in this log" in titles(said(unknown))


# --- the page ---------------------------------------------------------------------------------------


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


# --- rewards of another kind ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "title", "edge"),
    [
        (lambda r: 0.2 + 0.3 * (r > 0.5), "No reward exceeds 0.5: set --success-threshold", "The largest is 0.5"),
        (lambda r: -10 + 5.0 * (r > 0.5), "No reward exceeds 0.5: set --success-threshold", "The largest is -5"),
        (lambda r: 1.0 + (r > 0.5), "Every reward exceeds 0.5: set --success-threshold", "The smallest is 1,"),
    ],
)
def test_a_threshold_that_parts_no_rewards_is_said_and_nothing_by_correctness(scale, title, edge):
    step = a_step(0)
    found = said(step._replace(rewards=scale(step.rewards).double()))
    assert [finding for finding in found.findings if finding.title == title and edge in finding.text]
    assert not [words for words in ("Extreme", "tell", "points") if words in titles(found)]
    assert title not in titles(said(step))


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


def test_a_log_without_rewards_is_told_so():
    step = a_step(0)
    found = said(step._replace(rewards=torch.full_like(step.rewards, math.nan)))
    assert found.headline == "Nothing to compare: no rollout of this log has a reward."


def test_prompts_without_a_score_are_not_counted_as_having_one():
    step = a_step(0, prompts=40, confidence=False)
    entropy = torch.where(step.prompt_index == 0, step.visual_entropy, math.nan)
    found = said(step._replace(visual_entropy=entropy))
    assert found.headline == "Too few prompts a step to tell: 1 of 40 have a score, on average."
