"""Which estimator a report recommends: its numbers are the library's, its rules hold for every log."""

import json
import math
import re

import hypothesis.strategies as st
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from steps import a_step, lines, of_step, report, summed
from test_report_page import cells

from durian_adv.cli import main
from durian_adv.data.logs.checks import Finding
from durian_adv.data.logs.steps import Step
from durian_adv.report import advice, arms, verdict
from durian_adv.report.advice import GAIN, SIMPLEST_FIRST, advise, choose
from durian_adv.report.arms import BY_CATEGORY, COMPARED, DROPPED, KEPT
from durian_adv.report.figures import Picture
from durian_adv.report.numbers import Summary
from durian_adv.report.words import LONGEST_NAME, percent, told_apart
from durian_adv.worth import Worth, predicted_worth


def with_kinds(seed, name=0, prompts=64, units=(1.0, 1.0), noise=(0.0, 0.0), binary=True, scored=False):
    """Two kinds of prompts of one distribution of accuracies, whose rewards have units and noise of their own."""
    rng = np.random.default_rng(seed)
    kind = np.arange(prompts) % 2
    right = rng.random((prompts, 8)) < rng.random(prompts)[:, None]
    rewards = right * np.take(units, kind)[:, None]
    if not binary:
        rewards = rewards + rng.normal(size=right.shape) * np.take(noise, kind)[:, None]
    index = torch.arange(prompts).repeat_interleave(8)
    kinds = torch.tensor(kind)[index]
    score = kinds + torch.tensor(0.01 * rng.normal(size=prompts))[index]
    return Step(
        name,
        [f"p{i}" for i in range(prompts)],
        index,
        torch.tensor(rewards).double().flatten(),
        None,
        score.double() if scored else None,
        None if scored else kinds,
    )


def summary_of(*steps, threshold=0.5, grouping=()):
    summary = Summary(of_step, success_threshold=threshold, grouping=grouping)
    for step in steps:
        summary.add(step)
    return summary


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(3, 20))
def test_each_estimator_s_numbers_are_the_reference_s_and_the_library_s(seed, prompts):
    rng = np.random.default_rng(seed)
    steps = []
    for k in range(2):
        step = a_step(seed + k, k, prompts=prompts, width=4)
        steps.append(step._replace(category=torch.tensor(rng.integers(-1, 2, prompts))[step.prompt_index]))
    summary = summed(*steps)
    worths = []
    for k, step in enumerate(steps):
        flat = {"rewards": step.rewards.numpy(), "prompt_index": step.prompt_index.numpy()}
        scores = {"visual_entropy": step.visual_entropy.numpy(), "confidence": step.confidence.numpy()}
        scores["num_confidence_buckets"] = 3
        expected = {
            "GRPO": reference.grpo(**flat),
            "batch std": reference.batch_std(**flat),
            "Dr. GRPO": reference.dr_grpo(**flat),
            KEPT: reference.durian(**flat, **scores)["advantages"],
            DROPPED: reference.durian(**flat, **scores, no_signal="drop")["advantages"],
            BY_CATEGORY: reference.durian(**flat, category=step.category.numpy(), weights=(0, 0, 0, 1))["advantages"],
        }
        kinds = [kind for *_, kind in reference.outcomes(**flat)]
        for name, values in expected.items():
            assert summary.columns[f"largest, {name}"][k] == pytest.approx(np.abs(values).max(), abs=1e-9)
            cosine = reference.moved(expected["GRPO"], values)[1]
            assert summary.columns[f"GRPO to {name}"][k] == pytest.approx(cosine, abs=1e-9, nan_ok=True)
            for kind, share in reference.update_shares(values, kinds, flat["prompt_index"]).items():
                assert summary.columns[f"{kind}, {name}"][k] == pytest.approx(share, abs=1e-9, nan_ok=True)
        tensors = {name: torch.tensor(values) for name, values in expected.items()}
        correct = step.rewards > 0.5
        worths.append(
            predicted_worth(
                step.rewards, tensors, correctness=correct, category=step.category, prompt_index=step.prompt_index
            )
        )
    for name in COMPARED:
        known = [each[name] for each in worths if not math.isnan(each[name].worth + each[name].standard_error)]
        value = np.mean([each.worth for each in known]) if known else math.nan
        error = np.sqrt(np.sum([each.standard_error**2 for each in known])) / len(known) if known else math.nan
        assert summary.worth(name) == pytest.approx((value, error), abs=1e-6, nan_ok=True)


