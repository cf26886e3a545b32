"""Start EasyR1 on a CPU, by its own ``main`` (``launch.py own words...``) or the adapter's (``durian words...``)."""

import os
import runpy
import sys
from pathlib import Path

import ray

STANDINS = str(Path(__file__).resolve().parent / "standins")

if __name__ == "__main__":
    which = sys.argv.pop(1)
    sys.path.append(STANDINS)
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), STANDINS]))
    ray.init(
        num_cpus=8,
        num_gpus=1,  # in name alone, so that EasyR1 finds a place for its worker
        include_dashboard=False,
        object_store_memory=200_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    from cpu_worker import CPUWorker
    from verl.trainer import main as easyr1

    easyr1.FSDPWorker = CPUWorker
    if which == "durian":
        runpy.run_module("durian_adv.adapters.easyr1", run_name="__main__", alter_sys=True)
    else:
        easyr1.main()
