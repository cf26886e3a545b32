"""The paper's configuration is one that EasyR1 takes, and the preflight finds what would go wrong."""

import importlib.util
import os
from pathlib import Path

import made
import pytest
import verl
from datasets import Dataset
from omegaconf import OmegaConf
from verl.utils.dataset import process_image

import durian_adv
from durian_adv._src.options import OPTIONS
from durian_adv.adapters.easyr1 import trainer as easyr1
from durian_adv.adapters.easyr1.preflight import checks
from durian_adv.adapters.easyr1.trainer import DurianPPOConfig
from durian_adv.cli import main
from durian_adv.data.scoring import EntropyScorer

PAPER = Path(durian_adv.__file__).parent / "adapters/easyr1/paper.yaml"
CHECKOUT = Path(verl.__file__).resolve().parents[1]


@pytest.fixture
def paper():
    read = OmegaConf.merge(OmegaConf.structured(DurianPPOConfig()), OmegaConf.load(PAPER))
    return OmegaConf.to_object(read)


def test_the_papers_configuration_says_what_the_paper_says(paper):
    assert paper.algorithm.adv_estimator == "durian"
    assert (paper.data.rollout_batch_size, paper.worker.rollout.n) == (512, 8)
    assert paper.worker.actor.global_batch_size == 128
    assert paper.worker.actor.optim.lr == 1e-6
    assert "Qwen2.5-VL-7B" in paper.worker.actor.model.model_path
    assert paper.algorithm.online_filtering
    assert (paper.algorithm.filter_low, paper.algorithm.filter_high) == (0.01, 0.99)
    assert paper.worker.reward.reward_function_kwargs == {"format_weight": 0.1}
    assert easyr1.options_of(paper) == ({name: option.default for name, option in OPTIONS.items()}, None)


@pytest.mark.skipif(not (CHECKOUT / "examples").exists(), reason="an installed EasyR1 has no examples")
def test_the_files_that_the_papers_configuration_names_are_in_easyr1s_checkout(paper, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    paper.deep_post_init()
    assert os.path.exists(paper.data.format_prompt)
    reward = paper.worker.reward
    spec = importlib.util.spec_from_file_location("reward", reward.reward_function)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    score = getattr(module, reward.reward_function_name)
    given = {
        "<think>so</think> \\boxed{4}": 1.0,
        "\\boxed{4}": 0.9,
        "<think>so</think> \\boxed{5}": 0.1,
        "5": 0.0,
    }
    answers = [{"response": response, "response_length": 3, "ground_truth": "4"} for response in given]
    scores = score(answers, **reward.reward_function_kwargs)
    assert [one["overall"] for one in scores] == pytest.approx(list(given.values()))


def preflight(words):
    return list(checks(words))


def levels(found):
    return [check.state for check in found]


def text_of(found, state):
    return " | ".join(f"{check.subject}: {check.finding}" for check in found if check.state == state)


@pytest.fixture
def words(tmp_path):
    return [
        f"config={PAPER}",
        f"data.train_files={made.data(tmp_path / 'train.parquet')}",
        f"data.val_files={tmp_path / 'train.parquet'}",
    ]


def test_the_papers_configuration_passes(words):
    found = preflight(words)
    assert set(levels(found)) == {"ok"}
    text = text_of(found, "ok")
    assert f"EasyR1: {verl.__version__} fits" in text
    assert "prompts: 512 prompts per batch, 170.7 per bucket in 3 buckets of visual entropy, 42.7 per bucket" in text
    assert "visual_entropy: the training data have this column" in text


@pytest.mark.parametrize(
    ("more", "level", "message"),
    [
        ("algorithm.adv_estimator=grpo", "problem", "algorithm.adv_estimator: expected durian, got grpo"),
        (
            "durian.rollout_log=/proc/nothing/log",
            "problem",
            "rollout log: durian.rollout_log: expected a folder that can be made and written, got '/proc/nothing/log'",
        ),
        ("durian.weigths=[1,0,0]", "problem", "durian.weigths: expected one of estimator, weights"),
        ("worker.rollout.n=1", "problem", "worker.rollout.n: expected at least 2 rollouts per prompt, got 1"),
        (
            "data.rollout_batch_size=16",
            "warning",
            "16 prompts with confidence for 12 buckets: with fewer than 2 prompts per bucket",
        ),
        ("data.rollout_batch_size=1", "problem", "prompts: 1 prompt per batch, which the estimator refuses"),
        (
            "durian.weights=[0.1,0.2,0.3,0.4]",
            "problem",
            "category: expected a column of the dataset, for durian.weights[3] = 0.4",
        ),
        ("algorithm.filter_key=overall", "warning", "all wrong in good format stay"),
        ("algorithm.disable_kl=false", "warning", "the KL penalty is a part of the rewards"),
        ("worker.actor.model.freeze_vision_tower=false", "warning", "those of the tower before training"),
    ],
)
def test_what_would_go_wrong_is_told(words, more, level, message):
    found = preflight([*words, more])
    assert message in text_of(found, level)


def test_a_dataset_without_the_column_is_told(words, tmp_path):
    without = f"data.train_files={made.data(tmp_path / 'without.parquet', column=False)}"
    assert "visual_entropy: expected a column of the dataset" in text_of(preflight([*words, without]), "problem")
    assert levels(preflight([*words, without, "durian.weights=[0.3,0,0.7]"])) == ["ok", "ok"]
    text = preflight([*words, without, "data.image_key=pictures"])
    assert "no column pictures or videos in the training data: the perceptual component is left out" in text_of(
        text, "ok"
    )
    alone = preflight([*words, without, "data.image_key=pictures", "durian.weights=[0.3,0.7,0]"])
    assert "no component has a score, which a run refuses" in text_of(alone, "problem")


def test_videos_count_as_images_do(words, tmp_path):
    without = f"data.train_files={made.data(tmp_path / 'without.parquet', column=False)}"
    found = preflight([*words, without, "data.image_key=pictures", "data.video_key=images"])
    assert "visual_entropy: expected a column of the dataset" in text_of(found, "problem")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, None], "expected a number for prompts with images, got none"),
        ([None, float("nan")], "expected a number for prompts with images, got none"),
        (["1.5", "2.5"], "expected one number or null per prompt, got '1.5'"),
        ([[1.5], [2.5]], r"expected one number or null per prompt, got [1.5]"),
    ],
)
def test_a_column_without_numbers_is_a_problem(words, tmp_path, values, message):
    file = str(tmp_path / "other.parquet")
    rows = Dataset.from_list(
        [{"problem": "?", "answer": "A", "images": ["a.png"], "visual_entropy": v} for v in values]
    )
    rows.to_parquet(file)
    assert f"visual_entropy: {message}" in text_of(preflight([*words, f"data.train_files={file}"]), "problem")
    rows.remove_columns("images").to_parquet(file)
    text = text_of(preflight([*words, f"data.train_files={file}"]), "problem")
    assert ("visual_entropy" in text) == (message.startswith("expected one"))


