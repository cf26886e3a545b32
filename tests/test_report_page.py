"""The page of a report and the table beside it, made as a user makes them, with blank pictures."""

import csv
import inspect
import itertools
import math
import re
import sys
import tracemalloc
import weakref

import pytest
import reference
import torch
from steps import a_step, components, lines, report, summed

import durian_adv
from durian_adv import baselines, durian_components
from durian_adv.cli import main
from durian_adv.cli.rollouts import OF_COMPONENTS
from durian_adv.report import advice, verdict
from durian_adv.report.figures import Picture
from durian_adv.report.numbers import METHODS, Summary

PICTURES = ("pull", "extremes", "difficulty", "buckets", "changes")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Blank pictures: drawing takes a hundred times as long as all the rest of a page."""
    blank = {name: Picture(name, "", "<svg></svg>", "<svg></svg>") for name in PICTURES}
    monkeypatch.setattr("durian_adv.report.figures.draw", lambda summary, folder: blank)


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


def test_the_options_reach_the_method(tmp_path, capsys):
    steps = [a_step(0)]
    options = ("--weights", "1", "0", "0", "--num-confidence-buckets", "2", "--eps", "0.5", "--success-threshold", "2")
    _, page, _ = report(tmp_path, capsys, steps, *options, "--correction", "0")
    assert "0° apart (cosine 1.000" in page
    assert "weights=(1.0, 0.0, 0.0)" in page
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


def test_a_log_without_steps_is_cut_and_keys_are_named(tmp_path, capsys):
    text = "".join(lines([a_step(0, None)])).replace('"prompt"', '"uid"')
    (tmp_path / "log.jsonl").write_text(text)
    arguments = ["report", str(tmp_path / "log.jsonl"), "--out", str(tmp_path), "--key", "prompt=uid"]
    assert main([*arguments, "--batch-prompts", "10"]) == 0
    assert "in 3 steps, 10 prompts per step" in " ".join((tmp_path / "report.html").read_text().split())
    assert main([*arguments, "--key", "reward"]) == 2
    assert "--key: expected NAME=KEY, got 'reward'" in capsys.readouterr().err


def test_several_logs_are_one(tmp_path, capsys):
    for k in range(2):
        (tmp_path / f"{k}.jsonl").write_text("".join(lines([a_step(k, k)])))
    assert main(["report", *(str(tmp_path / f"{k}.jsonl") for k in range(2)), "--out", str(tmp_path)]) == 0
    assert "0.jsonl and 1 more: 480 rollouts of 60 prompts" in " ".join((tmp_path / "report.html").read_text().split())


def test_a_long_log_is_not_held_in_memory(tmp_path, monkeypatch):
    """Rollouts go as their step has been counted; what grows with the log is a row of numbers per step."""
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
    assert peaks[1] - peaks[0] < 36 * 20_000  # bytes; each step has 320 rollouts of 32 bytes, in Python many more


def test_a_report_goes_to_a_folder_of_its_name_if_none_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").write_text("".join(lines([a_step(0)])))
    assert main(["report", "log"]) == 0
    assert {path.name for path in (tmp_path / "durian-report").iterdir()} == {"report.html", "steps.csv"}
    assert main(["report", "log", "--out", "deep/er"]) == main(["report", "log"]) == 0
    assert (tmp_path / "deep/er/report.html").read_text() == (tmp_path / "durian-report/report.html").read_text()


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


@pytest.mark.parametrize(
    ("scale", "header"),
    [
        (lambda r: 0.1 + 0.8 * (r > 0.5), "rewards from 0.1 to 0.9, SHARE of them correct (above 0.5)"),
        (lambda r: -1.0 + 2 * (r > 0.5), "rewards from -1 to 1, SHARE of them correct (above 0)"),
        (lambda r: 0.2 + 0.3 * (r > 0.5), "rewards from 0.2 to 0.5, none above 0.5, so right and wrong are not told"),
        (lambda r: 1.0 + (r > 0.5), "rewards from 1 to 2, SHARE of them correct (above 1.5)"),
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


def test_the_page_counts_the_prompts_without_signal(tmp_path, capsys):
    step = a_step(0)
    outcomes = reference.outcomes(step.rewards.numpy(), prompt_index=step.prompt_index.numpy())
    lost = sum(kind == "none" for *_, kind in outcomes)
    _, page, _ = report(tmp_path, capsys, [step])
    assert f"here those of {lost} of 30 prompts" in " ".join(page.split())


def cells(page):
    """The rows of the page's tables, by their first cell."""
    rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL))
    return {first: others for first, *others in rows}


def test_each_kind_of_prompt_has_its_count_and_its_share_under_each_method(tmp_path, capsys):
    steps = [a_step(k, k) for k in range(3)]
    found, summary = cells(report(tmp_path, capsys, steps)[1]), summed(*steps, buckets=12)
    for label, kind in (
        ("one rollout correct", "extreme_failure"),
        ("others with signal", "other"),
        ("one rollout wrong", "extreme_success"),
    ):
        shares = [verdict.percent(summary.mean(f"{kind}, {method}")) for method in METHODS]
        assert found[label] == [str(summary.kinds[kind]), *shares]
    assert found["no signal: all rewards equal"] == [str(summary.kinds["no_signal"]), "0%", "0%", "0%", "0%"]