def test_an_estimator_without_its_inputs_has_no_numbers():
    summary = summed(a_step(0, entropy=False, confidence=False))
    for name in (KEPT, DROPPED, BY_CATEGORY):
        numbers = (summary.angle("GRPO", name), summary.most(name), summary.extreme(name), *summary.worth(name))
        assert all(map(math.isnan, numbers))
    step = a_step(0, entropy=False, confidence=False)
    found = arms.advantages(step, of_step(step), of_step, eps=1e-6, correction=1)
    assert set(found) == {"GRPO", "Dr. GRPO", "batch std", "Durian"}
    assert summary.most("batch std") == found["batch std"].abs().max().item()


worths = st.builds(Worth, st.floats(-0.5, 1.5), st.floats(0.0, 0.3))


@given(st.dictionaries(st.sampled_from(SIMPLEST_FIRST), worths, min_size=1))
def test_the_simplest_that_none_clearly_exceeds_is_chosen(found):
    found = {name: found[name] for name in SIMPLEST_FIRST if name in found}

    def exceeded(name):
        own = found[name]
        return any(
            other.worth - own.worth > GAIN
            and other.worth - own.worth > 2 * math.hypot(other.standard_error, own.standard_error)
            for other in found.values()
        )

    chosen = choose(found)
    assert not exceeded(chosen)
    before = list(found)[: list(found).index(chosen)]
    assert all(map(exceeded, before))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([(1.0, 1.0), (0.1, 0.1), (7.0, 7.0)]), st.booleans())
def test_binary_rewards_give_no_reason_for_a_shared_std(seed, units, scored):
    summary = summary_of(*(with_kinds(seed + k, k, units=units, scored=scored) for k in range(2)), threshold=0.05)
    assert summary.binary
    assert advice.candidates(summary) == ["GRPO", "batch std"]
    found = advise(summary)
    assert (found.kind, found.method) in {("keep", None), ("change", "batch std")}
    assert f"two values, 0 and {units[0]:g}" in found.because or found.method == "batch std"


@settings(max_examples=5)
@given(st.integers(0, 10**6))
def test_kinds_of_other_units_are_a_reason_for_a_std_per_kind_and_for_durian_where_a_score_tells_them(seed):
    units = {"units": (1.0, 0.1), "noise": (0.01, 0.01), "binary": False}
    known = summary_of(*(with_kinds(seed + k, k, **units) for k in range(4)), threshold=0.05)
    assert not known.binary
    assert advise(known).method == BY_CATEGORY
    many = (with_kinds(seed + k, k, scored=True, prompts=300, **units) for k in range(4))
    by_score = summary_of(*many, threshold=0.05)
    assert BY_CATEGORY not in advice.candidates(by_score)
    assert {DROPPED, KEPT} <= set(advice.candidates(by_score))
    found = advise(by_score)
    assert found.method in (DROPPED, KEPT)
    assert "not binary" in found.because
    assert found.headline == f"Try {found.method}."


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_scores_and_kinds_that_tell_nothing_are_never_a_reason(seed):
    """Rewards of right and wrong with a small tie-break: GRPO blows up groups that differ in it alone."""
    noise = {"noise": (0.02, 0.02), "binary": False}
    for scored in (False, True):
        summary = summary_of(*(with_kinds(seed + k, k, scored=scored, **noise) for k in range(3)))
        unlike = advice.differ(summary, "confidence" if scored else "category")
        found = advise(summary)
        assert found.method == "batch std" or (unlike and found.kind != "none")
        assert found.method == "batch std" or found.method in advice.candidates(summary)


def test_the_recommendation_does_not_depend_on_the_unit_of_all_rewards():
    for units, noise in (((1.0, 0.1), (0.01, 0.01)), ((1.0, 1.0), (0.02, 0.02))):
        steps = [with_kinds(k, k, units=units, noise=noise, binary=False) for k in range(3)]
        alone = advise(summary_of(*steps, threshold=0.05))
        larger = [step._replace(rewards=100 * step.rewards + 50) for step in steps]
        assert advise(summary_of(*larger, threshold=55.0))[:2] == alone[:2] == ("change", alone.headline)


def without_a_threshold(units, scored):
    noise = {"noise": (0.01, 0.01), "binary": False}
    return summary_of(*(with_kinds(k, k, units=units, scored=scored, **noise) for k in range(3)), threshold=-100.0)


