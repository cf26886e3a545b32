"""What stops a run when it starts is a problem of the preflight, on every verl: options, and internals that differ."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tiny
import training
import verl
from verl.trainer.ppo.ray_trainer import RayPPOTrainer

from durian_adv.adapters.verl import preflight

SYNC = importlib.util.find_spec("verl.trainer.main_ppo_sync") is not None  # whose mark the option is
PROGRAM = ("--program", "verl.trainer.main_ppo")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.save_rows(tmp_path_factory.mktemp("data") / "text.parquet", tiny.rows(4))


def stopped(words, mode):
    """What the trainer says of these options when it starts, None if nothing."""
    kind, start = RayPPOTrainer, "_create_dataloader"
    if mode != "v0":
        from verl.trainer.ppo.v1 import PPOTrainerSync

        kind, start = PPOTrainerSync, "_init_dataloader"
    trainer = object.__new__(kind)
    trainer.config = preflight._config(None, "ppo_trainer", words)
    try:
        getattr(trainer, start)(*[None] * 4 if mode == "v0" else ())
    except (ValueError, RuntimeError) as error:
        return str(error)
    except (AttributeError, TypeError):  # verl's own begins, which finds a trainer that has no data
        return None
    raise AssertionError("a trainer without data started")


@pytest.mark.parametrize("mode", ["v0", "sync"] if training.V1 else ["v0"])
@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("+algorithm.durian.weights", "[1,0,0]", False),
        ("+algorithm.durian.rollout_log", "FOLDER/of/a/log", False),
        ("+algorithm.durian.rollout_log", "FOLDER/file", True),
        ("+algorithm.durian.rollout_log", "FOLDER/file/log", True),
        ("+algorithm.durian.rollout_log", "/proc/nothing/log", True),
        ("+algorithm.durian.rollout_log", "3", True),
        ("+algorithm.durian.wieghts", "[1,0,0]", True),
        ("+algorithm.durian.weights", "[1,0]", True),
        ("+algorithm.durian.num_confidence_buckets", "0", True),
        ("+algorithm.durian", "3", True),
        ("algorithm.norm_adv_by_std_in_grpo", "False", True),
        ("actor_rollout_ref.rollout.n", "1", True),
        ("++transfer_queue.enable", "True", "v0" if SYNC else False),
    ],
)
def test_the_preflight_and_the_run_refuse_the_same_options_in_the_same_words(
    data, tmp_path, mode, name, value, refused
):
    (tmp_path / "file").write_text("")
    options = {name: value.replace("FOLDER", str(tmp_path)), "data.train_batch_size": 48}
    words = training.overrides("model", data, mode=mode, **options)
    problems = [check.finding for check in preflight.checks(["--no-ray", *PROGRAM, *words]) if check.state == "problem"]
    assert not (tmp_path / "of").exists()
    said = stopped(words, mode)
    assert problems == ([] if said is None else [said])
    assert bool(problems) == (refused in (True, mode))


# ----- a verl whose internals differ -----

CHANGES = {
    "trainer/main_ppo.py": ("def run_ppo(config", "def run_ppo(conf", "verl.trainer.main_ppo.run_ppo does not take"),
    "trainer/ppo/ray_trainer.py": (
        "def _create_dataloader(self",
        "def _create_dataloader(trainer",
        "verl.trainer.ppo.ray_trainer.RayPPOTrainer._create_dataloader does not take self",
    ),
    "experimental/separation/ray_trainer.py": (
        "apply_kl_penalty, compute_advantage,",
        "apply_kl_penalty, compute_advantage as _other,",
        "verl.experimental.separation.ray_trainer has no compute_advantage",
    ),
}


@pytest.fixture(params=[file for file in CHANGES if Path(verl.__file__).parent.joinpath(file).exists()])
def altered(request, tmp_path):
    """A folder with this verl in which one internal is another, and what is to be said of it."""
    before, after, words = CHANGES[request.param]
    package = Path(verl.__file__).parent
    shutil.copytree(package, tmp_path / "verl", copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__"))
    (info,) = package.parent.glob(f"verl-{importlib.metadata.version('verl')}*.dist-info")
    (tmp_path / info.name).symlink_to(info)
    file = tmp_path / "verl" / request.param
    text = file.read_text()
    assert before in text
    file.unlink()
    file.write_text(text.replace(before, after))
    return tmp_path, words


def preflighted(folder, data, *more):
    """The problems that the command finds with the verl of a folder."""
    command = [str(Path(sys.executable).with_name("durian-adv")), "preflight", "verl", *PROGRAM, *more]
    words = training.overrides("model", data, mode="v0", **{"data.train_batch_size": 48})
    given = training.environment()
    given["PYTHONPATH"] = os.pathsep.join([str(folder), given["PYTHONPATH"]])
    with tempfile.TemporaryDirectory(prefix="verl") as ray:  # a short path: Ray's sockets lie in it
        run = subprocess.run(
            [*command, *words, f"+ray_kwargs.ray_init._temp_dir={ray}"],
            env=given,
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 2, run.stdout + run.stderr
    return [line for line in run.stdout.splitlines() if line.startswith("problem ")]


def test_a_verl_that_does_not_fit_is_a_problem(data, altered):
    folder, said = altered
    (problem,) = preflighted(folder, data, "--no-ray")
    assert problem.startswith(f"problem  options: verl {verl.__version__} does not fit durian_adv")
    assert said in problem


@pytest.mark.parametrize("altered", ["trainer/main_ppo.py"], indirect=True)
def test_a_verl_that_does_not_fit_is_a_problem_of_the_workers_too(data, altered):
    folder, said = altered
    problems = preflighted(folder, data)
    assert [problem.split(":")[0].split()[-1] for problem in problems] == ["options", "workers"], problems
    assert all(said in problem for problem in problems), problems