def test_the_page_tells_the_log_the_settings_and_the_lines_it_draws(tmp_path, capsys):
    _, page, _ = report(tmp_path, capsys, [a_step(0)], "--confidence-reduction", "mean", "--eps", "0.5")
    text = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", "", page, flags=re.DOTALL).split())
    assert f"durian-adv report of {tmp_path / 'log.jsonl'}:" in text
    default = {name: each.default for name, each in inspect.signature(durian_components).parameters.items()}
    settings = {name: default[name] for name in OF_COMPONENTS}
    settings |= {"eps": 0.5, "success_threshold": 0.5, "confidence_reduction": "mean"}
    told = ", ".join(f"{name}={value}" for name, value in settings.items())
    assert f"the settings{told}; durian-adv {durian_adv.__version__}." in text
    assert f"Under {verdict.NEAR:.0f}° this page says “hardly”, from {verdict.FAR:.0f}° on “clearly”" in text
    assert f"Under {verdict.ENOUGH} per bucket on average; under {verdict.FEW}, far too few" in text
    assert f"at least {advice.CHANCE} times as much as shuffled ones" in text


@pytest.mark.parametrize("steps", [1, 2, 3, 30])
def test_no_more_than_thirty_steps_are_all_shown(tmp_path, capsys, steps):
    _, page, _ = report(tmp_path, capsys, [a_step(k, k, prompts=4) for k in range(steps)])
    assert re.findall(r"<tr><td>(\d+)</td><td>4</td>", page) == [str(k) for k in range(steps)]
    assert "All numbers are in" in " ".join(page.split())


def test_one_prompt_is_not_asked_whether_its_difficulty_is_measured(tmp_path, capsys):
    for prompts in (1, 2):
        _, page, _ = report(tmp_path, capsys, [a_step(0, None, prompts=prompts, width=40)])
        assert ("Is difficulty measured?" in page) == (prompts > 1)
        assert f"{40 * prompts} rollouts of {prompts} prompt{'s' * (prompts > 1)};" in " ".join(page.split())
    assert "Is difficulty measured?" not in report(tmp_path, capsys, [a_step(0, entropy=False, confidence=False)])[1]
    assert "Is difficulty measured?" in report(tmp_path, capsys, [a_step(0, entropy=False)])[1]


def test_long_numbers_are_parted_and_long_names_cut(tmp_path, capsys):
    step = a_step(0, prompts=130)._replace(prompts=[(f"{i:03}" + "x" * (97 + (i + 1) % 2)) for i in range(130)])
    _, page, _ = report(tmp_path, capsys, [step])
    assert "1,040 rollouts of" in page
    shown = re.findall(r'<td class="name">(.*?)</td>', page)
    assert {(len(name), name.endswith("…")) for name in shown} == {(100, False), (101, True)}


def test_options_in_a_sentence_are_set_as_code_and_what_is_around_them_is_text(tmp_path, capsys):
    step = a_step(0)
    _, page, _ = report(tmp_path, capsys, [step._replace(rewards=step.rewards + 1)], "--success-threshold", "0.5")
    assert "set <code>--success-threshold</code></strong>" in page


def test_a_terminal_sees_how_far_the_log_has_been_read_and_a_file_does_not(tmp_path, capsys, monkeypatch):
    told = report(tmp_path, capsys, [a_step(k, k) for k in range(3)])[2].err
    assert told == "durian-adv report: read as plain rollouts: 720 rollouts in 3 steps, 90 prompts x 8 rollouts\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told = report(tmp_path, capsys, [a_step(k, k) for k in range(3)])[2].err
    size = (tmp_path / "log.jsonl").stat().st_size
    assert told.startswith("\rreading:   0%|")
    assert f"reading: 100%|{'█' * 10}| {size / 1000:.1f}k/{size / 1000:.1f}k [" in told
    assert "B/s]" in told
    assert f"computing: 100%|{'█' * 10}| 3/3 [" in told


def test_what_is_not_defined_is_shown_as_not_available():
    from durian_adv.report import figures, page

    assert [page._number(math.nan), page._reward(math.nan)] == ["n/a", "n/a"]
    assert [page._number(1234.0), page._reward(0.25)] == ["1,234", "0.25"]
    assert [page._cosine(math.nan), page._cosine(0.25)] == ["n/a", "0.250"]
    joined = figures._joined([1.0, math.nan, 3.0, math.nan] * figures.DRAWN_STEPS)  # four neighbors each
    assert joined == [2.0] * figures.DRAWN_STEPS
    assert all(map(math.isnan, figures._joined([math.nan] * 3)))
