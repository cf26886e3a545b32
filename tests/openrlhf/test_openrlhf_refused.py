"""An OpenRLHF before the oldest that works is refused: by the preflight, and where a run makes its trainer."""

import argparse
import importlib.metadata
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from openrlhf.trainer import ppo_trainer

from durian_adv.adapters import openrlhf
from durian_adv.adapters.openrlhf import settings
from durian_adv.adapters.openrlhf.preflight import checks

INSTALLED = importlib.metadata.version("openrlhf")
VERSIONS = f"OpenRLHF {INSTALLED} does not fit durian_adv.adapters.openrlhf, which was tested with {settings.TESTED}: "
WORDS = ["--advantage_estimator", "group_norm", "--n_samples_per_prompt", "8"]


class Parsed(BaseException):
    """Carries the arguments out of OpenRLHF's main program."""


@pytest.fixture
def arguments(monkeypatch):
    """What OpenRLHF's own parser makes of a command line."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self, *given):
        raise Parsed(parse(self, *given))

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        patched.setattr(sys, "argv", ["train_ppo_ray", *WORDS])
        with pytest.raises(Parsed) as parsed:
            runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
    return parsed.value.args[0]


def test_a_run_is_refused_when_its_trainer_makes_the_experience_maker(arguments):
    openrlhf.setup()
    strategy = SimpleNamespace(args=arguments)
    with pytest.raises(RuntimeError) as error:
        ppo_trainer.RemoteExperienceMaker(None, None, None, None, None, strategy, None)
    assert str(error.value).startswith(VERSIONS)
    assert str(error.value).endswith(". Install one of these")


COMMAND = ["--runtime-env-json", json.dumps({"worker_process_setup_hook": settings.HOOK}), "--no-ray"]


def test_the_preflight_has_a_problem():
    found = {check.subject: check for check in checks(COMMAND)}
    assert found["OpenRLHF"].state == "problem"
    assert found["OpenRLHF"].finding.startswith(VERSIONS)


def test_the_preflight_has_it_too_where_openrlhf_cannot_be_imported():
    """In a process without what stands in for the packages that need a GPU."""
    command = [str(Path(sys.executable).with_name("durian-adv")), "preflight", "openrlhf", *COMMAND]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert f"problem  OpenRLHF: {VERSIONS}" in run.stdout
