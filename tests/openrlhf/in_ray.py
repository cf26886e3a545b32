"""A driver that starts Ray as OpenRLHF's main program does in a job, trains one step, and writes what it saw.

``python in_ray.py FOLDER`` with the job's runtime environment where Ray's job supervisor puts it. Everything is the
released package but the policy's worker, whose model is on a CPU and which does not update it, and vLLM's answers,
which are written here.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import ray
import released
import tiny
import torch
import vision

from durian_adv.adapters.openrlhf.preflight import checks

SAMPLES, PROMPTS = 4, 5
RIGHT = (1, 3, 2, 1, 0)  # of the responses to each prompt


def start(temporary):
    """``ray.init`` as in openrlhf.cli.train_ppo_ray, in an instance of its own."""
    ray.init(
        runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "true", "NCCL_DEBUG": "WARN"}},
        num_cpus=8,
        num_gpus=2,
        include_dashboard=False,
        _temp_dir=temporary,
    )


@ray.remote(num_cpus=0)
class Process:
    """A worker process."""

    def modules(self, name=None):
        if name is not None:
            __import__(name)
        return [m for m in ("deepspeed", "openrlhf", "vllm", "durian_adv.adapters.openrlhf") if m in sys.modules]


def policy():
    """A policy's worker: the released one without its GPU."""
    from openrlhf.trainer.ray.launcher import BaseModelActor
    from openrlhf.trainer.ray.ppo_actor import PolicyModelActor

    @ray.remote
    class Policy(BaseModelActor):
        forward = PolicyModelActor.__ray_metadata__.modified_class.forward

        def init_model_from_pretrained(self, strategy, pretrain):
            torch.cuda.current_device = lambda: "cpu"
            self.strategy = strategy
            strategy.is_rank_0 = lambda: False
            self.actor = vision.actor(pretrain)
            self.kept, self.calls = [], 0
            own = self.durian_entropy

            def counting(**kwargs):
                self.calls += 1
                return own(**kwargs)

            self.durian_entropy = counting

        def append(self, experience):
            self.kept.append(experience)

        def fit(self, kl_ctl):
            return {"policy_loss": 0.0}

        def seen(self):
            return self.kept, self.calls, self.actor.training

    return Policy


def answers(processor, files):
    """Answers to prompts with one image, none and several."""
    of_prompts = [files[:1], files[7:], [], files[2:5], files[6:7]]
    generator, out = torch.Generator().manual_seed(0), []
    for p, chosen in enumerate(of_prompts):
        ids, inputs = vision.inputs(processor, chosen)
        for i in range(SAMPLES):
            length = int(torch.randint(3, 9, (), generator=generator))
            tokens = torch.randint(5, 90, (length,), generator=generator).tolist()
            out.append(
                released.response(
                    f"prompt {p}",
                    float(i < RIGHT[p]),
                    length,
                    observation_tokens=ids + tokens,
                    action_ranges=[(len(ids), len(ids) + length)],
                    images=chosen or None,
                    mm_train_inputs=inputs,
                )
            )
    return out


def main(folder):
    model, processor = vision.saved(folder)
    files = [vision.image_file(folder, k) for k in range(8)]
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "prompts.jsonl").write_text('{"input": "What is it?"}\n' * 8)
    args = released.arguments(
        SAMPLES,
        PROMPTS,
        data__prompt_dataset=str(folder / "prompts.jsonl"),
        rollout__micro_batch_size=3,
        algo__kl__init_coef=0,
        data__max_images_per_prompt=3,
        data__dataloader_num_workers=0,
    )
    args.data.max_len = 512
    result = {"before": ray.get(Process.remote().modules.remote())}
    result["vllm"] = ray.get(Process.remote().modules.remote("openrlhf.trainer.ray.vllm_engine"))

    from openrlhf.trainer.ppo_trainer import PPOTrainer, RemoteExperienceMaker
    from openrlhf.trainer.ray.launcher import RayActorGroup
    from openrlhf.utils import get_strategy

    result["driver"] = RemoteExperienceMaker.__name__
    strategy = get_strategy(args)
    group = RayActorGroup(1, 2, policy(), num_gpus_per_actor=1)
    pretrain = str(folder / "tokenizer")
    trainer = PPOTrainer.remote(pretrain, strategy, group, None, None, None, None, max_len=args.data.max_len)
    ray.get(group.async_init_model_from_pretrained(strategy, model))
    samples = released.samples_of(answers(processor, files), args)
    status, _ = ray.get(trainer.train_step.remote(samples, 0))
    result["status"] = status
    result["seen"] = [ray.get(actor.seen.remote()) for actor in group._actor_handlers]
    result["answers"] = answers(processor, files)

    other = released.arguments(SAMPLES, PROMPTS, algo__advantage__estimator="rloo")
    other.data.prompt_dataset = args.data.prompt_dataset
    refused = PPOTrainer.remote(pretrain, get_strategy(other), group, None, None, None, None)
    try:
        ray.get(refused.get_max_steps.remote())
    except ray.exceptions.RayError as error:
        result["refused"] = str(error)

    words = ["--algo.advantage.estimator", "group_norm", "--rollout.batch_size", str(PROMPTS)]
    words += ["--rollout.n_samples_per_prompt", str(SAMPLES)]
    job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["runtime_env"]
    result["preflight"] = list(checks(["--runtime-env-json", json.dumps(job), *words]))
    torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary:
        start(temporary)
        main(Path(sys.argv[1]))
        ray.shutdown()
