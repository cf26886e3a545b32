"""The command ``durian-adv preflight`` without any trainer; what each trainer's checks find is tested beside it."""

import io
import sys
import types

import pytest

from durian_adv.adapters._preflight import Check
from durian_adv.cli import main, preflight


@pytest.fixture
def trainer(monkeypatch):
    """A trainer whose checks are those of the test: ``trainer(*checks)``; what it was given is in ``trainer.given``."""
    module = types.ModuleType("of_this_test")
    monkeypatch.setitem(sys.modules, "of_this_test", module)
    monkeypatch.setitem(preflight.TRAINERS, "mine", "of_this_test")

    def made(*checks):
        def found(arguments):
            made.given = arguments
            return iter(checks)

        module.checks = found

    return made


def test_checks_are_printed_and_the_trainers_options_reach_it_as_they_are(trainer, capsys):
    trainer(Check("ok", "plugin", "loaded"), Check("warning", "prompts", "few"))
    assert main(["preflight", "mine", "--config-name", "x", "+a.b=[1,2]"]) == 0
    assert trainer.given == ["--config-name", "x", "+a.b=[1,2]"]
    out, err = capsys.readouterr()
    assert out.splitlines() == ["ok       plugin: loaded", "warning  prompts: few"]
    assert err == ""


def test_a_check_is_seen_before_the_next_one_is_made(trainer, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))

    def checks(arguments):
        yield Check("ok", "first", "done")
        assert written.getvalue() == b"ok       first: done\n"

    trainer()
    sys.modules["of_this_test"].checks = checks
    assert main(["preflight", "mine"]) == 0


@pytest.mark.parametrize(("count", "summary"), [(1, "1 problem"), (2, "2 problems")])
def test_a_problem_makes_the_status_2_after_all_checks(trainer, capsys, count, summary):
    trainer(*[Check("problem", "entropy", "none")] * count, Check("ok", "workers", "fine"))
    assert main(["preflight", "mine"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "ok       workers: fine"
    assert err == f"durian-adv preflight: {summary}\n"


def test_a_trainer_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(preflight.TRAINERS, "verl", "durian_adv.adapters.no_such_trainer")
    assert main(["preflight", "verl"]) == 2
    error = "durian-adv preflight: verl cannot be checked here: No module named 'durian_adv.adapters.no_such_trainer'\n"
    assert capsys.readouterr().err == error


def test_an_unknown_trainer_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        main(["preflight", "nobody"])
    assert "'nobody' (choose from" in capsys.readouterr().err
