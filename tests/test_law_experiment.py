"""The law's experiment: a policy whose gradient is written out, a task with fitted dials, runs that stop and go on."""

import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.records import ROOT
from studies.evidence import records
from studies.evidence.records import Record
from studies.law import analysis, checks, declaration, plan, policy, prose, results, rollouts, runner, task, training
from studies.law import figures as law_figures
from studies.law.__main__ import parse_arguments
from studies.law.plan import Run
from studies.law.rollouts import TOKENS
from studies.law.training import Dose


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def seed(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "POOL", 1 << 14)
        return training.load_seed(7, cache)


def sampled(seed, number=300, group=8):
    prompts = seed.pool[torch.arange(number)]
    made = policy.parts(seed.warm)
    seen = rollouts.look(made, prompts)
    uniform = torch.rand(number, group, TOKENS, generator=torch.Generator().manual_seed(0))
    return made, prompts, seen, rollouts.sample(made, prompts, seen, uniform)


# --- the policy and its gradient --------------------------------------------------------------------------------------


def test_the_policy_has_about_thirty_thousand_parameters_and_every_one_is_in_a_part():
    assert 29_000 < policy.size() < 31_000
    flat = torch.zeros(policy.size())
    made = policy.parts(flat)
    for value in (*(x for layer in (*made.reader, *made.computer) for x in layer), made.embedding, made.ending):
        value += 1
    assert (flat == 1).all()


def test_the_gradient_is_that_of_the_responses_log_probabilities(seed):
    made, prompts, seen, found = sampled(seed)
    advantages = torch.randn(found.kept.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages -= advantages.mean(1, keepdim=True)
    written = torch.zeros_like(seed.warm)
    rollouts.gradient(made, prompts, seen, found, advantages, policy.parts(written))
    flat = seed.warm.double().requires_grad_()
    of_double = replace(prompts, pictures=prompts.pictures.double())
    made = policy.parts(flat)
    logprob = rollouts.logprobs(made, of_double, rollouts.look(made, of_double), found)
    loss = -(advantages * logprob).sum() / ((2 * prompts.depth + 2).sum() * found.kept.shape[1])
    loss.backward()
    torch.testing.assert_close(written.double(), flat.grad, atol=1e-7, rtol=1e-3)
    assert (flat.grad != 0).double().mean() > 0.5


def test_the_computed_accuracy_is_what_sampling_tends_to(seed):
    _, prompts, _, found = sampled(seed, 200, 2000)
    exact = task.accuracies(seed.warm, prompts).double()
    error = (exact * (1 - exact) / 2000).sqrt().clamp(min=1e-3)
    z = (found.correct.double().mean(1) - exact) / error
    assert z.abs().max() < 5
    assert z.std() < 1.3


def test_answers_follow_from_the_symbols_that_count():
    prompts = task.draw(200, np.random.default_rng(0))
    for k in range(200):
        s, o = prompts.symbols[k].tolist(), prompts.operations[k].tolist()
        last = s[0]
        for step in range(int(prompts.depth[k])):
            a, b = last, s[step + 1]
            last = [(a + b) % 16, (a - b) % 16, max(a, b), a ^ b][o[step]]
        assert last == prompts.answer[k]


# --- the task ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_drawn_by_their_shares_prompts_have_appendix_as_accuracies(number):
    accuracy = torch.from_numpy(np.random.default_rng(number).beta(0.3, 0.3, 20_000)).clamp(1e-6, 1 - 1e-6)
    share = task.shares(accuracy)
    logits = torch.logit(accuracy).numpy()
    assert share.sum() == pytest.approx(1)
    assert share @ logits == pytest.approx(task.FIRST, abs=0.1)
    middle = share @ (np.abs(logits - task.FIRST) < task.SPREAD)
    assert middle == pytest.approx(scipy.stats.norm.cdf(1) - scipy.stats.norm.cdf(-1), abs=0.03)


def test_the_task_is_what_was_declared():
    found = declaration.measured()
    assert found["signal"] == pytest.approx(323 / 512, abs=0.02)
    assert found["extreme"] == pytest.approx(0.368, abs=0.02)
    assert found["perception"] == pytest.approx([23.6, 31.3, 45.1], abs=3.0)  # Table 5 of arXiv 2602.21743
    assert found["reasoning"][0] == pytest.approx(13.4, abs=1.5)  # Table 6
    assert found["reasoning"][-1] == pytest.approx(4.2, abs=1.5)
    assert found["noise_over_signal"]["1"] > 2  # the law is one of noisy steps


def test_a_policy_misreads_or_miscomputes_every_wrong_answer(seed):
    _, prompts, _, found = sampled(seed)
    misread, miscomputed = checks.errors(prompts, found)
    assert ((misread | miscomputed) == ~found.correct).all()
    assert misread.any()
    assert miscomputed.any()
    shares = checks.by_bucket(torch.arange(10.0), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), 2)
    assert shares == [0, 100]


