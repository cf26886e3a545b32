"""Check what ``make dist`` built as a stranger would get it: contents, metadata, a clean installation, tests outside.

``python tests/check_dist.py dist``: the folder holds one wheel and one sdist. ``--tag vX.Y.Z`` checks that this is the
version, and that the changelog and the citation know it.
"""

import argparse
import ast
import email
import os
import re
import subprocess
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# what the tests from the sdist need beside the package itself: numpy, hypothesis, pytest
TESTS = ("test_advantages", "test_baselines", "test_buckets", "test_cli", "test_confidence", "test_diagnostics",
         "test_durian", "test_entropy", "test_extremes", "test_messages", "test_regressions", "test_weighting",
         "test_window")  # fmt: skip

# what the package has beside its sources: a file of another kind is a mistake until it is named here
DATA = ("adapters/easyr1/paper.yaml", "py.typed", "report/page.html.jinja")


def package_version():
    """The version in the one place where it stands."""
    tree = ast.parse((ROOT / "durian_adv/__init__.py").read_text())
    (assigned,) = (n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__version__")
    return ast.literal_eval(assigned.value)


def check_tag(tag):
    version = package_version()
    assert tag == f"v{version}", f"expected the tag v{version}, got {tag}"
    dated = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$"
    assert re.search(dated, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE), (
        f"CHANGELOG.md has no [{version}] - date"
    )
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(), f"CITATION.cff has no version {version}"
    print(f"{tag}: version, changelog and citation agree")


def check_wheel(wheel, version):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(archive.read(f"durian_adv-{version}.dist-info/METADATA"))
    sources = {str(p.relative_to(ROOT)) for p in ROOT.glob("durian_adv/**/*.py")}
    expected = sources | {f"durian_adv/{name}" for name in DATA}
    shipped = {name for name in names if not name.startswith(f"durian_adv-{version}.dist-info/")}
    assert shipped == expected, f"in the wheel or in the tree alone: {sorted(shipped ^ expected)}"
    assert f"durian_adv-{version}.dist-info/licenses/LICENSE" in names
    assert metadata["Version"] == version
    needed = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert [re.split(r"[<>=!~ ]", r)[0] for r in sorted(needed)] == ["einops", "numpy", "torch"], needed
    assert not [r for r in needed if "<" in r or "==" in r], f"capped: {needed}"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# durian-adv")


def check_sdist(sdist, version, folder):
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    tree = Path(folder, f"durian_adv-{version}")
    wanted = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "SECURITY.md", "docs/index.md")
    missing = [name for name in (*wanted, *(f"tests/{t}.py" for t in TESTS)) if not (tree / name).exists()]
    assert not missing, missing
    return tree


def check_dist(dist):
    version = package_version()
    wheel, sdist = dist / f"durian_adv-{version}-py3-none-any.whl", dist / f"durian_adv-{version}.tar.gz"
    assert sorted(dist.iterdir()) == sorted([wheel, sdist]), list(dist.iterdir())
    check_wheel(wheel, version)
    with tempfile.TemporaryDirectory() as folder:
        tree = check_sdist(sdist, version, folder)
        home, outside = Path(folder, "env"), Path(folder, "outside")
        venv.create(home, with_pip=True)
        python = str(home / "bin/python")
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", f"{ROOT}/requirements/constraints.txt"]
        subprocess.run([*install, f"{wheel}[test]"], check=True)
        # the tests without the package beside them
        (tree / "tests").rename(outside)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HYPOTHESIS_PROFILE": "quick"}
        where = subprocess.run(
            [python, "-c", "import durian_adv; print(durian_adv.__file__, durian_adv.__version__)"],
            cwd=outside, env=environment, check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        assert Path(where[0]).is_relative_to(home), where
        assert where[1] == version, where
        command = [str(home / "bin/durian-adv"), "--version"]
        told = subprocess.run(command, cwd=outside, check=True, capture_output=True, text=True).stdout
        assert told.split() == ["durian-adv", version], told
        selected = [f"{name}.py" for name in TESTS]
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not inductor and not cuda",
            "-c",
            str(tree / "pyproject.toml"),
        ]
        subprocess.run([python, "-m", "pytest", *options, *selected], cwd=outside, env=environment, check=True)
    print(f"{wheel.name}, {sdist.name}: contents, metadata, clean installation, tests from outside the tree")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, nargs="?")
    parser.add_argument("--tag")
    chosen = parser.parse_args()
    if chosen.tag is not None:
        check_tag(chosen.tag)
    if chosen.dist is not None:
        check_dist(chosen.dist.resolve())
