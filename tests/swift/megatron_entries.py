"""Every way into a training of Megatron-SWIFT, up to the first error, with the plugin; prints the errors as JSON.

Megatron-core, its bridge, Ray and zmq are not installed: empty modules stand in for them. Scripts, arguments, pipelines
and the Ray worker are ms-swift's own, and none gets as far as to what stands in: without a model, ms-swift refuses
arguments right after it has loaded their plugins.
"""

import importlib.abc
import importlib.machinery
import json
import runpy
import sys
import tempfile
import types
from pathlib import Path
from unittest.mock import MagicMock

import swift
from swift.arguments import ModelArguments, RLHFArguments

ABSENT = ("megatron", "mcore_bridge", "ray", "zmq")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes an empty package of every name below the absent ones."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        made = types.ModuleType(spec.name)
        made.__version__ = "0.17.0"  # a plausible one, which ms-swift compares

        def missing(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return MagicMock()

        made.__getattr__ = missing
        return made

    def exec_module(self, module):
        pass


def main(plugin):
    cli = Path(swift.__file__).parent / "cli/_megatron"
    config = Path(tempfile.mkdtemp()) / "config.yaml"
    config.write_text(json.dumps({"rlhf_type": "grpo", "external_plugins": plugin, "train": {"gpus": 1}}))
    plugins = ("--external_plugins", plugin)
    grpo = ("--rlhf_type", "grpo", *plugins)

    def script(file, *argv):
        sys.argv = [str(file), *argv]
        runpy.run_path(str(file), run_name="__main__")

    def pipeline():
        sys.argv = ["swift/ray/megatron/pipeline.py", "--config", str(config)]
        runpy.run_module("swift.ray.megatron.pipeline", run_name="__main__")

    def of_a_user():
        from swift.megatron import megatron_rlhf_main

        sys.argv = ["my_train.py"]
        megatron_rlhf_main(list(grpo))

    def worker():
        from swift.ray.megatron.megatron_worker import MegatronWorker

        sys.argv = ["/ray/_private/workers/default_worker.py"]
        MegatronWorker().init_actor({"rlhf_type": "grpo", "external_plugins": [plugin]})

    entries = {
        "megatron rlhf": lambda: script(cli / "rlhf.py", *grpo),
        "megatron rlhf --use_ray": lambda: script(cli / "rlhf.py", "--use_ray", "--config", str(config)),
        "python -m swift.ray.megatron.pipeline": pipeline,
        "a script of a user": of_a_user,
        "a Ray worker": worker,
        "megatron rlhf of DPO": lambda: script(cli / "rlhf.py", "--rlhf_type", "dpo", *plugins),
        "megatron sft": lambda: script(cli / "sft.py", *plugins),
        "megatron export": lambda: script(cli / "export.py", *plugins),
        "swift rlhf": lambda: RLHFArguments(rlhf_type="grpo", external_plugins=[plugin]),
    }
    errors, own = {}, ModelArguments.__post_init__
    for name, run in entries.items():
        try:
            run()
        except (Exception, SystemExit) as error:
            errors[name] = f"{type(error).__name__}: {error}"
        ModelArguments.__post_init__ = own
        for module in [module for module in sys.modules if module.startswith("_swift_external_")]:
            del sys.modules[module]  # the next one loads the plugin anew
    print(json.dumps(errors))


if __name__ == "__main__":
    sys.meta_path.insert(0, StandIns())
    main(*sys.argv[1:])
