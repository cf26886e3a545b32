"""Stands in for qwen-vl-utils, which needs torchvision: its reader of videos, of which there are none."""

import sys
from types import ModuleType

__path__: list[str] = []
vision_process = sys.modules["qwen_vl_utils.vision_process"] = ModuleType("qwen_vl_utils.vision_process")
vision_process.fetch_video = None
