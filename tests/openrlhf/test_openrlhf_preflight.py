"""What is missing is told before a run, and at its start."""

import importlib.metadata
import importlib.util
import json
import logging
import re
import sys

import pytest
import released

from durian_adv.adapters.openrlhf import preflight, settings
from durian_adv.adapters.openrlhf.maker import DurianExperienceMaker
from durian_adv.adapters.openrlhf.preflight import _parser, checks
from durian_adv.cli import main
from durian_adv.data.logs import writer

GOOD = ["--algo.advantage.estimator", "group_norm", "--rollout.batch_size=512", "--rollout.n_samples_per_prompt", "8"]

# what the preflight reads of a run's options
READ = (
    "algo.advantage.estimator",
    "rollout.batch_size",
    "rollout.n_samples_per_prompt",
    "data.max_images_per_prompt",
    "actor.freeze_visual_encoder",
)


def found(*arguments, options="{}", hook=settings.HOOK, **more):
    """The checks by their subject."""
    environment = {"worker_process_setup_hook": hook, "env_vars": {"DURIAN_OPTIONS": options, **more}}
    given = ["--runtime-env-json", json.dumps(environment), "--no-ray", *GOOD, *arguments]
    return {check.subject: check for check in checks(given)}


def test_a_run_that_has_all_is_told_so(tmp_path):
    all_of_them = found()
    assert {check.state for check in all_of_them.values()} == {"ok"}
    assert list(all_of_them) == ["OpenRLHF", "hook", "estimator", "rollouts", "options", "entropy", "prompts"]
    assert all_of_them["prompts"].finding == "512 prompts per batch, 42.7 per bucket in 12 buckets of confidence"
    file = tmp_path / "runtime.yaml"
    file.write_text(f"worker_process_setup_hook: {settings.HOOK}\nenv_vars:\n  DURIAN_OPTIONS: '{{\"eps\": 0.5}}'\n")
    from_file = {check.subject: check for check in checks(["--runtime-env", str(file), "--no-ray", *GOOD])}
    assert "eps=0.5" in from_file["options"].finding
    assert from_file["hook"].state == "ok"


@pytest.mark.parametrize(
    ("arguments", "given", "subject", "state", "text"),
    [
        ([], {"hook": None}, "hook", "problem", "worker_process_setup_hook is None, for Durian it must be durian_adv"),
        (["--algo.advantage.estimator=rloo"], {}, "estimator", "problem", "rloo, for Durian it must be group_norm"),
        (["--rollout.n_samples_per_prompt", "1"], {}, "rollouts", "problem", "is 1, it must be at least 2"),
        ([], {"options": {"eps": 1}}, "options", "problem", "DURIAN_OPTIONS: expected text, a JSON object in quotes"),
        ([], {"options": 1}, "options", "problem", "or a path, got int"),
        ([], {"options": '{"eps": -1}'}, "options", "problem", "DURIAN_OPTIONS.eps: expected a number >= 0, got -1"),
        ([], {"DURIAN_EPS": "1"}, "options", "problem", "DURIAN_EPS: expected no other variable"),
        (
            ["--rollout.batch_size", "16"],
            {},
            "prompts",
            "warning",
            "16 prompts with confidence for 12 buckets: with fewer than 2 prompts per",
        ),
        ([], {}, "entropy", "ok", "no images (data.max_images_per_prompt is 0): the other components remain"),
        (
            [],
            {"options": '{"weights": [0.3, 0.7, 0]}'},
            "entropy",
            "warning",
            "no images (data.max_images_per_prompt is 0): a run stops unless its reward function returns some",
        ),
        (["--data.max_images_per_prompt", "1"], {}, "entropy", "ok", "computed in the actor, unless the reward"),
        (
            ["--data.max_images_per_prompt", "1"],
            {"options": '{"weights": [1, 0, 1]}'},
            "entropy",
            "ok",
            "not needed, the perceptual component has weight 0",
        ),
        (
            ["--data.max_images_per_prompt", "1"],
            {"options": '{"entropy_table": "none.json"}'},
            "entropy",
            "problem",
            "No such file or directory: 'none.json'",
        ),
    ],
)
def test_what_is_missing_is_named(arguments, given, subject, state, text):
    check = found(*arguments, **given)[subject]
    assert check.state == state
    assert text in check.finding


def test_a_table_of_a_tower_that_is_trained_is_an_approximation(tmp_path):
    (tmp_path / "table.json").write_text('{"0.png": 1.0}')
    options = json.dumps({"entropy_table": str(tmp_path / "table.json")})
    trained = found("--data.max_images_per_prompt", "1", options=options)
    assert trained["entropy"].finding.endswith("table.json has 1 of 1 images")
    assert trained["vision tower"].state == "warning"
    assert "vision tower" not in found(
        "--data.max_images_per_prompt", "1", "--actor.freeze_visual_encoder", options=options
    )