def test_data_that_are_not_there_are_a_problem(words, tmp_path):
    Dataset.from_dict({"problem": [], "images": []}).to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "none").mkdir()
    (tmp_path / "torn.parquet").write_bytes(b"PAR")
    for file, message in (
        ("empty.parquet", "data.train_files: expected prompts, got none in "),
        ("none", "data.train_files: expected files, got an empty folder "),
        ("torn.parquet", "data.train_files: "),
        ("missing.parquet", "data.train_files: "),
    ):
        found = preflight([*words, f"data.train_files={tmp_path / file}"])
        assert message in text_of(found, "problem"), file


def test_folders_and_splits_are_read_as_easyr1_reads_them(words, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    made.data(folder / "train.parquet")
    for given in (folder, f"{tmp_path / 'train.parquet'}@train"):
        assert set(levels(preflight([*words, f"data.train_files={given}"]))) == {"ok"}


def test_an_easyr1_that_does_not_fit_is_told(monkeypatch, words):
    monkeypatch.delattr(easyr1.ray_trainer, "compute_advantage")
    (check,) = preflight(words)
    assert check.state == "problem"
    assert "verl.trainer.ray_trainer has no compute_advantage" in check.finding


def test_words_that_are_no_configuration_are_an_error(words):
    with pytest.raises(ValueError, match="nonsense"):
        preflight([*words, "algorithm.nonsense=1"])


def test_the_documented_command_sees_images_as_easyr1_gives_them_to_its_actor(tmp_path):
    """With the actor's own vision tower, and EasyR1's own reading of images beside ours."""
    made.model(tmp_path / "model")
    source = made.data(tmp_path / "source.parquet", prompts=6, column=False)
    target, limits = tmp_path / "train.parquet", (6000, 6500)
    words = ["entropy", source, target, "--encoder", tmp_path / "model", "--resize-first", *limits]
    assert main([str(word) for word in words]) == 0
    data = Dataset.from_parquet(str(target), cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["problem", "answer", "images", "visual_entropy"]
    seen = [[process_image(image, *limits) for image in images] for images in data["images"]]
    assert len({image.size for images in seen for image in images}) > 1
    scorer = EntropyScorer(str(tmp_path / "model"))
    expected = scorer({"images": seen})["visual_entropy"]
    assert data["visual_entropy"][:] == pytest.approx(expected.tolist(), abs=1e-5)
    whole = scorer({"images": data["images"][:]})["visual_entropy"]
    assert max(abs(whole - expected)) > 1e-3
