"""``durian-adv preflight verl`` on configurations and data of verl, once in a process of its own with Ray."""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import training
import verl
from omegaconf import OmegaConf
from transformers import AutoModelForImageTextToText
from verl.workers.config import HFModelConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

from durian_adv.adapters.verl import preflight
from durian_adv.adapters.verl.preflight import checks

PIXELS = [b"1", b"2", b"3", b"4"]
ENTROPY = [1.0, 2.0, None, 4.0]


def of_parts(row, *parts):
    """A row whose message is a list of parts, as verl's dataset passes it on."""
    calls = [{"type": "function", "function": {"name": "add"}}]
    return {
        **row,
        "prompt": [{"role": "user", "content": [*parts, {"type": "text", "text": "1+1"}], "tool_calls": calls}],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data sets that differ in where their entropy is."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "text": tiny.rows(4),
        "nowhere": tiny.rows(4, PIXELS),
        "column": tiny.rows(4, PIXELS, ENTROPY, column=True, extra="other"),
        "extra_info": tiny.rows(4, PIXELS, ENTROPY),
        "both": tiny.rows(4, PIXELS, [1.0, 2.0, 3.0, 4.0], column=True),
        "videos": [{**row, "videos": row.pop("images")} for row in tiny.rows(4, PIXELS)],
        "whole": tiny.rows(4, PIXELS, [1.0, 2.0, 3.0, 4.0]),
        "empty": [{**row, "images": [], "videos": None} for row in tiny.rows(4)],
        "sound": [{**row, "audios": [b"1"]} for row in tiny.rows(4)],
        "in messages": [of_parts(row, {"type": "image", "image": "a.png"}) for row in tiny.rows(4)],
        "text in messages": [of_parts(row, {"type": "text", "text": "?"}) for row in tiny.rows(4)],
        "sound in messages": [of_parts(row, {"type": "audio", "audio": "a.wav"}) for row in tiny.rows(4)],
    }
    return {name: tiny.save_rows(folder / f"{name}.parquet", made) for name, made in rows.items()}


def found(data, which, *words, **given):
    """What the checks find, by subject, without Ray."""
    options = {"data.train_batch_size": 48, **{name.replace("__", "."): value for name, value in given.items()}}
    words = [*words, *training.overrides("model", data[which], **options)]
    return {check.subject: check for check in checks(["--no-ray", *words])}


def test_a_run_of_text_has_nothing_to_complain_of(data):
    all_of_it = found(data, "text")
    assert {check.state for check in all_of_it.values()} == {"ok"}
    assert list(all_of_it) == ["plugin", "program", "estimator", "options", "entropy", "confidence", "prompts"]
    assert all_of_it["entropy"].finding.startswith("no images: the perceptual component is left out")
    assert all_of_it["prompts"].finding == "48 prompts per batch, 4.0 per bucket in 12 buckets of confidence"
    assert all_of_it["plugin"].finding.startswith(f"verl {verl.__version__} loads durian_adv ")


@pytest.mark.parametrize("which", ["empty", "sound", "text in messages", "sound in messages"])
def test_a_column_of_images_may_be_empty_and_sound_is_nothing_to_see(data, which):
    assert found(data, which)["entropy"].finding.startswith("no images: ")
    assert "vision tower" not in found(data, which)


def test_images_may_be_in_the_messages(data):
    (problem,) = [check for check in found(data, "in messages", **NO_REWARD).values() if check.state == "problem"]
    assert problem.finding.startswith("the dataset has images and no entropy of them")


OWN_REWARD = {"reward__custom_reward_function__path": "mine.py"}
NO_REWARD = {"reward__custom_reward_function__path": "null"}


