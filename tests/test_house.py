"""The rules of the house: what may import what, and that nothing goes in circles, not by strings either."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "durian_adv"
TRAINERS = sorted(path.parent.name for path in PACKAGE.glob("adapters/*/__init__.py"))


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def arrows(name, source, modules):
    """The modules of the package that a source imports, in functions and by strings, too."""
    found = set()
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    docstrings = {id(body[0].value) for body in bodies}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found |= set(re.findall(r"^durian_adv(?:\.\w+)+$", node.value))
    found = {target for target in found if target in modules}
    # a package beside one of its modules is the way to the module
    return {t for t in found if not any(other.startswith(f"{t}.") for other in found)} - {name}


ARROWS = {name: arrows(name, source, SOURCES) for name, source in SOURCES.items()}
PUBLIC = {name for name in SOURCES if name.count(".") == 1} - {"durian_adv.__main__"}


def room(name):
    """The part of the house a module is in."""
    parts = name.split(".")
    if len(parts) == 1 or (len(parts) == 2 and parts[1] not in ("_src", "data", "report", "cli", "adapters")):
        return "public"
    return parts[1]


MAY_IMPORT = {
    "_src": {"_src"},
    "public": {"_src", "public"},
    "data": {"_src", "public", "data"},
    "report": {"_src", "public", "data", "report"},
    "adapters": {"_src", "public", "data", "adapters"},
    "cli": {"_src", "public", "data", "report", "cli"},
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_only_what_stands_below_it(name):
    if name == "durian_adv.__main__":
        return
    assert {target: room(target) for target in ARROWS[name] if room(target) not in MAY_IMPORT[room(name)]} == {}


@pytest.mark.parametrize("name", [name for name in SOURCES if room(name) == "adapters"])
def test_an_adapter_knows_no_other_trainer(name):
    trainer = name.split(".")[2] if name.count(".") > 1 else None
    others = {f"durian_adv.adapters.{other}" for other in TRAINERS} - {f"durian_adv.adapters.{trainer}"}
    assert [target for target in ARROWS[name] if any(target == o or target.startswith(f"{o}.") for o in others)] == []


def circle(graph):
    """A circle of arrows, or nothing."""
    done, path = set(), []

    def walk(name):
        if name in path:
            return path[path.index(name):]  # fmt: skip
        if name in done:
            return []
        path.append(name)
        for target in sorted(graph.get(name, ())):
            if found := walk(target):
                return found
        path.pop()
        done.add(name)
        return []

    for name in sorted(graph):
        if found := walk(name):
            return found
    return []


def test_nothing_imports_in_circles():
    assert circle(ARROWS) == []


@pytest.mark.parametrize("folder", ["benchmarks", "studies"])
def test_nothing_beside_the_package_imports_in_circles(folder):
    sources = {module_of(path): path.read_text() for path in sorted((PACKAGE.parent / folder).rglob("*.py"))}
    assert circle({name: arrows(name, source, sources) for name, source in sources.items()}) == []


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ("import b.c", {"b.c"}),
        ("from b import c", {"b.c"}),
        ("def f():\n    from b import c", {"b.c"}),
        ("from b import name", {"b"}),
        ("NAME = 'durian_adv.x'", {"durian_adv.x"}),
        ("'''durian_adv.x'''", set()),
    ],
)
def test_arrows_are_seen(source, targets):
    assert arrows("a", source, {"b", "b.c", "durian_adv.x"}) == targets


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]


def long_functions(source):
    """Functions whose body, without the docstring, is over 40 lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and body[-1].end_lineno - body[0].lineno >= 40:
                found.append(node.name)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_no_function_is_over_40_lines(name):
    assert long_functions(SOURCES[name]) == []


def test_a_long_function_is_seen():
    body = "    x = 1\n"
    assert long_functions("def f():\n    'doc'\n" + body * 40) == []
    assert long_functions("def f():\n    'doc'\n" + body * 41) == ["f"]


MESSAGE = re.compile(r"str\((?:error|err|e|refusal|failure)\)\.(?:split|partition|removeprefix|startswith)")


@pytest.mark.parametrize("name", SOURCES)
def test_nobody_parses_our_own_messages(name):
    assert MESSAGE.findall(SOURCES[name]) == []


OLDER = {"easyr1", "openrlhf", "trl", "verl"}  # adapters from before the limit below


@pytest.mark.parametrize("trainer", [trainer for trainer in TRAINERS if trainer not in OLDER])
def test_an_adapter_has_at_most_250_lines(trainer):
    folder = f"durian_adv.adapters.{trainer}"
    files = [source for name, source in SOURCES.items() if name == folder or name.startswith(f"{folder}.")]
    assert sum(len(source.splitlines()) for source in files) <= 250