def test_where_worth_is_not_defined_the_structure_of_the_rewards_decides():
    known = advise(without_a_threshold((1.0, 0.1), scored=False))
    assert (known.kind, known.method) == ("change", BY_CATEGORY)
    assert "if its categories differ in the unit or noise" in known.headline
    scored = advise(without_a_threshold((1.0, 0.1), scored=True))
    assert scored.kind == "none"
    assert "--success-threshold" in scored.because
    for which in (False, True):
        alike = advise(without_a_threshold((1.0, 1.0), scored=which))
        assert (alike.kind, alike.method) == ("keep", None)
    step = with_kinds(0, noise=(0.01, 0.01), binary=False)._replace(category=None)
    nothing = advise(summary_of(step, threshold=-100.0))
    assert nothing.kind == "none"
    assert "neither a category nor a difficulty score" in nothing.because
    binary = advise(summary_of(with_kinds(0), threshold=-100.0))
    assert binary.kind == "keep"
    assert "predicted worth" not in binary.because


def test_nothing_is_recommended_where_nothing_can_be_concluded():
    step = with_kinds(0)
    broken = Finding("single", "Every prompt has one rollout", "", broken=True)
    for summary, why in (
        (summary_of(step, grouping=[broken]), "not read as it was sampled"),
        (summary_of(step._replace(rewards=torch.full((512,), math.nan).double())), "No rollout has a reward"),
        (summary_of(step._replace(rewards=torch.ones(512).double())), "No prompt has signal"),
    ):
        found = advise(summary)
        assert (found.kind, found.method) == ("none", None)
        assert why in found.because


def test_groups_without_signal_are_to_be_dropped_where_it_makes_a_difference(monkeypatch):
    summary = summed(a_step(0))
    worth = {
        "GRPO": Worth(0.97, 0.01),
        "batch std": Worth(1.0, 0.0),
        KEPT: Worth(0.8, 0.01),
        DROPPED: Worth(0.99, 0.01),
    }
    monkeypatch.setattr(summary, "worth", lambda name: worth.get(name, Worth(math.nan, math.nan)))
    found = advise(summary)
    assert "--no-signal drop" in found.because
    assert "0.990 ± 0.010" in found.because
    worth[KEPT] = Worth(0.96, 0.01)
    assert "--no-signal drop" not in advise(summary).because


def test_the_largest_worth_that_is_no_reason_is_said(monkeypatch):
    step = a_step(0, prompts=60)
    summary = summed(step._replace(rewards=step.rewards + 0.01 * torch.randn(480).double()))
    worth = {"GRPO": Worth(0.97, 0.01), "batch std": Worth(1.0, 0.0)}
    monkeypatch.setattr(summary, "worth", lambda name: worth.get(name, Worth(math.nan, math.nan)))
    found = advise(summary)
    assert (found.kind, "that of batch std, 1.000 ± 0.000" in found.because) == ("keep", True)
    worth["batch std"] = Worth(0.9, 0.0)
    assert "the largest of those" in advise(summary).because


def test_a_worth_of_nothing_is_no_number_of_steps(monkeypatch):
    step = a_step(0, prompts=60)
    summary = summed(step._replace(rewards=step.rewards + 0.01 * torch.randn(480).double()))
    worth = {"GRPO": Worth(0.5, 0.01), "batch std": Worth(1.0, 0.0)}
    monkeypatch.setattr(summary, "worth", lambda name: worth.get(name, Worth(math.nan, math.nan)))
    assert "GRPO would need up to 2 times as many steps" in advise(summary).because
    worth["GRPO"] = Worth(0.0, 0.01)
    assert "times as many" not in advise(summary).because


# --- the verdict where scores are missing, and its color --------------------------------------------


@pytest.mark.parametrize(
    ("angle", "tone", "words"),
    [
        (5.9, "hardly", "hardly anything"),
        (6.0, "little", "a little"),
        (14.9, "little", "a little"),
        (15.0, "clearly", "clearly"),
        (math.nan, "none", "no update"),
    ],
)
def test_the_color_says_what_the_verdict_says(monkeypatch, angle, tone, words):
    for scores in ({}, {"entropy": False, "confidence": False}):
        summary = summed(a_step(0, prompts=60, **scores))
        monkeypatch.setattr(summary, "angle", lambda *methods: angle)
        if scores or not math.isnan(angle):
            found = verdict.verdict(summary)
            assert (found.tone, words in found.headline) == (tone, True)


def test_no_conclusion_has_the_color_of_none():
    step = a_step(0)
    for rewards in (math.nan, 1.0):
        assert verdict.verdict(summed(step._replace(rewards=torch.full((240,), rewards).double()))).tone == "none"
    assert verdict.verdict(summed(a_step(3, prompts=3), buckets=12)).tone == "none"
    broken = Finding("single", "Every prompt has one rollout", "", broken=True)
    assert verdict.verdict(summary_of(step, grouping=[broken])).tone == "none"