@pytest.mark.parametrize(
    ("which", "mode", "reward", "state", "finding"),
    [
        ("column", "sync", NO_REWARD, "warning", "the dataset's visual_entropy, for 3 of 4 prompts"),
        ("extra_info", "colocate_async", NO_REWARD, "warning", "extra_info.visual_entropy, for 3 of 4 prompts"),
        ("whole", "sync", NO_REWARD, "ok", "the dataset's extra_info.visual_entropy, for 4 of 4 prompts"),
        ("both", "sync", NO_REWARD, "ok", "the dataset's visual_entropy, for 4 of 4 prompts"),
        ("both", "v0", NO_REWARD, "ok", "the dataset's extra_info.visual_entropy, for 4 of 4 prompts"),
        ("videos", "sync", NO_REWARD, "problem", "images and no entropy of them, and there is no reward function"),
        ("whole", "v0", NO_REWARD, "ok", "the dataset's extra_info.visual_entropy, for 4 of 4 prompts"),
        (
            "column",
            "v0",
            NO_REWARD,
            "problem",
            "step of v0, extra_info.visual_entropy would, and there is no reward function",
        ),
        (
            "column",
            "v0",
            OWN_REWARD,
            "warning",
            "step of v0, extra_info.visual_entropy would; the reward function must return",
        ),
        ("nowhere", "sync", OWN_REWARD, "warning", "images and no entropy of them; the reward function must return"),
        (
            "nowhere",
            "sync",
            NO_REWARD,
            "problem",
            "images and no entropy of them, and there is no reward function of yours",
        ),
    ],
)
def test_the_entropy_is_looked_for_where_the_trainer_can_have_it(data, which, mode, reward, state, finding):
    check = found(data, which, **reward, **{"trainer__use_v1": mode != "v0"}, **trainer_mode(mode))["entropy"]
    assert check.state == state
    assert finding in check.finding


def trainer_mode(mode):
    return {} if mode == "v0" else {"trainer__v1__trainer_mode": mode}


def test_the_entropy_reaches_fully_async_through_the_reward_function_alone(data):
    for reward, state in ((NO_REWARD, "problem"), (OWN_REWARD, "warning")):
        check = found(data, "whole", **reward, **{"+async_training__require_batches": 1})["entropy"]
        assert check.state == state
        assert "extra_info.visual_entropy does not reach the advantage step of fully_async" in check.finding


def test_weights_of_zero_need_nothing(data):
    all_of_it = found(data, "nowhere", **{"+algorithm__durian__weights": "[1,0,0]"})
    assert {check.state for check in all_of_it.values()} == {"ok"}
    assert "vision tower" not in all_of_it
    assert all_of_it["prompts"].finding == "48 prompts per batch"


def test_a_vision_tower_that_is_trained_is_told(data):
    assert found(data, "whole")["vision tower"].state == "warning"
    frozen = found(data, "whole", **{"actor_rollout_ref__actor__freeze_vision_tower": True})["vision tower"]
    assert frozen.state == "warning"
    assert frozen.finding.endswith(
        f"verl {verl.__version__} does nothing with actor_rollout_ref.actor.freeze_vision_tower"
    )
    lora = {"actor_rollout_ref__model__lora_rank": 8}
    assert found(data, "whole", **lora)["vision tower"].state == "warning"
    kept_out = {"actor_rollout_ref__model__exclude_modules": "'.*visual.*'"}
    assert found(data, "whole", **kept_out)["vision tower"].state == "warning"
    check = found(data, "whole", **lora, **kept_out)["vision tower"]
    assert check.state == "ok"
    assert "none in .*visual.*: entropies computed beforehand are exact if that is the whole tower" in check.finding


def test_under_lora_verl_trains_nothing_of_a_tower_that_is_excluded(tmp_path):
    tiny.save_vision_model(tmp_path)
    for excluded in (".*visual.*", None):
        config = HFModelConfig(path=str(tmp_path), lora_rank=2, exclude_modules=excluded, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path)
        made = FSDPEngine._build_lora_module(SimpleNamespace(model_config=config), model)
        trained = [name for name, weight in made.named_parameters() if weight.requires_grad]
        assert trained
        assert any("visual" in name for name in trained) == (excluded is None)


