"""SECURITY.md, held against the package: what functions never do, and what each command does."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from audited import audited
from photographs import crop
from small_encoder import FLAGS

import durian_adv
from durian_adv.data.scoring.images import FORMATS

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
from durian_adv import diagnostics, durian_components, window, worth
import torch.distributed as dist

einops.rearrange(torch.zeros(1), "a -> a")  # which imports its torch part with the first call
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
worth.predicted_worth(inputs.rewards, dict(durian=parts.advantages))
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


# --- what the sources reach for -----------------------------------------------------------------------
# ruff's rules S find eval, exec, pickle, os.system and their like (make lint); here is what it does not know.

MODULES = {
    "cloudpickle", "ctypes", "fsspec", "http", "huggingface_hub", "joblib", "multiprocessing", "requests", "runpy",
    "socket", "ssl", "subprocess", "urllib",
}  # fmt: skip
CALLS = ("__import__", "compile")
METHODS = ("from_pretrained", "load_dataset", "load_from_disk", "save_to_disk", "hf_hub_download", "snapshot_download")
DOTTED = ("OmegaConf.load", "ray.init", "ray.cloudpickle.register_pickle_by_value", "ray.cloudpickle.loads")

# what reaches beyond the arguments, by file; SECURITY.md says what becomes of it
REACHES = {
    "adapters/_ray.py": ["ray.cloudpickle", "ray.init"],
    "adapters/easyr1/preflight.py": ["OmegaConf.load", "load_dataset"],
    "data/scoring/datasets_on_disk.py": ["load_from_disk", "save_to_disk"],
    "data/scoring/transformers_encoder.py": ["from_pretrained"],
}


def reached(source):
    """What a source reaches for, in the words of SECURITY.md."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        found |= {module for module in modules if module.split(".")[0] in MODULES}
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = called.split(".")[-1]
        if called in CALLS or called.startswith(("socket.", "subprocess.", "torch.hub.")):
            found.add(called)
        found |= {last} & set(METHODS)
        found |= {dotted.removesuffix(".register_pickle_by_value") for dotted in DOTTED if called == dotted}
        if last == "load" and called not in ("json.load", "self.load", "OmegaConf.load"):
            found |= {f"{called} without weights_only=True"} - {
                f"{called} without weights_only={given.get('weights_only')}"
            }
        if called == "Image.open" and "formats" not in given:
            found.add("Image.open without formats")
        if "trust_remote_code" in given:
            found.add("trust_remote_code")
    return sorted(found)


@pytest.mark.parametrize("path", SOURCES, ids=[p.name for p in SOURCES])
def test_the_sources_reach_for_what_is_declared_and_for_nothing_else(path):
    assert reached(path.read_text()) == REACHES.get(path.relative_to(PACKAGE).as_posix(), [])


@pytest.mark.parametrize("file", REACHES)
def test_what_the_sources_reach_for_is_told(file):
    told = (TESTS.parent / "SECURITY.md").read_text()
    assert (PACKAGE / file).exists()
    assert [name for name in REACHES[file] if f"`{name}`" not in told] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import urllib.request", "urllib.request"),
        ("from socket import create_connection", "socket"),
        ("import subprocess", "subprocess"),
        ("def f():\n    import huggingface_hub", "huggingface_hub"),
        ("__import__('x')", "__import__"),
        ("compile('1', 'x', 'eval')", "compile"),
        ("AutoModel.from_pretrained(path)", "from_pretrained"),
        ("auto.from_pretrained(path, trust_remote_code=True)", "trust_remote_code"),
        ("ray.init()", "ray.init"),
        ("ray.cloudpickle.register_pickle_by_value(module)", "ray.cloudpickle"),
        ("ray.cloudpickle.loads(text)", "ray.cloudpickle.loads"),
        ("load_dataset(name)", "load_dataset"),
        ("datasets.load_dataset(name)", "load_dataset"),
        ("datasets.load_from_disk(name)", "load_from_disk"),
        ("torch.hub.load(a, b)", "torch.hub.load"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "np.load without weights_only=True"),
        ("Image.open(file)", "Image.open without formats"),
    ],
)
def test_what_is_looked_for_is_found(source, found):
    assert found in reached(source)


