"""What the adapters share beside the estimator, and the tables of options on their pages. Needs no trainer."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

from durian_adv import ArgumentError
from durian_adv._src.options import OPTIONS
from durian_adv.adapters._entropy import require_entropy
from durian_adv.adapters._preflight import Check, described, log_folder, no_images, open_log, prompts_check, verdict
from durian_adv.adapters._trainer import STATE_FILE, evaluator, load_window, save_window
from durian_adv.data.logs import writer
from durian_adv.estimator import AdvantageEstimator

DOCS = Path(__file__).resolve().parent.parent / "docs"
# page -> prefix of the options, the trainer's own eps, options of the adapter alone
PAGES = {
    "trl": ("durian_", 1e-4, {"features", "rollout_log"}),
    "swift": ("durian_", 1e-4, {"features", "rollout_log"}),
    "verl": ("", 1e-6, {"rollout_log"}),
    "openrlhf": ("", 1e-9, {"entropy_table", "features", "rollout_log"}),
    "easyr1": ("durian.", 1e-6, {"rollout_log"}),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_a_trainer_has_every_option_with_its_default_and_choices(name):
    prefix, eps, own = PAGES[name]
    section = (DOCS / f"{name}.md").read_text().split("\n## Options\n")[1].split("\n## ")[0]
    rows = {option: rest for option, *rest in re.findall(r"^\| `(.+?)` \| (.+?) \| (.+) \|$", section, re.MULTILINE)}
    assert list(rows) == [*(prefix + option for option in OPTIONS), *sorted(prefix + option for option in own)]
    for option in OPTIONS.values():
        written, text = rows[prefix + option.name]
        default = eps if option.name == "eps" else option.default
        if isinstance(default, tuple):
            assert tuple(map(float, re.findall(r"[\d.]+", written))) == default, option.name
        else:
            assert type(default)(written) == default, option.name
        if option.kind is str:
            assert [choice for choice in option.choices if f"`{choice}`" not in text] == [], option.name


def test_a_verdict_is_ok_or_what_it_is_otherwise():
    assert verdict(True, "a", "b") == Check("ok", "a", "b")
    assert verdict(None, "a", "b") == Check("problem", "a", "b")
    assert verdict("", "a", "b", otherwise="warning") == Check("warning", "a", "b")


def test_the_options_of_an_estimator_are_described_in_a_line():
    text = described(AdvantageEstimator(window=3, weights=(1, 0, 0)))
    assert text.startswith("estimator=durian, weights=(1.0, 0.0, 0.0), entropy_quantiles=(0.25, 0.75), ")
    assert "window=3" in text
    assert text.count("=") == len(OPTIONS)


FEW = "with fewer than 2 prompts per bucket, the std they share"


@pytest.mark.parametrize(
    ("prompts", "images", "options", "state", "finding"),
    [
        (24, False, {}, "ok", "24 prompts per batch, 2.0 per bucket in 12 buckets of confidence"),
        (
            24,
            True,
            {},
            "ok",
            "24 prompts per batch, 8.0 per bucket in 3 buckets of visual entropy, 2.0 per bucket in 12 buckets of "
            "confidence",
        ),
        (
            8,
            True,
            {"entropy_quantiles": 4, "weights": (1, 1, 0)},
            "ok",
            "2.0 per bucket in 4 buckets of visual entropy",
        ),
        (8, True, {"weights": (1, 0, 0)}, "ok", "8 prompts per batch"),
        (8, True, {"estimator": "rloo"}, "ok", "8 prompts per batch"),
        (8, False, {"window": 16}, "ok", "8 prompts per batch and 16 in the window, 2.0 per bucket in 12 buckets"),
        (23, False, {}, "warning", f"23 prompts with confidence for 12 buckets: {FEW}"),
        (
            7,
            False,
            {"window": 16},
            "warning",
            f"7 prompts with confidence for 12 buckets, beside a window of 16: {FEW}",
        ),
        (5, True, {"weights": (1, 1, 0)}, "warning", f"5 prompts with visual entropy for 3 buckets: {FEW}"),
        (1, False, {}, "problem", "1 prompt per batch, which the estimator refuses: the scale is shared by several"),
        (1, False, {"window": 64}, "ok", "1 prompt per batch and 64 in the window, 5.4 per bucket"),
        (1, False, {"estimator": "batch_std"}, "problem", "1 prompt per batch, which the estimator refuses"),
        (1, False, {"estimator": "grpo"}, "ok", "1 prompt per batch"),
    ],
)
def test_how_many_prompts_share_a_std(prompts, images, options, state, finding):
    check = prompts_check(prompts, AdvantageEstimator(**options), images)
    assert (check.state, check.subject) == (state, "prompts")
    assert finding in check.finding
    if state == "ok" and "bucket" not in finding:
        assert check.finding == finding


@pytest.mark.parametrize("entropy", [None, torch.full((3,), math.nan)])
def test_images_without_any_entropy_are_refused_with_the_option_that_asks_for_it(entropy):
    with pytest.raises(ArgumentError) as raised:
        require_entropy(entropy, "algorithm.durian.weights[1]")
    assert str(raised.value) == (
        "visual_entropy: expected a number for prompts with images, for algorithm.durian.weights[1] > 0, got none. "
        "Compute it beforehand (durian-adv entropy), or set algorithm.durian.weights[1] to 0"
    )


def test_one_entropy_is_enough():
    require_entropy(torch.tensor([math.nan, 1.0]), "weights[1]")


def filled(**options):
    """An estimator that has seen a batch."""
    estimator = AdvantageEstimator(**{"estimator": "batch_std", "window": 4, **options})
    estimator([0.0, 1.0, 0.5, 0.5, 0.0, 3.0], [0, 0, 1, 1, 2, 2])
    return estimator


def test_an_evaluation_has_an_estimator_without_a_window_which_takes_one_prompt():
    training = filled()
    state = training.state_dict()
    several, alone = evaluator(training, 2), evaluator(training, 1)
    assert several.options == {**training.options, "window": 0}
    assert alone.options == {**several.options, "estimator": "grpo"}
    assert alone([0.0, 1.0], ["a", "a"]).tolist() == AdvantageEstimator(estimator="grpo")([0.0, 1.0], [0, 0]).tolist()
    assert training.state_dict() == state
    assert evaluator(AdvantageEstimator(estimator="rloo"), 1).options["estimator"] == "rloo"


def test_the_window_is_saved_and_taken_up(tmp_path):
    training = filled()
    save_window(training, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    resumed = AdvantageEstimator(estimator="batch_std", window=4)
    load_window(resumed, tmp_path)
    batch = [0.0, 0.0, 7.0], ["a", "a", "a"]
    assert (
        resumed(*batch).tolist() == training(*batch).tolist() != AdvantageEstimator(estimator="grpo")(*batch).tolist()
    )


def test_without_a_window_nothing_is_saved_and_nothing_looked_for(tmp_path):
    save_window(filled(window=0), tmp_path)
    load_window(filled(window=0), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_window_is_a_warning_and_a_damaged_one_an_error(tmp_path):
    with pytest.warns(UserWarning, match=rf"{STATE_FILE} does not exist: the window of recent prompts starts empty"):
        load_window(filled(), tmp_path)
    for content in (b"damaged", b""):
        (tmp_path / STATE_FILE).write_bytes(content)
        with pytest.raises(RuntimeError, match=f"{STATE_FILE} cannot be read as a window of recent prompts: "):
            load_window(filled(), tmp_path)


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0.3, 0.3, 0.4), "ok"),
        ((0.3, 0.3, 0.0, 0.4), "ok"),
        ((0.3, 0.7, 0.0), "problem"),
    ],
)
def test_training_data_without_images_are_a_problem_where_nothing_else_has_a_score(weights, expected):
    estimator = AdvantageEstimator(weights=weights)
    check = no_images("entropy", estimator, "no column images")
    assert check.state == expected
    left = "the perceptual component is left out, the other weights are scaled up"
    assert (
        check.finding
        == f"no column images: {left if expected == 'ok' else 'no component has a score, which a run refuses'}"
    )
    if expected == "problem":  # as the estimator does
        with pytest.raises(ArgumentError, match="got none that is known"):
            estimator([1.0, 0.0] * 2, [1, 1, 2, 2], visual_entropy=[None] * 4)


@pytest.mark.parametrize("name", ["new", "new/and/deeper", "there", "."])
def test_a_log_folder_that_can_be_written_is_told_so_and_nothing_is_left_behind(tmp_path, name):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("kept")
    before = everything_in(tmp_path)
    folder = str(tmp_path / name)
    assert log_folder("a.log", folder) == Check("ok", "rollout log", f"a.log: {folder} can be written")
    assert everything_in(tmp_path) == before
    assert open_log("a.log", folder).folder == Path(folder)
    assert set(everything_in(tmp_path)) <= {*before, "new", "new/and", "new/and/deeper"}


def test_the_log_of_an_earlier_run_is_told_of_and_stays(tmp_path):
    estimator = AdvantageEstimator(estimator="grpo")
    estimator([0.0, 1.0], [0, 0])
    writer.RolloutLog(tmp_path).write(7, estimator.record)
    check = log_folder("a.log", str(tmp_path))
    assert check.state == "ok"
    text = "; 1 of an earlier run's steps are there: those from this run's first step on get other names"
    assert check.finding == f"a.log: {tmp_path} can be written{text}"
    assert everything_in(tmp_path) == ["step_00000007.parquet"]


@pytest.mark.parametrize("name", ["file", "file/log", "gone", "n" * 300, "byte\0"])
def test_a_log_folder_that_cannot_be_made_is_refused_with_its_option_by_the_check_and_by_the_run(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to("nowhere")
    before, folder = everything_in(tmp_path), str(tmp_path / name)
    with pytest.raises(
        ArgumentError, match=r"^a\.log: expected a folder that can be made and written, got '/"
    ) as raised:
        open_log("a.log", folder)
    assert log_folder("a.log", folder) == Check("problem", "rollout log", str(raised.value))
    assert everything_in(tmp_path) == before


def test_a_log_without_pyarrow_is_refused_and_no_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    writer._arrow.cache_clear()
    check = log_folder("a.log", str(tmp_path / "log"))
    monkeypatch.undo()
    writer._arrow.cache_clear()
    assert (check.state, everything_in(tmp_path)) == ("problem", [])
    assert check.finding.startswith("rollout_log: a log of parquet files needs pyarrow")


def test_a_run_that_begins_to_write_during_the_check_keeps_its_folder(tmp_path, monkeypatch):
    class AndARun(writer.RolloutLog):
        def write(self, *args, **kwargs):
            (tmp_path / "log" / "step_00000001.parquet").write_text("of the run")
            return super().write(*args, **kwargs)

    monkeypatch.setattr("durian_adv.adapters._preflight.RolloutLog", AndARun)
    assert log_folder("a.log", str(tmp_path / "log")).state == "ok"
    assert everything_in(tmp_path) == ["log", "log/step_00000001.parquet"]


def test_a_folder_that_is_there_and_cannot_be_written_is_refused_too():
    with pytest.raises(ArgumentError, match=r"^a\.log: expected a folder that can be made and written, got '/proc': "):
        open_log("a.log", "/proc")
    assert log_folder("a.log", "/proc").state == "problem"