def test_verl_still_does_nothing_with_freeze_vision_tower():
    # where it does, the preflight and the documentation can call entropies exact again
    package = Path(verl.__file__).parent
    reading = [file for file in package.rglob("*.py") if "freeze_vision_tower" in file.read_text(encoding="utf-8")]
    assert [str(file.relative_to(package)) for file in reading] == ["workers/config/actor.py"]


@pytest.mark.parametrize(
    ("given", "subject", "finding"),
    [
        ({"algorithm__adv_estimator": "grpo"}, "estimator", "algorithm.adv_estimator is grpo, for Durian it must be"),
        ({"+algorithm__durian": 3}, "options", "algorithm.durian: expected options by their names, got 3"),
        ({"+algorithm__durian__wieghts": "[1,0,0]"}, "options", "algorithm.durian.wieghts: expected one of estimator"),
        ({"algorithm__norm_adv_by_std_in_grpo": False}, "options", "algorithm.norm_adv_by_std_in_grpo: expected true"),
        ({"actor_rollout_ref__rollout__n": 1}, "options", "actor_rollout_ref.rollout.n: expected at least 2"),
    ],
)
def test_a_configuration_that_cannot_work_is_a_problem(data, given, subject, finding):
    check = found(data, "text", **given)[subject]
    assert check.state == "problem"
    assert finding in check.finding


def test_prompts_are_counted_by_advantage_step(data):
    few = found(data, "whole", data__train_batch_size=6)["prompts"]
    assert few.state == "warning"
    assert "6 prompts with confidence for 12 buckets: with fewer than 2 prompts per bucket" in few.finding
    split = {"trainer__v1__trainer_mode": "separate_async", "trainer__v1__separate_async__parameter_sync_step": 4}
    assert found(data, "text", **split)["prompts"].finding.startswith("12 prompts with confidence for 12 buckets")


def test_prompts_of_fully_async_are_those_it_requires(data):
    folder = Path(verl.__file__).parent / "experimental/fully_async_policy/config"
    words = [
        *("--config-path", str(folder), "--config-name", "fully_async_ppo_trainer", "algorithm.adv_estimator=durian"),
        *(f"data.train_files={data['text']}", "data.train_batch_size=0", "actor_rollout_ref.rollout.n=4"),
        *("actor_rollout_ref.actor.ppo_mini_batch_size=64", "async_training.require_batches=3"),
    ]
    (check,) = [check for check in checks(["--no-ray", *words]) if check.subject == "prompts"]
    assert check.state == "ok"
    assert check.finding == "192 prompts per batch, 16.0 per bucket in 12 buckets of confidence"


def test_a_samplers_truncated_logprobs_are_told(data):
    bypass = {"algorithm__rollout_correction__bypass_mode": True}
    assert found(data, "text", **bypass)["confidence"].state == "ok"
    truncated = found(data, "text", actor_rollout_ref__rollout__top_p=0.9, **bypass)["confidence"]
    assert truncated.state == "warning"
    assert "larger than the policy's because of top_p or top_k" in truncated.finding


def test_a_configuration_of_ones_own_is_read(data, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "hydra:\n  searchpath:\n    - pkg://verl.trainer.config\ndefaults:\n  - ppo_trainer\n  - _self_\n"
        "algorithm:\n  durian:\n    num_confidence_buckets: 3\n"
    )
    words = ["--config-path", str(tmp_path), "--config-name", "mine"]
    assert "num_confidence_buckets=3" in found(data, "text", *words)["options"].finding


def test_an_option_that_verl_does_not_have_is_an_error(data):
    with pytest.raises(ValueError, match="no_such_thing"):
        found(data, "text", no_such_thing=1)