def test_a_table_without_any_entropy_is_a_problem(tmp_path):
    (tmp_path / "table.json").write_text('{"0.png": null}')
    options = json.dumps({"entropy_table": str(tmp_path / "table.json")})
    check = found("--data.max_images_per_prompt", "1", options=options)["entropy"]
    assert check.state == "problem"
    assert check.finding.endswith("table.json has no entropy of any of its 1 images")


FILES = {
    "good.json": b'{"0.png": 1.5, "1.png": null}',
    "list.json": b"[1.5]",
    "text.json": b'{"0.png": "1.5"}',
    "latin.json": b'{"\xe9.png": 1.5}',
    "options.json": b'{"eps": 0.5, "rollout_log": "FOLDER/log"}',
    "bad.json": b'{"eps": -1}',
}
TEXTS_OF_OPTIONS = {
    **dict.fromkeys(["", "{}", "FOLDER/options.json", '{"eps": 0.5, "window": 32}'], True),
    **dict.fromkeys(["{", "[]", "FOLDER/none.json", "FOLDER/list.json", "FOLDER/latin.json", "FOLDER/bad.json"], False),
    **dict.fromkeys(['{"eps": -1}', '{"weigths": [1, 0, 0]}', '{"features": "pixels"}', "FOLDER"], False),
    **{
        json.dumps({"entropy_table": table}): False
        for table in (3, "", *(f"FOLDER/{x}.json" for x in ("list", "text")))
    },
    **{json.dumps({"entropy_table": table}): False for table in ("FOLDER/none.json", "FOLDER/latin.json", "x\0", "/")},
    '{"entropy_table": "FOLDER/good.json"}': True,
    '{"entropy_table": "FOLDER/none.json", "weights": [1, 0, 0]}': False,
    '{"entropy_table": "FOLDER/good.json", "weights": [1, 0, 0]}': True,
    **{json.dumps({"rollout_log": folder}): True for folder in (None, "FOLDER", "FOLDER/new", "FOLDER/new/log")},
    **{
        json.dumps({"rollout_log": folder}): False
        for folder in (3, "", "/proc", "/proc/none/log", "FOLDER/bad.json/log")
    },
    **{json.dumps({"rollout_log": folder}): False for folder in ("FOLDER/bad.json", "FOLDER/gone", "x\0")},
}


def said(error):
    """An error as it is told, without the random name of what could not be written."""
    return re.sub(r"/\.trial_\w+", "", str(error))


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize(("text", "good"), TEXTS_OF_OPTIONS.items())
def test_the_preflight_and_the_run_refuse_the_same_options_in_the_same_words(tmp_path, options, text, good, images):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content.replace(b"FOLDER", str(tmp_path).encode()))
    (tmp_path / "gone").symlink_to("nowhere")
    text = text.replace("FOLDER", str(tmp_path))
    problems = [
        said(check.finding)
        for check in found(f"--data.max_images_per_prompt={images}", options=text).values()
        if check.state == "problem"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "gone"])
    args = released.arguments(data__max_images_per_prompt=images)
    options(text)
    if good:
        assert problems == []
        released.maker(DurianExperienceMaker, args)
    else:
        with pytest.raises((TypeError, ValueError)) as raised:
            released.maker(DurianExperienceMaker, args)
        assert problems == [said(raised.value)]
        assert "DURIAN_OPTIONS" in problems[0] or str(tmp_path) in problems[0]


def test_a_log_without_pyarrow_is_refused_by_both(monkeypatch, options, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    writer._arrow.cache_clear()
    text = json.dumps({"rollout_log": str(tmp_path / "log")})
    check = found(options=text)["rollout log"]
    options(text)
    with pytest.raises(ModuleNotFoundError, match="rollout_log: a log of parquet files needs pyarrow") as raised:
        released.maker(DurianExperienceMaker, released.arguments())
    monkeypatch.undo()
    writer._arrow.cache_clear()
    assert (check.state, check.finding) == ("problem", str(raised.value))


def test_no_option_of_ray_job_submit_is_taken_for_the_short_form_of_another():
    from ray.dashboard.modules.job.cli import submit

    words = [word for option in submit.params for word in (*option.opts, *option.secondary_opts) if word[:2] == "--"]
    assert "--no-wait" in words
    words = [word for word in words if not word.startswith("--runtime-env")]
    assert _parser().parse_known_args(words)[1] == words


def test_a_whole_line_of_ray_job_submit_is_read(tmp_path, capsys):
    file = tmp_path / "runtime.yaml"
    file.write_text(f"worker_process_setup_hook: {settings.HOOK}\n")
    line = ["ray", "job", "submit", "--runtime-env", str(file), "--no-wait", "--"]
    line += ["python3", "-m", "openrlhf.cli.train_ppo_ray", *GOOD, "--no-ray"]
    assert {check.state for check in checks(line)} == {"ok"}
    assert main(["preflight", "openrlhf", *line]) == 0
    assert "estimator: group_norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a mapping, got list"),
        ("env_vars: [1]", "expected a mapping for env_vars, got list"),
        ("{", "expected YAML or JSON, got"),
    ],
)
def test_a_runtime_environment_that_is_none_is_an_error(text, message):
    with pytest.raises(ValueError, match=f"^--runtime-env: {message}"):
        list(checks(["--runtime-env-json", text, "--no-ray", *GOOD]))


