"""``python -m verl.trainer.main_ppo``, for real: every trainer of verl that runs on one machine, text and images."""

import math

import pandas
import pytest
import tiny
import training

from durian_adv.cli import main
from durian_adv.data.scoring import EntropyScorer

CHECKPOINT = {"actor_rollout_ref.actor.checkpoint.save_contents": "[model,hf_model]", "trainer.save_freq": 2}
NEWEST, *OTHERS = ("sync", "v0", "colocate_async") if training.V1 else ("v0",)
PLACES = (("sync", "column"), ("v0", "extra_info"), ("colocate_async", "reward"), ("v0", "reward"))
pytestmark = pytest.mark.skipif(not training.TRAINS, reason="verl 0.7.1 is the oldest that trains on a CPU here")
OPTIONS = {"+algorithm.durian.num_confidence_buckets": 2, "+algorithm.durian.entropy_quantiles": "[0.5]"}


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return tiny.save_text_model(folder / "model"), tiny.save_rows(folder / "train.parquet", tiny.rows(16))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A model, and the same photographs with their entropies in each of the places, and without."""
    folder = tmp_path_factory.mktemp("pictures")
    model = tiny.save_vision_model(folder / "model")
    images = [tiny.photograph(i) for i in range(16)]
    entropy = EntropyScorer(model)({"images": [[{"bytes": image}] for image in images]})["visual_entropy"].tolist()
    assert max(entropy) - min(entropy) > 0.5
    places = {
        "column": tiny.rows(16, images, entropy, column=True, extra="other"),
        "extra_info": tiny.rows(16, images, entropy),
        "reward": tiny.rows(16, images, entropy, extra="its_entropy"),
        "nowhere": tiny.rows(16, images),
    }
    files = {name: tiny.save_rows(folder / f"{name}.parquet", rows) for name, rows in places.items()}
    return model, files, entropy


def test_the_documented_command_adds_the_entropies_to_a_data_set(pictures, tmp_path):
    model, files, entropy = pictures
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    rows = pandas.read_parquet(files["nowhere"]).to_dict("records")
    rows[1]["images"] = [*rows[1]["images"], rows[2]["images"][0]]
    rows[3]["images"] = None
    pandas.DataFrame(rows).to_parquet(source)
    assert main(["entropy", str(source), str(target), "--encoder", model]) == 0
    made = pandas.read_parquet(target)
    wanted = [entropy[0], (entropy[1] + entropy[2]) / 2, entropy[2], math.nan, *entropy[4:]]
    assert made["visual_entropy"].tolist() == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    told = [info["visual_entropy"] for info in made["extra_info"]]
    assert told == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    assert [info["index"] for info in made["extra_info"]] == list(range(16))
    assert made["prompt"].map(list).tolist() == pandas.DataFrame(rows)["prompt"].map(list).tolist()


def trained(folder, model, data, **given):
    run = training.train(
        training.overrides(model, data, **OPTIONS, **CHECKPOINT, **{"trainer.default_local_dir": folder}, **given)
    )
    assert run.status == 0, run.text[-5000:]
    assert len(run.steps) == 2
    for step in run.steps:
        assert step["durian/rollouts"] == 16
        assert step["durian/confidence_missing_share"] == 0
        # what verl trained on is what we computed
        largest = max(step["critic/advantages/max"], -step["critic/advantages/min"])
        assert largest == pytest.approx(step["durian/advantage_abs_max"], rel=1e-6)
    assert max(step["durian/advantage_abs_max"] for step in run.steps) > 0.1
    assert max(step["durian/moved_from_grpo"] for step in run.steps) > 0.01
    after = tiny.weights(folder / "global_step_2/actor/huggingface")
    assert tiny.share_moved(tiny.weights(model), after) > 0.5
    return run


def test_the_newest_trainer_trains_on_text(text, tmp_path):
    run = trained(tmp_path, *text, mode=NEWEST)
    assert not any("entropy" in name for step in run.steps for name in step if name.startswith("durian/"))


@pytest.mark.training
@pytest.mark.parametrize("mode", OTHERS)
def test_the_other_trainers_train_on_text(text, tmp_path, mode):
    trained(tmp_path, *text, mode=mode)


@pytest.mark.training
@pytest.mark.parametrize(
    ("mode", "place"),
    [pair for pair in PLACES if pair[0] in (NEWEST, *OTHERS)],
)
def test_a_vision_language_model_trains_on_png_images(pictures, tmp_path, mode, place):
    model, files, entropy = pictures
    reward = "letters_and_entropy" if place == "reward" else "letters"
    run = trained(tmp_path, model, files[place], mode=mode, images=True, reward=reward)
    for step in run.steps:
        assert step["durian/visual_entropy_missing_share"] == 0
        assert min(entropy) <= step["durian/visual_entropy_mean"] <= max(entropy)
        assert step["durian/perceptual_abs_max"] > 0
    assert run.steps[0]["durian/visual_entropy_mean"] != run.steps[1]["durian/visual_entropy_mean"]


@pytest.mark.training
@pytest.mark.parametrize("mode", sorted({NEWEST, "v0"}))
def test_a_misspelt_option_stops_the_run_before_any_rollout(text, mode):
    run = training.train(training.overrides(*text, mode=mode, **{"+algorithm.durian.wieghts": "[1,0,0]"}))
    assert run.status != 0
    assert "ValueError: algorithm.durian.wieghts: expected one of weights, entropy_quantiles" in run.text
    assert not run.steps
    assert "Training Progress" not in run.text


@pytest.mark.training
@pytest.mark.parametrize("mode", sorted({NEWEST, "v0"}))
def test_images_without_their_entropy_stop_the_run(pictures, mode):
    model, files, _ = pictures
    run = training.train(training.overrides(model, files["nowhere"], mode=mode, images=True))
    assert run.status != 0
    assert "ValueError: visual_entropy: expected a number for prompts with images" in run.text
    assert not run.steps