def test_the_documented_run_has_nothing_to_complain_of_but_the_tower(data):
    page = (training.ROOT / "docs/verl.md").read_text()
    block = page.partition("options=(\n")[2].partition("\n)")[0]
    words = [word.split("=", 1) for word in shlex.split(block)]
    options = {name: data["whole"] if name.endswith("_files") else value for name, value in words}
    made = list(checks(["--no-ray", *(f"{name}={value}" for name, value in options.items())]))
    assert [check.subject for check in made if check.state != "ok"] == ["vision tower"], made
    shown = page.partition("512 prompts per batch")[2].partition("\n")[0]
    assert f"512 prompts per batch{shown}" in [check.finding for check in made]


def test_the_command_finds_the_plugin_in_workers_and_tells_when_there_is_none(data):
    command = [str(Path(sys.executable).with_name("durian-adv")), "preflight", "verl"]
    words = training.overrides("model", data["text"])
    for policy, status in (("auto", 0), ("none", 2)):
        with tempfile.TemporaryDirectory(prefix="verl") as folder:  # a short path: Ray's sockets lie in it
            run = subprocess.run(
                [*command, *words, f"+ray_kwargs.ray_init._temp_dir={folder}"],
                env=training.environment(VERL_USE_EXTERNAL_PLUGINS=policy),
                capture_output=True,
                text=True,
                check=False,
            )
        assert run.returncode == status, run.stderr
        workers = [line for line in run.stdout.splitlines() if " workers: node " in line]
        assert len(workers) == 1
        if policy == "auto":
            assert workers[0].startswith("ok ")
            assert f"verl {verl.__version__} loads durian_adv" in workers[0]
        else:
            assert workers[0].startswith("problem ")
            assert "verl does not know the estimator durian" in workers[0]
            assert "VERL_USE_EXTERNAL_PLUGINS is none" in run.stdout


@pytest.mark.parametrize(
    ("name", "state", "finding"),
    [
        ("train.jsonl", "warning", "train.jsonl: not looked into"),
        ("hdfs://there/train.parquet", "warning", "train.parquet: not looked into"),
        ("/no/such/train.parquet", "problem", "No such file"),
    ],
)
def test_data_that_cannot_be_looked_into_are_told_and_the_other_checks_made(data, name, state, finding):
    words = training.overrides("model", data["whole"], **{"data.train_batch_size": 48})
    words.append(f"data.train_files=['{name}']")
    made = list(checks(["--no-ray", *words]))
    first = next(check for check in made if check.subject == "data")
    assert first.state == state
    assert finding in first.finding
    assert [check.subject for check in made][-2:] == ["confidence", "prompts"]
    words[-1] = f"data.train_files=['{name}','{data['whole']}']"
    made = {check.subject: check for check in checks(["--no-ray", *words])}
    assert made["data"].state == state
    assert made["entropy"].state == "ok"


def test_a_batch_of_any_size_is_told(data):
    check = found(data, "text", data__train_batch_size="null")["prompts"]
    assert check.state == "warning"
    assert check.finding.startswith("data.train_batch_size is None")


def test_external_lib_is_not_enough_for_the_separate_trainers(data, monkeypatch):
    monkeypatch.delitem(sys.modules, "durian_adv.adapters.verl.plugin", raising=False)
    lib = {"actor_rollout_ref__model__external_lib": "[json,durian_adv.adapters.verl]"}
    assert found(data, "text", **lib)["plugin"].state == "ok"
    for part in ("+async_training__require_batches", "+rollout__nnodes"):
        check = found(data, "text", **lib, **{part: 1})["plugin"]
        assert check.state == "problem"
        assert "does not load actor_rollout_ref.model.external_lib" in check.finding


def test_a_column_does_not_reach_one_step_off(data):
    one_step = {"+rollout__nnodes": 1}
    assert found(data, "column", **NO_REWARD, **one_step)["entropy"].state == "problem"
    assert found(data, "both", **NO_REWARD, **one_step)["entropy"].state == "ok"