def test_scores_are_correlated_with_the_kind_as_declared(seed):
    made, prompts, seen, found = sampled(seed, 4000)
    scores = training.scores(prompts, rollouts.logprobs(made, prompts, seen, found).mean(1))
    for score, sign in zip(scores, (1, -1), strict=True):
        r = sign * float(np.corrcoef(score, prompts.kind)[0, 1])
        assert r == pytest.approx(training.QUALITY, abs=0.03)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_how_many_are_asked_for_at_a_time_changes_nothing(seed):
    """So arms with the same policy see the same prompts and responses, however their filters went before."""
    made = policy.parts(seed.warm)
    computed = policy.compute(made)
    one = training.collect(made, seed, 3, Dose(), 0.2, computed)
    other = training.collect(made, seed, 3, Dose(), 0.9, computed)
    assert one[2] == other[2]
    for first, second in zip(one[:2], other[:2], strict=True):
        for name, value in vars(first).items():
            assert torch.equal(value, getattr(second, name)), name
    right = one[1].correct.sum(1)
    assert len(right) == training.PROMPTS
    assert ((right > 0) & (right < training.GROUP)).all()
    assert len(training.collect(made, seed, 3, Dose(filtered=False), 0.2, computed)[0]) == training.PROMPTS


def test_a_filter_that_finds_too_few_gives_up_and_the_step_takes_those(seed, monkeypatch):
    monkeypatch.setattr(training, "TRIED", 100)
    made = policy.parts(seed.warm)
    prompts, _, tried = training.collect(made, seed, 3, Dose(), 0.6, policy.compute(made))
    assert tried == 100
    assert 20 < len(prompts) < 100


def test_the_dose_is_in_the_rewards_of_its_kind_alone(seed):
    made, prompts, seen, found = sampled(seed)
    logprob = rollouts.logprobs(made, prompts, seen, found)
    plain, noisy, small = (
        training.make_batch(prompts, found, dose, logprob, seed, 0).rewards
        for dose in (Dose(), Dose(noise=(0.0, 2.0)), Dose(unit=(1.0, 0.25)))
    )
    second = prompts.kind == 1
    assert set(plain.unique().round(decimals=3).tolist()) == {0, 0.1, 0.9, 1}
    assert torch.equal(plain[~second], noisy[~second])
    assert (noisy - plain)[second].std() == pytest.approx(2, rel=0.1)
    torch.testing.assert_close(small, plain * torch.where(second, 0.25, 1.0)[:, None])


@pytest.mark.parametrize("passing", [5, 7])
def test_a_policy_that_nothing_passes_any_more_ends_its_run(seed, passing, monkeypatch):
    """At an exam, and between two."""
    collect = training.collect

    def collected(made, seed, step, *more):
        prompts, found, tried = collect(made, seed, step, *more)
        some = torch.arange(len(prompts) if step < passing else 0)
        return prompts[some], found[some], tried

    monkeypatch.setattr(training, "EXAM_EVERY", 5)
    monkeypatch.setattr(training, "collect", collected)
    rows, _ = training.train(seed, "GRPO", Dose(), 0.004, steps=20)
    assert [row["step"] for row in rows] == [0, 5, 20]
    assert rows[-1]["held_out"] > 0


