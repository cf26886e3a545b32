"""Ctrl-C at any moment of the command is one line and status 130: real signals to real processes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from durian_adv._src import interrupts
from durian_adv.cli import main

COMMANDS = {"script": [os.path.join(os.path.dirname(sys.executable), "durian-adv")], "module": ["-m", "durian_adv"]}
COMMANDS["module"].insert(0, sys.executable)
ONE_LINE = re.compile(r"durian-adv( \w+)?: interrupted\n")

# a finder that sends this process the signal where the module is about to be imported
SENDER = """
import os, signal, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Sender())
"""
MOMENTS = ["numpy", "torch", "torch._C", "torch.distributed", "durian_adv.cli.main", "pyarrow", "matplotlib.figure"]
CASES = [("script", moment) for moment in MOMENTS] + [("module", "torch"), ("module", "torch._C")]


@pytest.fixture(autouse=True)
def heard():
    """A shell lets what it runs behind ``&`` ignore the signal, and a process hands that on to its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def log(folder):
    file = folder / "log.parquet"
    columns = {"prompt": [i // 8 for i in range(800)], "reward": [i % 3 % 2 for i in range(800)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return str(file)


@pytest.mark.parametrize(("how", "moment"), CASES)
def test_an_interrupted_import_is_one_line(tmp_path, how, moment):
    (tmp_path / "sitecustomize.py").write_text(SENDER)
    words = ["report", log(tmp_path), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "INTERRUPT_AT": moment}
    done = subprocess.run([*COMMANDS[how], *words], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert ONE_LINE.fullmatch(done.stderr), done.stderr
    assert not (tmp_path / "out" / "report.html").exists()


def test_at_any_time_it_is_one_line_or_the_command_has_ended(tmp_path):
    words = [*COMMANDS["script"], "metrics", log(tmp_path)]
    began = time.monotonic()
    assert subprocess.run(words, capture_output=True).returncode == 0
    whole, codes = time.monotonic() - began, []
    for part in range(6):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            # while Python itself starts, nothing of ours can run yet
            while process.poll() is None and "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
                time.sleep(0.005)
            time.sleep(whole * 0.15 * part)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        codes.append(process.returncode)
        if process.returncode == 130:
            assert ONE_LINE.fullmatch(err.replace(read_as(err), "")), err
        else:  # all was written; -2: Python was on its way out, where nothing handles signals
            assert (process.returncode in (0, -signal.SIGINT), out.count("\n")) == (True, 1), err
            assert "Traceback" not in err
    assert 130 in codes


def read_as(err):
    """What the command had said of the log before."""
    return "".join(line for line in err.splitlines(keepends=True) if "interrupted" not in line and "metrics: " in line)


@pytest.mark.parametrize(
    ("words", "original", "is_it"),
    [
        (["/usr/bin/durian-adv", "report"], [], True),
        (["durian-adv.exe"], [], True),
        (["/x/durian-adv-script.py"], [], True),
        (["-m", "report"], ["python", "-X", "dev", "-m", "durian_adv", "report"], True),
        (["-m"], ["python", "-m", "durian_adv.adapters.easyr1"], False),
        (["-m"], ["python", "-m", "pytest", "durian_adv"], False),
        (["train.py", "-m", "durian_adv"], ["python", "train.py", "-m", "durian_adv"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_only_the_command_is_watched(words, original, is_it):
    assert interrupts._is_command(words, original) == is_it


@pytest.fixture
def as_command(monkeypatch):
    """A process that is the command; the handler stays what it was."""
    monkeypatch.setattr(sys, "argv", ["durian-adv"])
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_another_handler_and_another_thread_are_left_alone(as_command):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as behind nohup
    interrupts.watch()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, as_command)
    thread = threading.Thread(target=interrupts.watch)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is as_command


def test_while_the_command_runs_the_signal_is_an_exception(as_command, monkeypatch, capsys):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    interrupts.watch()
    signal.raise_signal(signal.SIGINT)
    assert left == [130]
    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert left == [130, 130]


def test_before_the_command_is_known_the_line_is_shorter(monkeypatch, capsys):
    monkeypatch.setattr("argparse.ArgumentParser.parse_args", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["metrics", "x"]) == 130
    assert capsys.readouterr().err == "durian-adv: interrupted\n"