def test_a_batch_of_one_prompt_is_a_problem_unless_it_has_a_window(data):
    assert found(data, "text", data__train_batch_size=1)["prompts"].state == "problem"
    window = {"+algorithm__durian__window": 64}
    check = found(data, "text", data__train_batch_size=1, **window)["prompts"]
    assert check.finding == "1 prompt per batch and 64 in the window, 5.4 per bucket in 12 buckets of confidence"


def test_a_category_is_looked_for_where_it_has_a_weight(data, tmp_path):
    assert "category" not in found(data, "text")
    weights = {"+algorithm__durian__weights": "[0.1,0.2,0.3,0.4]"}
    assert found(data, "text", **weights)["category"].state == "ok"  # verl's data_source
    rows = [{name: value for name, value in row.items() if name != "data_source"} for row in tiny.rows(4)]
    without = {"other": tiny.save_rows(tmp_path / "other.parquet", rows)}
    assert found(without, "other", **weights)["category"].state == "problem"


@pytest.fixture
def older(monkeypatch):
    """The configuration of verl 0.7.0, which knows neither v1 nor reward.custom_reward_function."""
    compose = preflight._config

    def without(*given):
        made = compose(*given)
        OmegaConf.set_struct(made, False)
        del made.trainer["use_v1"], made.trainer["v1"]
        made.custom_reward_function = made.pop("reward").custom_reward_function
        OmegaConf.set_struct(made, True)
        return made

    monkeypatch.setattr(preflight, "_config", without)


@pytest.mark.usefixtures("older")
def test_the_configuration_of_an_older_verl_is_read(data):
    for reward in (OWN_REWARD, NO_REWARD):
        made = found(data, "whole", **reward)
        assert {check.subject for check in made.values() if check.state != "ok"} == {"vision tower"}
    # a column does not reach v0
    assert found(data, "column", **OWN_REWARD)["entropy"].state == "warning"
    assert found(data, "column", **NO_REWARD)["entropy"].state == "problem"


def test_the_runtime_environment_of_an_older_verl_takes_no_configuration(data, monkeypatch):
    asked = []

    def without_argument():
        return {"env_vars": {"OLD": "1"}}

    monkeypatch.setattr("verl.trainer.constants_ppo.get_ppo_ray_runtime_env", without_argument)
    monkeypatch.setattr(preflight._ray, "asked_on_every_node", lambda *given, **init: asked.append(init) or iter(()))
    words = training.overrides("model", data["text"], **{"data.train_batch_size": 48})
    assert {check.state for check in checks(words)} == {"ok"}
    assert asked[0]["runtime_env"]["env_vars"]["OLD"] == "1"


@pytest.mark.parametrize(
    ("program", "state"),
    [
        ("verl.trainer.main_ppo", "ok"),
        ("verl.experimental.fully_async_policy.fully_async_main", "ok"),
        ("verl.trainer.main_ppo_sync", "problem"),  # of verl 0.8
        ("no_such.program", "problem"),
    ],
)
def test_a_program_is_looked_for_in_this_verl(data, program, state):
    check = found(data, "text", "--program", program)["program"]
    assert check.state == state
    refused = f"--program: {program} cannot be found, with verl {verl.__version__}"
    assert check.finding == (program if state == "ok" else refused)


def test_without_a_plugin_the_remedy_is_named(data, monkeypatch):
    monkeypatch.delitem(sys.modules, "durian_adv.adapters.verl.plugin", raising=False)
    check = found(data, "text")["plugin"]
    assert check.state == "problem"
    assert f"verl {verl.__version__} does not load durian_adv" in check.finding
    assert "set VERL_USE_EXTERNAL_MODULES=durian_adv.adapters.verl" in check.finding
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "durian_adv.adapters.verl")
    assert found(data, "text")["plugin"].state == "ok"
