"""Build wheel and sdist, then install each into an environment of its own and use it. Run by ``make package``."""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from check_dist import check_sdist, check_wheel, package_version

ROOT = Path(__file__).resolve().parent.parent
USE = """
import pathlib, torch, durian_adv
assert pathlib.Path(durian_adv.__file__).is_relative_to({home!r}), durian_adv.__file__
assert (pathlib.Path(durian_adv.__file__).parent / "py.typed").exists()
print(durian_adv.__version__, durian_adv.durian_advantage(torch.tensor([[1.0, 0.0]])).tolist())
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "build", "--outdir", folder, str(ROOT)], check=True, capture_output=True)
        packages = sorted(Path(folder).glob("durian_adv-*"))
        assert [p.suffix for p in packages] == [".whl", ".gz"], packages
        check_wheel(packages[0], package_version())
        check_sdist(packages[1], package_version(), Path(folder, "sdist"))
        for package in packages:
            home = Path(folder, "env" + package.suffix)
            # what it requires is that of this environment, ours comes from the package alone
            venv.create(home, with_pip=False, system_site_packages=False)
            site = next(home.glob("lib/python*/site-packages"))
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
            subprocess.run([*install, str(package)], check=True)
            site.joinpath("theirs.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
            python = str(home / "bin" / "python")
            subprocess.run([python, "-c", USE.format(home=str(home))], check=True, cwd=folder)
            command = [python, "-m", "durian_adv", "--help"]
            help_ = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True)
            assert "metrics" in help_.stdout
            print(f"{package.name}: builds, installs, imports")


if __name__ == "__main__":
    main()