@pytest.mark.parametrize("source", ["torch.load(path, weights_only=True)", "Image.open(file, formats=FORMATS)"])
def test_what_is_safe_is_not_found(source):
    assert reached(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "import pickle\npickle.loads(text)",
        "import os\nos.system(text)",
        "import dill\ndill.loads(text)",
        "import marshal\nmarshal.loads(text)",
        "import shelve\nshelve.open(path)",
        "import pandas\npandas.read_pickle(path)",
        "import yaml\nyaml.load(text)",
    ],
)
def test_ruff_finds_the_rest(source):
    settings = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in settings["select"]
    assert not [
        rule for files, rules in settings["per-file-ignores"].items() if "durian_adv" in files for rule in rules
    ]
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "S", "--output-format", "json", "-"]
    found = json.loads(subprocess.run(ruff, input=f"{source}\n", capture_output=True, text=True).stdout)
    assert [problem["code"][0] for problem in found] != []


@pytest.mark.parametrize("path", SOURCES, ids=[p.name for p in SOURCES])
def test_files_are_opened_only_where_an_argument_names_them(path):
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    opens = [call for call in calls if call.split(".")[-1] in ("open", "read_text", "read_bytes")]
    assert opens == [] or path.relative_to(PACKAGE).parts[0] in READERS


def test_the_formats_that_are_decoded_are_those_that_are_told():
    told = (TESTS.parent / "SECURITY.md").read_text().upper().replace("JPEG 2000", "JPEG2000")
    assert f"({', '.join(FORMATS)})".replace("\n", " ") in " ".join(told.split())


# --- what the commands do -------------------------------------------------------------------------------


def rollouts(path):
    rows = [{"step": i // 8, "prompt": i % 4, "reward": i % 3, "confidence": -float(i)} for i in range(32)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("command", ["metrics", "report", "curate", "entropy"])
def test_a_command_opens_what_it_is_given_and_starts_and_reaches_nothing(tmp_path, monkeypatch, command):
    home = tmp_path / "home"  # Matplotlib's cache
    home.mkdir()
    monkeypatch.setenv("MPLCONFIGDIR", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    log = rollouts(tmp_path / "log.jsonl")
    crop(0).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png"}\n')
    pairs = []
    for name in ("warm", "out"):
        out = [tmp_path / f"{name}{number}.jsonl" for number in (1, 2)]
        pairs.append(
            {
                "metrics": ["metrics", log],
                "report": ["report", log, "--out", tmp_path / name],
                "curate": ["curate", log, *out, "--correct", "reward", "--above", "0.5", "--prompt", "step", "prompt"],
                "entropy": ["entropy", tmp_path / "rows.jsonl", out[0], *FLAGS],
            }[command]
        )
    status, opened, events, err = audited(pairs[1], pairs[0])
    assert status == 0, err
    assert events == []
    assert [path for path in opened if not path.startswith((str(tmp_path), "/dev/null"))] == []


# --- what releases are made by --------------------------------------------------------------------------

WORKFLOWS = sorted((TESTS.parent / ".github/workflows").glob("*.yml"))


def jobs(text):
    """The text of each job of a workflow by its name."""
    parts = re.split(r"^  ([\w-]+):$", text.partition("\njobs:\n")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("path", WORKFLOWS, ids=[p.name for p in WORKFLOWS])
def test_actions_are_pinned_by_commit_and_only_what_publishes_may_prove_who_it_is(path):
    text = path.read_text()
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action)] == []
    assert "\npermissions:\n  contents: read\n" in text
    trusted = [name for name, job in jobs(text).items() if "id-token: write" in job]
    assert trusted == {"ci.yml": ["publish-docs"], "release.yml": ["publish"]}[path.name]
    for name in trusted:  # which runs nothing of this repository, nor of its dependencies
        assert "run:" not in jobs(text)[name]
        assert "checkout" not in jobs(text)[name]


def test_what_is_published_is_built_where_nothing_else_has_run():
    release = jobs((TESTS.parent / ".github/workflows/release.yml").read_text())
    assert re.findall(r"run: (.*)", release["build"]) == ["make dist"]
    assert "needs: [test, build]" in release["publish"]
    assert "name: dist" in release["build"]
    assert "upload-artifact" not in release["test"]