def test_without_scores_the_estimators_that_need_none_are_compared():
    step = with_kinds(0, units=(1.0, 0.1))
    summary = summary_of(step, threshold=0.05)
    found = verdict.verdict(summary)
    assert f"Batch std's advantages are {summary.angle('GRPO', 'batch std'):.0f}° from GRPO's" in found.because
    assert f"one std per category {summary.angle('GRPO', BY_CATEGORY):.0f}°" in found.because
    titles = [finding.title for finding in found.findings]
    assert "The 2 categories differ by more than chance" in titles
    alike = verdict.verdict(summary_of(with_kinds(0), threshold=0.05)).findings
    assert "The 2 categories differ hardly more than by chance" in [finding.title for finding in alike]
    one = verdict.verdict(summary_of(step._replace(category=torch.zeros(512).long()), threshold=0.05)).findings
    assert not [finding.title for finding in one if "categories" in finding.title]


# --- how the page shows them -------------------------------------------------------------------------


def test_the_page_shows_the_numbers_of_each_estimator_and_why_one_has_none(tmp_path, capsys, monkeypatch):
    blank = dict.fromkeys(("pull", "extremes", "difficulty", "buckets", "changes"), Picture("", "", "<svg></svg>", ""))
    monkeypatch.setattr("durian_adv.report.figures.draw", lambda summary, folder: blank)
    steps = [with_kinds(k, k, units=(1.0, 0.1), noise=(0.01, 0.01), binary=False) for k in range(2)]
    options = ("--success-threshold", "0.05")
    _, page, printed = report(tmp_path, capsys, steps, *options)
    summary, found = summary_of(*steps, threshold=0.05), cells(page)
    for name in COMPARED:
        worth = summary.worth(name)
        expected = ["n/a"] * 4
        if name not in (KEPT, DROPPED):
            expected = [
                f"{summary.angle('GRPO', name):.0f}°",
                f"{summary.most(name):.2f}",
                percent(summary.extreme(name)),
                f"{worth.worth:.3f} ± {worth.standard_error:.3f}",
            ]
        assert found[name] == expected
    text = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", "", page, flags=re.DOTALL).split())
    assert "n/a is not defined: Durian needs a difficulty score." in text
    assert "per category can reach" in text
    given = advise(summary)
    assert f'<section class="advice {given.kind}">' in page
    assert f'<section class="verdict {verdict.verdict(summary).tone}">' in page
    assert printed.out.splitlines()[1] == given.headline
    _, page, _ = report(tmp_path, capsys, [step._replace(category=None) for step in steps], "--success-threshold", "-9")
    text = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", "", page, flags=re.DOTALL).split())
    assert "std per category needs a category (--key category=COLUMN); extreme groups and worth need" in text
    assert cells(page)["batch std"][2:] == ["n/a", "n/a"]


def test_no_estimators_are_compared_on_a_broken_grouping(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("durian_adv.report.figures.draw", lambda summary, folder: {})
    step = a_step(0, prompts=20)
    merged = step.prompt_index.clone()
    merged[:32] = 0  # four prompts in one
    _, page, _ = report(tmp_path, capsys, [step._replace(prompt_index=merged)])
    assert "No verdict" in page
    assert "No recommendation can be given." in page
    assert "The estimators compared" not in page


@given(st.text(max_size=300), st.lists(st.text("abc 1", max_size=60), min_size=1, max_size=8, unique=True))
def test_prompts_are_told_apart_whatever_they_begin_with(beginning, ends):
    shown = told_apart(beginning + end for end in ends)
    assert shown.keys() == {beginning + end for end in ends}
    assert len(set(shown.values())) == len(ends)
    for name, text in shown.items():
        assert len(text) <= LONGEST_NAME + 2
        assert text.strip("…") in name or text in name


def test_two_prompts_that_differ_late_are_shown_where_they_differ():
    names = ["Add. " * 60 + "One?", "Add. " * 60 + "Two?", "Another"]
    assert [told_apart(names)[name] for name in names] == ["…One?", "…Two?", "Another"]
    assert told_apart(["x", 1, "1"]) == {"1": "1", "x": "x"}


def test_a_fourth_weight_is_that_of_the_category(tmp_path, capsys):
    step = with_kinds(0, units=(1.0, 0.1))._replace(confidence=None)
    (tmp_path / "log").write_text("".join(lines([step])))
    assert main(["metrics", str(tmp_path / "log"), "--weights", "0", "0", "0", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    alone = of_step(step, weights=(0, 0, 0, 1))
    assert found["durian/categories"] == 2
    assert found["durian/advantage_abs_max"] == alone.category.abs().max().item()
