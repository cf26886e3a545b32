"""Nothing in the package opens a socket, starts a process, reads files beside its arguments, or unpickles."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import durian_adv

TESTS = Path(__file__).resolve().parent
PACKAGE = Path(durian_adv.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# by the names of sys.audit: https://docs.python.org/3/library/audit_events.html
WATCHED = (
    "open",
    "os.",
    "shutil.",
    "socket.",
    "subprocess.",
    "pickle.",
    "urllib.",
    "http.",
    "ctypes.",
    "exec",
    "import",
)

# what reads and writes the files that a command or a trainer's configuration names
READERS = ("adapters", "cli", "data", "report")

# Every public function, once unprepared, under an audit hook. It cannot be taken off again, hence the process.
PROGRAM = """
import json, sys
sys.path.insert(0, {tests!r})
import einops, torch, contract_table
from durian_adv import diagnostics, durian_components, window
import torch.distributed as dist

# what others import late: torch its compiler, with the first operator that is written in Python; einops its torch part
einops.rearrange(torch.zeros(1), "a -> a")
probe = torch.library.custom_op("probe::probe", lambda x: x.clone(), mutates_args=(), schema="(Tensor x) -> Tensor")
probe(torch.zeros(1))
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # the caller's
seen, watched = [], {watched!r}

def hook(event, arguments):
    if event.startswith(watched):
        seen.append([event, *(str(a)[:200] for a in arguments)])

inputs = contract_table.Inputs()
sys.addaudithook(hook)
for name in contract_table.TABLE:
    contract_table.call(name, inputs)
parts, _ = window.windowed_components(inputs.rewards, window=None, size=4, confidence=inputs.rollout_confidence)
diagnostics.durian_metrics(parts, inputs.rewards)
durian_components(inputs.rewards, process_group=dist.group.WORLD)
found = list(seen)
{after}
print(json.dumps([found, seen]))
"""


def events(after=""):
    """What the public functions did, and what they and `after` did."""
    code = PROGRAM.format(tests=str(TESTS), watched=WATCHED, after=after)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_no_public_function_touches_files_network_processes_or_pickles(tmp_path):
    opened = f"open({str(tmp_path / 'x')!r}, 'w').close()"
    crime = f"import pickle, socket; socket.socket().close(); pickle.loads(pickle.dumps(dict)); {opened}"
    found, all_events = events(crime)
    assert found == []
    # and the hook sees what it should
    assert {"socket.__new__", "pickle.find_class", "open"} <= {event for event, *_ in all_events}


def _called(node):
    """The dotted name of what a call calls."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def offences(source):
    """What a source does that this package does not do."""
    forbidden = {
        "socket", "ssl", "http", "urllib", "requests", "ftplib", "smtplib", "subprocess", "multiprocessing", "ctypes",
        "pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy",
    }  # fmt: skip
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        found += [f"imports {module}" for module in modules if module.split(".")[0] in forbidden]
        called = _called(node)
        if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            found.append(f"calls {called}")
        if called.split(".")[-1] == "load" and called not in ("json.load", "self.load", "OmegaConf.load"):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if options.get("weights_only") != "True":
                found.append(f"{called} without weights_only=True")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=[p.name for p in SOURCES])
def test_the_sources_import_and_call_nothing_of_the_kind(path):
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import urllib.request",
        "from pickle import loads",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_is_looked_for_is_found(source):
    assert offences(source) != []


@pytest.mark.parametrize("path", SOURCES, ids=[p.name for p in SOURCES])
def test_files_are_opened_only_where_an_argument_names_them(path):
    opens = [
        c for c in map(_called, ast.walk(ast.parse(path.read_text()))) if c.split(".")[-1] in ("open", "read_text")
    ]
    assert opens == [] or path.relative_to(PACKAGE).parts[0] in READERS
