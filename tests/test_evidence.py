"""The evidence's machinery: closed forms, arms, shared noise, runs that are killed and go on, what is measured."""

import doctest
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rlvr.language import RESPONSE_LENGTH
from benchmarks.rlvr.prompts import sample_prompts
from benchmarks.rlvr.questions import Question
from benchmarks.rlvr.rollout import response_logprobs
from benchmarks.rlvr.training import clipped_loss
from studies.evidence import closed_forms, comparison, mechanism, quick, records, runner, tables
from studies.evidence.__main__ import chosen_runs, parse_arguments
from studies.evidence.arms import ARMS, MAIN, Batch
from studies.evidence.conditions import CONDITIONS, MAIN_CONDITION, Run, runs_of
from studies.evidence.demonstrations import slip
from studies.evidence.loop import backward, collect, make_optimizer, train_step
from studies.evidence.sampling import sample, uniforms
from studies.evidence.suite import Settings, Suite, digest_of, load_suite

TINY = Settings(images=64, held_out_images=12, width=16, warmup_steps=120)
SMALL = replace(MAIN_CONDITION, name="small", seeds=1, steps=12, prompts=16, samples=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def suite(cache) -> Suite:
    return load_suite(TINY, cache)


# --- closed forms ---------------------------------------------------------------------------------------------------


def binary_rewards(right: list[int], size: int) -> torch.Tensor:
    return (torch.arange(size) < torch.tensor(right)[:, None]).double()


@given(st.integers(2, 33), st.data())
def test_grpo_and_dr_grpo_are_never_further_apart_than_the_bound(size, data):
    right = data.draw(st.lists(st.integers(0, size), max_size=40))
    rewards = binary_rewards([1, *right], size)  # one group has signal
    batch = batch_of(rewards)
    one, other = (ARMS[name].advantage(batch).flatten() for name in ("grpo", "dr-grpo"))
    assert mechanism.cosine(one, other) >= closed_forms.binary_bound(size) - 1e-5


def test_the_bound_at_8_is_979_and_at_2_there_is_no_difference():
    assert closed_forms.binary_bound(8) >= 0.979
    assert closed_forms.binary_bound(2) == 1.0
    rewards = binary_rewards([0, 1, 2, 1, 1], 2)
    one, other = (ARMS[name].advantage(batch_of(rewards)) for name in ("grpo", "dr-grpo"))
    torch.testing.assert_close(one, other * one.max() / other.max())


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_the_bound_is_reached(size):
    """By the mixture in which groups of the two extreme stds have squares in the ratio of those stds."""
    lowest, highest = closed_forms.std_range(size)
    share = highest / (lowest + highest)
    extreme = round(4000 * share)
    rewards = binary_rewards([1] * extreme + [size // 2] * (4000 - extreme), size)
    one, other = (ARMS[name].advantage(batch_of(rewards)).flatten() for name in ("grpo", "dr-grpo"))
    assert mechanism.cosine(one, other).item() == pytest.approx(closed_forms.binary_bound(size), abs=1e-5)


@pytest.mark.parametrize("size", [2, 3, 8, 9, 32])
def test_the_range_of_stds_is_that_of_all_compositions(size):
    stds = [binary_rewards([right], size).std(correction=0).item() for right in range(1, size)]
    assert (min(stds), max(stds)) == pytest.approx(closed_forms.std_range(size))


def test_format_alone_lets_the_cosine_fall_to_its_bound():
    share = 0.5 / (0.5 + 0.1 * 7**0.5 / 8)
    few = round(4000 * share)
    rewards = torch.cat([0.1 * binary_rewards([1] * few, 8), binary_rewards([4] * (4000 - few), 8)])
    one, other = (ARMS[name].advantage(batch_of(rewards)).flatten() for name in ("grpo", "dr-grpo"))
    assert mechanism.cosine(one, other).item() == pytest.approx(closed_forms.format_bound(8), abs=1e-4)


# --- arms -----------------------------------------------------------------------------------------------------------


def batch_of(rewards: torch.Tensor, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    prompts = len(rewards)
    return Batch(
        rewards=rewards,
        correct=rewards > 0.5,
        visual_entropy=torch.rand(prompts, generator=generator),
        confidence=torch.rand(rewards.shape, generator=generator),
        clutter=torch.rand(prompts, generator=generator),
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_one_factor_per_prompt_on_centered_rewards(name):
    rewards = torch.randint(0, 2, (96, 8), generator=torch.Generator().manual_seed(1)).float()
    rewards[:5] = 1.0
    advantages = ARMS[name].advantage(batch_of(rewards))
    factor = mechanism.factor(advantages, rewards)
    torch.testing.assert_close(advantages, factor[:, None] * (rewards - rewards.mean(1, keepdim=True)))
    assert (advantages[:5] == 0).all()
    assert (factor[5:] > 0).all()


def test_arms_with_one_scale_a_batch_have_one_direction():
    batch = batch_of(torch.randint(0, 2, (96, 8), generator=torch.Generator().manual_seed(2)).float())
    plain = ARMS["dr-grpo"].advantage(batch).flatten()
    for name in ("batch-std", "rloo", "reinforce++-baseline", "pooled-std"):
        assert mechanism.cosine(ARMS[name].advantage(batch).flatten(), plain).item() == pytest.approx(1.0, abs=1e-6)
    for name in ("grpo", "durian", "random-buckets", "by-clutter"):
        factors = mechanism.factor(ARMS[name].advantage(batch), batch.rewards)
        assert factors.max() > 1.001 * factors[factors > 0].min()


def test_random_buckets_have_durians_sizes_and_another_members():
    batch = batch_of(torch.randint(0, 2, (96, 8), generator=torch.Generator().manual_seed(3)).float())
    assert not torch.equal(ARMS["random-buckets"].advantage(batch), ARMS["durian"].advantage(batch))
    again = (ARMS["random-buckets"].advantage(replace(batch, rng=np.random.default_rng(seed))) for seed in (5, 5))
    assert torch.equal(*again)


def test_buckets_by_accuracy_are_nearly_grpo():
    """Prompts that share their accuracy share their std: what is left is the group's own std."""
    batch = batch_of(torch.randint(0, 2, (96, 8), generator=torch.Generator().manual_seed(4)).float())
    found = mechanism.cosine(ARMS["by-accuracy"].advantage(batch).flatten(), ARMS["grpo"].advantage(batch).flatten())
    assert found.item() > 0.995


# --- sampling and the loop ------------------------------------------------------------------------------------------


def test_the_same_noise_gives_the_same_words_and_other_noise_others(suite):
    prompts = sample_prompts(suite.train, 8, np.random.default_rng(0))
    noise = uniforms(8, 4, np.random.default_rng(1))
    one, same = (sample(suite.policy(), suite.train, prompts, noise) for _ in range(2))
    assert torch.equal(one.tokens, same.tokens)
    other = sample(suite.policy(), suite.train, prompts, uniforms(8, 4, np.random.default_rng(2)))
    assert one.tokens.shape != other.tokens.shape or not torch.equal(one.tokens, other.tokens)


def test_sampled_logprobs_are_those_of_the_loss_although_finished_prompts_leave(suite):
    policy, prompts = suite.policy(), sample_prompts(suite.train, 16, np.random.default_rng(3))
    rollouts = sample(policy, suite.train, prompts, uniforms(16, 2, np.random.default_rng(4)))
    ends = rollouts.mask.sum(-1).amax(1)
    assert ends.min() < ends.max()
    again = response_logprobs(policy, suite.train, prompts, rollouts, torch.arange(16))
    torch.testing.assert_close(again, rollouts.logprobs, atol=1e-4, rtol=0)
    assert (rollouts.logprobs[~rollouts.mask] == 0).all()


def test_samples_follow_the_policys_probabilities(suite):
    """The first word of many responses to one prompt, against its probabilities (chi-squared, 1 in 10,000)."""
    import scipy.stats

    policy, prompts = suite.policy(), sample_prompts(suite.train, 1, np.random.default_rng(5))
    rollouts = sample(policy, suite.train, prompts, uniforms(1, 4000, np.random.default_rng(6)))
    with torch.no_grad():
        prompt = policy.read(suite.train.patches[prompts.scenes], prompts.question_tokens)
        first = policy.response_logits(prompt, torch.zeros(1, RESPONSE_LENGTH, dtype=torch.long))[0, 0].softmax(-1)
    counts = rollouts.tokens[0, :, 0].bincount(minlength=len(first)).numpy()
    expected = first.double().numpy()
    often = expected > 0.005
    pooled = [np.append(x[often], x[~often].sum()) for x in (counts, expected / expected.sum() * 4000)]
    assert scipy.stats.chisquare(*pooled).pvalue > 1e-4


def test_the_gradient_in_parts_is_that_of_the_whole_loss(suite):
    policy = suite.policy()
    sampled = collect(policy, suite, SMALL, 0, 0)
    advantages = torch.randn(16, SMALL.group_size, generator=torch.Generator().manual_seed(0))
    advantages[5:9] = 0.0
    rows = torch.arange(3, 14)
    backward(policy, suite.train, sampled, advantages, rows, 0.2)
    parts = torch.cat([weight.grad.flatten() for weight in policy.parameters() if weight.grad is not None])
    policy.zero_grad()
    logprobs = response_logprobs(policy, suite.train, sampled.prompts, sampled.rollouts, rows)
    old, mask = sampled.rollouts.logprobs[rows], sampled.rollouts.mask[rows]
    clipped_loss(logprobs, old, mask, advantages[rows], 0.2).backward()
    whole = torch.cat([weight.grad.flatten() for weight in policy.parameters() if weight.grad is not None])
    assert whole.norm() > 0
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def test_prompt_gradients_add_up_to_the_gradient_of_every_arm(suite):
    policy = suite.policy()
    sampled = collect(policy, suite, SMALL, 0, 1)
    by_prompt = mechanism.prompt_gradients(policy, suite, sampled)
    for name in ("grpo", "durian"):
        advantages = ARMS[name].advantage(sampled.batch)
        policy.zero_grad()
        backward(policy, suite.train, sampled, advantages, torch.arange(16), 0.2)
        named = [weight.grad for name, weight in policy.named_parameters() if not name.startswith("name_")]
        whole = torch.cat([gradient.flatten() for gradient in named])
        factors = mechanism.factor(advantages, sampled.batch.rewards)
        torch.testing.assert_close(factors @ by_prompt, -whole, atol=1e-6, rtol=1e-3)


def test_a_slip_keeps_chain_and_answer_together():
    rng = np.random.default_rng(0)
    question = Question(
        "sum", (), ("circle", "1", "0", "2", "0", "=", "3", "plus", "square", "0", "1", "0", "0", "=", "1"), "4", 2
    )
    answers = set()
    for _ in range(50):
        slipped = slip(question, rng)
        chain = slipped.chain
        assert int(chain[6]) == sum(map(int, chain[1:5]))
        assert int(chain[14]) == sum(map(int, chain[9:13]))
        assert int(slipped.answer) == int(chain[6]) + int(chain[14])
        answers.add(slipped.answer)
    assert len(answers) > 1


# --- runs -----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_record_and_no_run_changes_the_start(suite, tmp_path):
    before = digest_of(suite.warm)
    runs = [Run(SMALL, arm, 0) for arm in ("grpo", "durian")]
    for folder in ("one", "two"):
        assert runner.run_all(runs, suite, folder=tmp_path / folder, cache=tmp_path) == 2
    for run in runs:
        one, two = (records.read(records.path_of(run, tmp_path / folder)) for folder in ("one", "two"))
        assert one.steps == two.steps
        assert one.head["final"] == two.head["final"]
        assert len(one.steps) == SMALL.steps
    assert digest_of(suite.warm) == before
    first, second = (records.read(records.path_of(run, tmp_path / "one")) for run in runs)
    assert first.steps[0]["accuracy"] == second.steps[0]["accuracy"]  # the first batch is the same for both arms
    assert first.steps != second.steps
    assert runner.run_all(runs, suite, folder=tmp_path / "one", cache=tmp_path) == 0


KILLED = """
import sys
from pathlib import Path
from tests.test_evidence import SMALL, TINY
from studies.evidence import runner
from studies.evidence.conditions import Run
from studies.evidence.suite import load_suite
import torch
torch.set_num_threads(1)
cache, folder = map(Path, sys.argv[1:])
runner.KEEP_EVERY = 2
runner.run_all([Run(SMALL, arm, 0) for arm in ("grpo", "durian")], load_suite(TINY, cache), folder=folder, cache=folder)
"""


def test_a_run_that_is_killed_goes_on_and_loses_nothing(suite, cache, tmp_path, monkeypatch):
    runs = [Run(SMALL, arm, 0) for arm in ("grpo", "durian")]
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(cache), str(tmp_path)], cwd=root, env=environment,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    state, first = runner.state_path(runs[1], tmp_path), records.path_of(runs[0], tmp_path)
    deadline = time.monotonic() + 240
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed in its second run"
    assert first.exists()
    assert not records.path_of(runs[1], tmp_path).exists()
    kept = first.read_text()

    done = []
    monkeypatch.setattr(runner, "train_step", lambda *a: done.append(a[-1]) or train_step(*a))
    assert runner.run_all(runs, suite, folder=tmp_path, cache=tmp_path) == 1
    assert first.read_text() == kept
    assert 0 < len(done) < SMALL.steps, "it went on from its state"
    assert not state.exists()
    monkeypatch.undo()
    runner.run_all(runs, suite, folder=tmp_path / "whole", cache=tmp_path)
    resumed, whole = (records.read(records.path_of(runs[1], folder)) for folder in (tmp_path, tmp_path / "whole"))
    assert resumed.steps == whole.steps
    assert resumed.head["final"] == whole.head["final"]


def record_of(steps: int, **last: float) -> records.Record:
    rows = [{"step": float(step), "accuracy": round(0.1 + step / 7, 6)} for step in range(steps)]
    rows[-1] |= last
    return records.Record({"arm": "grpo", "final": {"sampled": 0.5}}, rows)


def test_finished_runs_are_folded_into_the_table_and_nothing_of_them_changes(tmp_path):
    folder, table = tmp_path / "runs", tmp_path / "runs.parquet"
    assert records.read_table(table) == {}
    first, second = record_of(3, held_out=0.483156), record_of(2, gradient_norm=1.23456e-30)
    records.write(folder / "main/grpo-000.csv", first)
    assert records.collect(folder, table) == 1
    (folder / "main/grpo-000.csv").unlink()
    records.write(folder / "main/dr-grpo-012.csv", second)
    assert records.collect(folder, table) == 1
    assert records.collect(folder, table) == 0
    assert records.read_table(table) == {"main/grpo-000": first, "main/dr-grpo-012": second}
    assert records.of_condition("main", records.read_table(table)) == {("grpo", 0): first, ("dr-grpo", 12): second}
    assert records.of_condition("mai", records.read_table(table)) == {}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["runs.parquet"]


@given(st.floats(allow_nan=True, width=32), st.booleans())
def test_a_number_of_six_digits_comes_back_from_the_table_or_is_refused(tmp_path_factory, value, there):
    table = tmp_path_factory.getbasetemp() / "numbers.parquet"
    record = record_of(2, **({"loss": float(f"{value:.6g}")} if there else {}))
    try:
        records.write_table(table, {"main/grpo-000": record})
    except ValueError:
        assert abs(value) > 3.40281e38 or 0 < abs(value) < 1.2e-38, "float32's six digits end there"
    else:
        assert repr(records.read_table(table)) == repr({"main/grpo-000": record})


def test_a_number_with_more_digits_does_not_lose_them_in_silence(tmp_path):
    with pytest.raises(ValueError, match="loss: expected numbers of six digits"):
        records.write_table(tmp_path / "runs.parquet", {"main/grpo-000": record_of(2, loss=0.12345678)})
    assert not list(tmp_path.iterdir())


def test_a_run_of_the_table_is_not_overwritten_by_another(tmp_path):
    folder, table = tmp_path / "runs", tmp_path / "runs.parquet"
    records.write_table(table, {"main/grpo-000": record_of(3)})
    before = table.read_bytes()
    records.write(folder / "main/grpo-000.csv", record_of(2))
    with pytest.raises(ValueError, match=r"grpo-000\.csv: differs from the run of that name"):
        records.collect(folder, table)
    assert table.read_bytes() == before


def test_a_collected_run_is_not_trained_again_and_must_be_of_the_same_settings(suite, tmp_path):
    run = Run(replace(SMALL, steps=1), "grpo", 0)
    runner.run_all([run], suite, folder=tmp_path / "one", cache=tmp_path)
    collected = records.read_folder(tmp_path / "one")
    assert runner.run_all([run], suite, collected=collected, folder=tmp_path / "two", cache=tmp_path) == 0
    with pytest.raises(ValueError, match=r"small/grpo-000: .* condition; move it away"):
        runner.run_all([Run(SMALL, "grpo", 0)], suite, collected=collected, folder=tmp_path / "two", cache=tmp_path)


def test_records_of_other_settings_are_refused(suite, tmp_path):
    run = Run(replace(SMALL, steps=1), "grpo", 0)
    runner.run_all([run], suite, folder=tmp_path, cache=tmp_path)
    with pytest.raises(ValueError, match="condition; move it away"):
        runner.run_all([Run(SMALL, "grpo", 0)], suite, folder=tmp_path, cache=tmp_path)
    other = replace(suite, warm={name: weight + 1 for name, weight in suite.warm.items()})
    with pytest.raises(ValueError, match="warm; move it away"):
        runner.run_all([run], other, folder=tmp_path, cache=tmp_path)


def test_the_filter_leaves_out_what_has_no_signal(suite):
    condition = replace(SMALL, updates=1)
    sampled = collect(suite.policy(), suite, condition, 0, 0)
    signal_rows = sampled.batch.correct.any(1) & ~sampled.batch.correct.all(1)
    assert 0 < signal_rows.sum() < len(signal_rows)
    tokens = sampled.rollouts.mask.sum(dim=(1, 2))
    norms = {}
    for name in ("grpo", "grpo-filter"):
        policy = suite.policy()
        row = train_step(policy, make_optimizer(policy, condition), suite, condition, ARMS[name], 0, 0)
        norms[name] = row["gradient_norm"]
    share = tokens[signal_rows].sum() / tokens.sum()
    assert norms["grpo"] == pytest.approx(norms["grpo-filter"] * share.item(), rel=1e-3)


def test_the_plan():
    main = runs_of([MAIN_CONDITION])
    assert len(main) == 8 * 20
    assert [run.arm for run in main[:8]] == list(MAIN)
    assert {run.seed for run in main[:8]} == {0}
    names = [run.name for run in runs_of(CONDITIONS.values())]
    assert len(names) == len(set(names))
    assert all(run.arm in ARMS for run in runs_of(CONDITIONS.values()))
    assert CONDITIONS["wide"].prompts // 12 >= 20


# --- what is measured without training ------------------------------------------------------------------------------


def test_the_mechanism_is_measured_and_adds_up(suite, tmp_path, monkeypatch):
    small = replace(SMALL, prompts=12)
    monkeypatch.setattr(mechanism, "MAIN_CONDITION", small)
    monkeypatch.setattr(mechanism, "FORMAT", replace(small, format_weight=0.1))
    mechanism.main(suite, tmp_path, steps=(0, 1), batches=2, held_out=1)
    arms, pairs, sizes = (mechanism.read(tmp_path / f"{name}.csv") for name in ("arms", "pairs", "group_sizes"))
    assert len(arms) == 2 * 2 * len(mechanism.NAMES)
    for row in arms:
        for share in ("square_share", "gradient_share"):
            assert sum(row[name] for name in row if name.startswith(share)) == pytest.approx(1.0, abs=1e-3)
        assert row["square_share_no_signal"] == row["gradient_share_no_signal"] == 0.0
        assert sum(row[name] for name in row if name.startswith("groups_")) == pytest.approx(12)
        assert row["largest"] >= row["rms"] > 0
    for row in pairs:
        assert max(abs(row[name]) for name in ("advantages", "gradients", "first_adam_steps")) <= 1 + 1e-5
        if {row["arm"], row["with"]} == {"dr-grpo", "batch-std"}:
            assert row["gradients"] == pytest.approx(1.0, abs=1e-5)
    for row in sizes:
        if row["arm"] == "grpo":
            assert row["bound"] - 1e-5 <= row["cosine"] <= 1 + 1e-5


def test_the_true_gradient_is_the_one_that_finite_differences_give(suite):
    """A prompt's gradient, checked along a random direction against the change of its sampled log-probabilities."""
    policy = suite.policy().double()
    gallery = replace(suite.train, patches=suite.train.patches.double())
    wide = replace(suite, train=gallery)
    sampled = collect(suite.policy(), suite, SMALL, 0, 2)
    by_prompt = mechanism.prompt_gradients(policy, wide, sampled)
    row = int(by_prompt.norm(dim=1).argmax())
    weights = [weight for name, weight in policy.named_parameters() if not name.startswith("name_")]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
    centered = sampled.batch.rewards[row] - sampled.batch.rewards[row].mean()

    def gain(shift: float) -> float:
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight += shift * d
            logprobs = response_logprobs(policy, gallery, sampled.prompts, sampled.rollouts, torch.tensor([row]))
            for weight, d in zip(weights, direction, strict=True):
                weight -= shift * d
        return float((logprobs[0].sum(-1) * centered).sum() / sampled.rollouts.mask.sum())

    slope = (gain(1e-5) - gain(-1e-5)) / 2e-5
    along = by_prompt[row].double() @ torch.cat([d.flatten() for d in direction])
    assert along.item() == pytest.approx(slope, rel=1e-3)


def test_the_tables_are_measured_and_add_up(suite, tmp_path):
    tables.main(suite, tmp_path, images=12)
    for score in ("entropy", "confidence, sum"):
        rows = [row for row in mechanism.read(tmp_path / "errors.csv") if row["score"] == score]
        assert sum(row["share"] for row in rows if row["errors"] == "any") == pytest.approx(1.0, abs=1e-4)
    rows = mechanism.read(tmp_path / "suite.csv")
    assert sum(row["prompts"] for row in rows[:-2]) == rows[-1]["prompts"] == TINY.held_out_images
    layers = {row["score"] for row in mechanism.read(tmp_path / "correlations.csv")}
    assert {"entropy, stride16", "entropy, head", "confidence, sum", "confidence, mean"} <= layers


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (r"<think> 1 0 2 0 = 2 </think> \boxed{ 2 }", "reasoning"),
        (r"<think> 1 0 2 0 = 3 </think> \boxed{ 2 }", "reasoning"),
        (r"<think> 1 0 1 0 = 2 </think> \boxed{ 2 }", "perception"),
        (r"<think> guess </think> \boxed{ 2 }", "guess"),
        (r"<think> 1 0 2 = 3 </think> \boxed{ 2 }", "other"),
        (r"<think> 1 0 1 0 = 2 \boxed{ 2 }", "perception"),
    ],
)
def test_errors_are_told_apart_by_what_went_wrong_first(response, kind):
    question = Question("all", (), ("1", "0", "2", "0", "=", "3"), "3", 1)
    assert tables.kind_of_error(response, question) == kind


@pytest.mark.parametrize("module", [closed_forms, comparison])
def test_docstring_examples(module):
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


# --- commands -------------------------------------------------------------------------------------------------------


def test_the_small_evidence_runs_and_a_second_call_trains_nothing(suite, tmp_path, monkeypatch, capsys):
    tiny = replace(SMALL, name="quick", arms=("grpo", "durian"), seeds=3, steps=2)
    monkeypatch.setattr(quick, "QUICK", tiny)
    monkeypatch.setattr(mechanism, "MAIN_CONDITION", tiny)
    monkeypatch.setattr(mechanism, "FORMAT", replace(tiny, format_weight=0.1))
    quick.main(suite, tmp_path)
    first = capsys.readouterr().out
    assert re.search(r"durian - grpo +[+-]\d+\.\d\d% \[", first)
    assert len(list((tmp_path / "runs/quick").glob("*.csv"))) == 6
    monkeypatch.setattr(runner, "train_step", lambda *_: pytest.fail("it trained again"))
    quick.main(suite, tmp_path)
    assert capsys.readouterr().out == first


def test_a_run_that_is_repeated_is_compared_with_its_record(suite, tmp_path, monkeypatch):
    condition = replace(SMALL, arms=("grpo",), steps=2)
    monkeypatch.setattr(runner, "CONDITIONS", {"small": condition})
    run = Run(condition, "grpo", 0)
    runner.run_all([run], suite, folder=tmp_path, cache=tmp_path)
    assert runner.repeat(run.name, suite, records.read_folder(tmp_path)) == ""
    path = records.path_of(run, tmp_path)
    record = records.read(path)
    record.steps[1]["accuracy"] += 0.01
    records.write(path, record)
    assert runner.repeat(run.name, suite, records.read_folder(tmp_path)) == "small/grpo-000: the runs part at step 1"
    with pytest.raises(ValueError, match="run: expected a name such as main/grpo-000, got small/grpo-1"):
        runner.repeat("small/grpo-1", suite, {})
    with pytest.raises(ValueError, match="run: small/grpo-000 has no record yet"):
        runner.repeat(run.name, suite, {})


@pytest.mark.parametrize(
    ("words", "message"),
    [("run mian", "conditions: expected some of"), ("run --part 0/2", "k/n"), ("run --part 3/2", "k/n")],
)
def test_a_wrong_argument_is_named(words, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(words.split())
    assert message in capsys.readouterr().err


def test_parts_share_the_seeds_out():
    runs = [parse_arguments(["run", "main", "--part", f"{k}/3"]).part for k in (1, 2, 3)]
    assert runs == [(1, 3), (2, 3), (3, 3)]
    seeds = [{run.seed for run in chosen_runs(parse_arguments(["run", "main", "--part", f"{k}/3"]))} for k in (1, 2, 3)]
    assert set.union(*seeds) == set(range(20))
    assert sum(map(len, seeds)) == 20