def test_the_defaults_are_openrlhfs():
    ours, theirs = vars(_parser().parse_args([])), vars(released.parser().parse_args([]))
    assert {name: ours[name] for name in READ} == {name: theirs[name] for name in READ}


@pytest.mark.parametrize("name", READ)
def test_an_option_may_be_as_short_as_openrlhf_takes_it(name, capsys):
    value = {"algo.advantage.estimator": ["rloo"], "actor.freeze_visual_encoder": []}.get(name, ["3"])
    read, refused = 0, 0
    for end in range(len("--"), len(name) + 1):
        word = f"--{name[:end]}"
        try:
            theirs = vars(released.parser().parse_args([word, *value]))
        except SystemExit:
            refused += 1
            with pytest.raises(SystemExit):
                _parser().parse_known_args([word, *value])
            assert "durian-adv preflight openrlhf: error: ambiguous option" in capsys.readouterr().err
        else:
            read += 1
            ours, rest = _parser().parse_known_args([word, *value])
            assert (getattr(ours, name), rest) == (theirs[name], []), word
    assert min(read, refused) > 1


def test_an_openrlhf_that_does_not_fit_is_a_problem(monkeypatch):
    monkeypatch.delattr("openrlhf.trainer.ppo_utils.experience_maker.compute_reward")
    check = found()["OpenRLHF"]
    assert check.state == "problem"
    assert f"OpenRLHF {importlib.metadata.version('openrlhf')} does not fit" in check.finding
    assert "has no compute_reward" in check.finding


@pytest.mark.parametrize(("prompts", "level"), [(512, logging.INFO), (16, logging.WARNING)])
def test_the_trainer_tells_at_its_start_how_many_prompts_share_a_std(prompts, level, monkeypatch):
    records = []
    monkeypatch.setattr("durian_adv.adapters.openrlhf.maker.logger.handle", records.append)
    released.maker(DurianExperienceMaker, released.arguments(prompts=prompts, data__max_images_per_prompt=1))
    (record,) = records
    assert record.levelno == level
    if level == logging.WARNING:
        assert "16 prompts with confidence for 12 buckets: with fewer than 2" in record.getMessage()
    else:
        assert "512 prompts per batch, 170.7 per bucket in 3 buckets of visual entropy, 42.7 per" in record.getMessage()


def test_a_batch_of_one_prompt_is_a_problem_unless_it_has_a_window():
    assert found("--rollout.batch_size=1")["prompts"].state == "problem"
    check = found("--rollout.batch_size=1", options='{"window": 64}')["prompts"]
    assert (check.state, check.finding) == (
        "ok",
        "1 prompt per batch and 64 in the window, 5.4 per bucket in 12 buckets of confidence",
    )
    assert found("--rollout.batch_size=1", options='{"weights": [1, 0, 0]}')["prompts"].state == "ok"


def test_an_openrlhf_with_flat_arguments_is_a_problem(monkeypatch, tmp_path):
    """Those of 0.10.1 and before: a run on them is refused when its trainer is made."""
    program = tmp_path / "train_ppo_ray.py"
    program.write_text('parser.add_argument("--n_samples_per_prompt", type=int, default=1)')
    spec = importlib.util.spec_from_file_location("openrlhf.cli.train_ppo_ray", program)
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: spec)
    check = found()["OpenRLHF"]
    assert check.state == "problem"
    assert check.finding.endswith("no rollout.n_samples_per_prompt among its arguments. Install one of these")


@pytest.mark.parametrize(
    ("module", "gpu", "state", "text"),
    [
        ("openrlhf.utils.vlm_utils", False, "problem", "does not fit durian_adv.adapters.openrlhf"),
        ("openrlhf.utils", True, "problem", "does not fit durian_adv.adapters.openrlhf"),
        ("vllm", False, "warning", "This machine has no GPU"),
        ("flash_attn.bert_padding", False, "warning", "This machine has no GPU"),
        ("vllm", True, "problem", "cannot be imported here"),
        ("pylatexenc", False, "problem", "cannot be imported here"),
    ],
)
def test_what_cannot_be_imported_is_a_problem_unless_it_needs_a_gpu_that_is_not_here(
    monkeypatch, module, gpu, state, text
):
    def missing():
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr("durian_adv.adapters.openrlhf.maker.check_fit", missing)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    check = found()["OpenRLHF"]
    assert check.state == state
    assert text in check.finding


def test_an_openrlhf_that_is_not_installed_is_a_problem(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(preflight.importlib.metadata, "version", missing)
    assert found()["OpenRLHF"].state == "problem"
    assert "not installed here" in found()["OpenRLHF"].finding


def test_a_category_is_told_to_come_from_the_reward_function():
    assert "category" not in found()
    check = found(options='{"weights": [0.1, 0.2, 0.3, 0.4]}')["category"]
    assert "returns in extra_logs" in check.finding