@pytest.mark.parametrize("arm", training.ARMS)
def test_every_arm_trains_and_learns(seed, arm, monkeypatch):
    monkeypatch.setattr(training, "EXAM_EVERY", 6)
    rows, worth = training.train(seed, arm, Dose(noise=(0.0, 0.7)), 0.004, steps=12)
    assert [row["step"] for row in rows] == [0, 6, 12]
    assert rows[-1]["held_out"] > rows[0]["held_out"] + 0.01
    assert 0.3 < worth < 1.1


def test_the_worth_of_the_first_steps_is_what_the_law_predicts(seed):
    """The noise that makes variances 1 and 4: batch std is worth 0.64, a std per kind more."""
    dose = Dose(noise=(0.0, declaration.read()["noise_std_by_ratio"]["4"]))
    predicted = declaration.read()["predicted_worth"]["variance"]["4"]
    for arm in ("batch std", "std by kind"):
        _, worth = training.train(seed, arm, dose, 1e-6, steps=training.MEASURED)
        assert worth == pytest.approx(predicted[arm], abs=0.05)


# --- the plan ---------------------------------------------------------------------------------------------------------


def of_pilots(outcome, best):
    """Records of pilots whose accuracy falls off from a best rate; the plan grows until it is inside."""
    found = {}
    while missing := [run for run in plan.pilot_runs(outcome, found) if run.name not in found]:
        for run in missing:
            accuracy = 0.6 - 0.01 * (math.log2(run.rate) - math.log2(best[run.dose])) ** 2
            found[run.name] = Record({}, [{"held_out": accuracy}])
    return found


def test_pilots_grow_until_the_best_is_inside_and_rates_between_the_ends_are_interpolated():
    found = of_pilots("variance", {"1": 0.02, "9": 0.0013})
    rates = {run.rate for run in plan.pilot_runs("variance", found)}
    assert rates == {0.001 / 2, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032}
    chosen = [plan.rate_of("variance", dose, "GRPO", found) for dose in ("1", "2", "4", "9")]
    assert chosen == pytest.approx([0.02 ** (1 - k / 3) * 0.0013 ** (k / 3) for k in range(4)], rel=0.05)
    assert plan.rate_of("variance", "1", "std by kind", found) == plan.rate_of("variance", "1", "batch std", found)
    assert not [run for run in plan.pilot_runs("variance", found) if run.dose == "1" and run.arm == "std by kind"]


def test_no_run_counts_before_the_pilots_are_done():
    with pytest.raises(ValueError, match="pilots are not done"):
        plan.main_runs("variance", {})


@pytest.mark.parametrize("outcome", declaration.DOSES)
def test_the_plan_has_every_arm_and_seed_of_every_dose_and_no_seed_of_a_pilot(outcome):
    ends = plan.ORDER[outcome][: plan.PILOTED]
    runs = plan.main_runs(outcome, of_pilots(outcome, dict.fromkeys(ends, 0.004)))
    assert len({run.name for run in runs}) == len(runs) == 4 * 20 * len(plan.arms_of(outcome))
    assert list(dict.fromkeys(run.dose for run in runs)) == list(plan.ORDER[outcome])
    assert not {run.seed for run in runs} & set(plan.PILOT_SEEDS)
    assert set(plan.arms_of(outcome)) <= set(declaration.read()["arms"])


# --- runs that stop and go on ---------------------------------------------------------------------------------------


SCRIPT = """
import sys, torch
from pathlib import Path
from studies.law import training
from tests.test_law_experiment import go_on
training.POOL, training.EXAM_EVERY = 1 << 14, 5
go_on(Path(sys.argv[1]))
"""


def go_on(folder):
    runs = [Run("unit", "1", arm, 7, 0.004) for arm in ("GRPO", "batch std", "std by kind")]
    return runner.run_all(
        lambda _: runs, folder=folder / "runs", table=folder / "no.parquet", cache=folder / "warm", steps=10
    )


