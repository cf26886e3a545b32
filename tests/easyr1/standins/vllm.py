"""Stands in for vLLM, which needs a GPU: its names, and an engine that samples from the actor's own weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import torch

__path__: list[str] = []


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    max_tokens: int = 16
    ignore_eos: bool = False
    detokenize: bool = True
    logit_bias: dict[int, float] | None = field(default=None)


class LLM:
    """What EasyR1's ``vLLMRollout`` calls; ``model`` and ``processor`` are put in by the worker."""

    model = processor = None

    def __init__(self, **given):
        torch.manual_seed(given["seed"])

    def sleep(self, level):
        pass

    @torch.no_grad()
    def generate(self, prompts, sampling_params, lora_request=None, use_tqdm=False):
        return [SimpleNamespace(outputs=self._complete(prompt, sampling_params)) for prompt in prompts]

    def _complete(self, prompt, params):
        ids, inputs = torch.tensor(prompt["prompt_token_ids"]), {}
        images = (prompt.get("multi_modal_data") or {}).get("image")
        if images:  # vLLM, too, makes as many tokens of the one that stands for an image as it has patches
            inputs = self.processor.image_processor(images=images, return_tensors="pt")
            mark = self.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
            counts = iter((inputs["image_grid_thw"].prod(-1) // self.processor.image_processor.merge_size**2).tolist())
            ids = torch.tensor([i for token in ids.tolist() for i in [token] * (next(counts) if token == mark else 1)])
            inputs = {k: v.repeat(params.n, *[1] * (v.ndim - 1)) for k, v in inputs.items()}
        ids = ids.repeat(params.n, 1)
        how = {"do_sample": True, "temperature": params.temperature} if params.temperature else {"do_sample": False}
        made = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=params.max_tokens,
            suppress_tokens=list(params.logit_bias or {}),
            **how,
            **inputs,
        )[:, ids.shape[1] :]
        eos = self.processor.tokenizer.eos_token_id
        rows = [row[: row.index(eos) + 1] if eos in row else row for row in made.tolist()]
        return [SimpleNamespace(token_ids=row) for row in rows]


class RequestOutput: ...


class LoRARequest: ...


def _module(name, **members):
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(members)
    sys.modules[name] = module


_module("vllm.distributed", parallel_state=None)
_module("vllm.lora")
_module("vllm.lora.models", LoRAModel=object)
_module("vllm.lora.request", LoRARequest=LoRARequest)
_module("vllm.lora.utils", get_adapter_absolute_path=None)
_module("vllm.lora.worker_manager", LRUCacheWorkerLoRAManager=object)
