"""Settings of the axolotl tests: nothing is fetched or reported, one thread; the class of docs/trl.md is a module."""

import importlib.util
import os
import re
import sys
from pathlib import Path

SETTINGS = {
    "ACCELERATE_USE_CPU": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(SETTINGS)

import torch  # noqa: E402  # after the settings

torch.set_num_threads(1)

PAGE = Path(__file__).parents[2] / "docs" / "trl.md"
SECTION = PAGE.read_text().split("\n## With axolotl\n")[1].split("\n## ")[0]
(CODE,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
page = importlib.util.module_from_spec(importlib.util.spec_from_loader("my_module", loader=None))
sys.modules["my_module"] = page
exec(compile(CODE, str(PAGE), "exec"), page.__dict__)