def test_a_killed_plan_goes_on_where_it_was_with_the_same_numbers(tmp_path, seed, cache, monkeypatch, capfd):
    shutil.copytree(cache, tmp_path / "warm")
    path = tmp_path / "runs" / "unit-1"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT)
    while not list(path.glob("*.csv")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    first = {file.name: file.read_bytes() for file in path.glob("*.csv")}
    assert 1 <= len(first) <= 3
    monkeypatch.setattr(training, "POOL", 1 << 14)
    monkeypatch.setattr(training, "EXAM_EVERY", 5)
    assert go_on(tmp_path) == 3 - len(first)
    assert {name: (path / name).read_bytes() for name in first} == first
    found = records.read_folder(tmp_path / "runs")
    assert len(found) == 3
    again = runner.perform(Run("unit", "1", "GRPO", 7, 0.004), training.load_seed(7, cache), steps=10)
    assert again.steps == found["unit-1/GRPO-7"].steps  # the first was made by the process
    assert "runs" in capfd.readouterr().err


def test_records_of_other_settings_are_refused_and_parts_share_the_seeds():
    runs = [Run("unit", "1", "GRPO", number, 0.004) for number in range(5)]
    done = {runs[0].name: Record(plan.settings(runs[0]) | {"worth": 1.0}, [])}
    parts = [runner._missing(runs, done, (number, 2)) for number in (1, 2)]
    assert [run.seed for part in parts for run in part] == [2, 4, 1, 3]
    done[runs[0].name].head["rate"] = 0.1
    with pytest.raises(ValueError, match="unit-1/GRPO-0: its record has other rate; move it away"):
        runner._missing(runs, done, (1, 1))


def test_the_command_refuses_doses_and_parts_that_are_not_there(capsys):
    assert parse_arguments(["run", "unit", "--part", "2/3", "--doses", "0.5"]).part == (2, 3)
    for wrong in (["run", "--doses", "3"], ["run", "--part", "3/2"], ["run", "speed"]):
        with pytest.raises(SystemExit):
            parse_arguments(wrong)
    assert "--doses: expected some of 1, 2, 4, 9, got 3" in capsys.readouterr().err


# --- the analysis -----------------------------------------------------------------------------------------------------


def made_up(slope, noise=0.0, doses=("9", "1", "4", "2")):
    """Records of runs whose arms end where the law says, times a slope."""
    rng, found = np.random.default_rng(0), {}
    steps = np.arange(0, 201, 20)
    curve = 0.4 + 0.2 * (1 - np.exp(-steps / 80))
    for dose in doses:
        worth = declaration.read()["predicted_worth"]["variance"][dose]
        for arm in plan.ARMS:
            ends = analysis.straight(200 * worth[arm] / worth["std by kind"], steps, curve)
            for number in plan.SEEDS:
                rows = [{"step": s, "held_out": a} for s, a in zip(steps.tolist(), curve.tolist(), strict=True)]
                rows[-1]["held_out"] += slope * (ends - curve[-1]) + noise * rng.normal()
                name = analysis.run_name("variance", dose, arm, number)
                found[name] = Record({"worth": worth[arm], "cpu_seconds": 4.0}, rows)
    return found


@pytest.mark.parametrize(
    ("slope", "said"), [(1.0, "holds"), (0.5, "has the right sign and the wrong size"), (0.0, "fails")]
)
def test_the_slope_is_what_it_was_made_of(slope, said):
    doses = analysis.complete("variance", made_up(slope, 0.002))
    assert list(doses) == ["1", "2", "4", "9"]
    found = analysis.slopes([doses[dose] for dose in ("2", "4", "9")])
    low, high = analysis.interval(found)
    assert len(found) == 20
    assert low < slope < high
    assert high - low < 0.2
    assert analysis.verdict(low, high) == said
    exact = analysis.complete("variance", made_up(slope))
    assert analysis.slopes([exact["4"]]) == pytest.approx(slope)
    assert analysis.slopes([exact["4"]], ["batch std"]) == pytest.approx(slope)
    assert analysis.slopes([exact["4"]], predicted=lambda dose, arm: 2 * dose.predicted(arm)) == pytest.approx(
        slope / 2
    )


def test_a_dose_counts_only_when_every_run_of_it_is_there():
    found = made_up(1.0, doses=("9", "1"))
    del found["variance-1/GRPO-3"]
    assert list(analysis.complete("variance", found)) == ["9"]
    assert analysis.counted("variance", found) == {"1": 99, "2": 0, "4": 0, "9": 100}


def test_differences_are_paired_and_corrected_over_doses_that_were_not_run_too():
    doses = list(analysis.complete("variance", made_up(1.0, 0.002, doses=("9", "1"))).values())
    found = analysis.compare(doses, [analysis.PRIMARY])
    ninth = found[1]
    d = doses[1].last("Durian, dropped") - doses[1].last("batch std")
    test = scipy.stats.ttest_rel(doses[1].last("Durian, dropped"), doses[1].last("batch std"))
    assert (ninth.mean, ninth.p) == pytest.approx((d.mean(), test.pvalue))
    assert ninth.low < ninth.predicted < ninth.high
    corrected = analysis.corrected(found, 4)
    assert corrected[1] == pytest.approx(min(1, 4 * ninth.p))
    assert analysis.reached(doses[1], "GRPO") == pytest.approx(200)
    assert math.isnan(analysis.reached(doses[1], "batch std"))


def test_speed_is_read_off_the_curve_of_a_std_by_kind():
    """An arm that takes twice as many steps for everything has speed 0.5; the interval is none, as no seed differs."""
    steps = np.arange(0, 201, 20.0)
    curves = np.array([1 - np.exp(-steps / 100), 1 - np.exp(-steps / 200), 1 - np.exp(-steps * 1.1 / 100)])
    accuracy = np.repeat(curves[:, None], 5, axis=1)
    dose = analysis.Dose("9", ("std by kind", "slow", "fast"), steps, accuracy, {}, np.empty(0))
    assert analysis.speed(dose, "std by kind") == pytest.approx((1, 1, 1))
    assert analysis.speed(dose, "slow") == pytest.approx((0.5, 0.5, 0.5))
    assert analysis.speed(dose, "fast")[0] == pytest.approx(1.1, abs=0.02)
    noisy = replace(
        dose,
        accuracy=accuracy + np.array([0.01, -0.01, 0.02, 0, 0])[None, :, None] * (np.arange(3) == 1)[:, None, None],
    )
    _, low, high = analysis.speed(noisy, "slow")
    assert low < 0.5 < high


# --- what the page says ----------------------------------------------------------------------------------------------


def test_the_page_compares_nothing_before_a_dose_is_complete():
    found = made_up(1.0, doses=("9",))
    del found["variance-9/GRPO-3"]
    said = " ".join(results.section(found).split())
    assert "variance 9: 99 of 100" in said
    assert "Not complete, and so not compared with anything: variance 1, 2, 4, 9; unit 1, 0.5," in said
    assert "test.png" not in said
    assert "holds" not in said
    assert results.of_case("variance 9", found) == ""
    assert results.tested(found) == prose.UNTESTED.strip()


@pytest.mark.parametrize(
    ("slope", "said"), [(1.0, "holds"), (0.4, "has the right sign and the wrong size"), (-0.2, "fails")]
)
def test_the_page_says_what_the_declaration_says_of_the_slope(slope, said):
    found = made_up(slope, 0.002, doses=("9", "1"))
    text = results.section(found)
    assert f"**The law {said}** by the declared criterion" in text
    assert "anything: variance 2, 4;" in " ".join(text.split())
    assert ("does **not** grow" in text) == (slope < 0)
    assert results.of_case("variance 9", found).endswith("20 seeds")


def test_the_picture_has_a_point_for_every_arm_and_dose(tmp_path, monkeypatch):
    shown = results.drawn(made_up(1.0, 0.002))
    assert list(shown) == ["ratio of variances"]
    points, primary = shown["ratio of variances"]
    assert len(points) == 4 * 4
    drawn = []
    monkeypatch.setattr(law_figures, "_interval", lambda axes, x, d, *style, **options: drawn.append((x, d)))
    law_figures.draw_test(shown, tmp_path / "test.png")
    assert [(x, d) for x, d in drawn[:16]] == [(100 * d.predicted, d) for d in points]
    assert [(place, d.dose) for place, d in drawn[16:]] == [(0, "1"), (1, "2"), (2, "4"), (3, "9")]
    assert [d for _, d in drawn[16:]] == primary
    assert (tmp_path / "test.png").stat().st_size > 5000
