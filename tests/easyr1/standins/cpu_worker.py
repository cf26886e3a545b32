"""EasyR1's actor worker without FSDP, CUDA and vLLM: one process, the model as it is, the rest its own functions."""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.optim import AdamW
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.flops_counter import FlopsCounter
from verl.utils.tokenizer import get_processor, get_tokenizer
from verl.utils.torch_functional import get_constant_schedule_with_warmup
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.fsdp_workers import FSDPWorker
from verl.workers.rollout.vllm_rollout_spmd import VLLMHijack, vLLMRollout
from verl.workers.sharding_manager.fsdp_ulysses import FSDPUlyssesShardingManager

# what EasyR1 asks CUDA for
torch.cuda.get_device_name = lambda *_: "none"
torch.cuda.current_device = lambda: "cpu"
VLLMHijack.hijack = lambda: None  # changes how vLLM loads LoRA


class CPUWorker(Worker):
    _process_multi_modal_inputs = FSDPWorker._process_multi_modal_inputs
    compute_log_probs = FSDPWorker.compute_log_probs
    compute_ref_log_probs = FSDPWorker.compute_ref_log_probs
    generate_sequences = FSDPWorker.generate_sequences

    def __init__(self, config, role):
        super().__init__()
        self.config, self.role, self._cache = config, role, {}
        self._has_actor = self._has_rollout = self._has_ref = True
        self._is_lora = self._use_param_offload = self._use_ref_param_offload = self._use_optimizer_offload = False
        self.steps = 0
        dist.init_process_group(backend="gloo")
        actor = config.actor  # FSDPWorker does so for its ranks
        actor.global_batch_size_per_device = actor.global_batch_size * config.rollout.n

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self):
        path = self.config.actor.model.model_path
        options = {"trust_remote_code": True, "use_fast": True}
        self.tokenizer, self.processor = get_tokenizer(path, **options), get_processor(path, **options)
        self.model_config = AutoConfig.from_pretrained(path)
        self.generation_config = GenerationConfig.from_model_config(self.model_config)
        self.fsdp_module = AutoModelForImageTextToText.from_pretrained(path)
        self.ref_fsdp_module = AutoModelForImageTextToText.from_pretrained(path).requires_grad_(False)
        if self.config.actor.model.freeze_vision_tower:
            self.fsdp_module.model.visual.requires_grad_(False)
        self.optimizer = AdamW(self.fsdp_module.parameters(), lr=self.config.actor.optim.lr)
        self.lr_scheduler = get_constant_schedule_with_warmup(self.optimizer, 0)
        self.actor = DataParallelPPOActor(self.config.actor, self.fsdp_module, self.optimizer)
        self.ref_policy = DataParallelPPOActor(self.config.ref, self.ref_fsdp_module)
        self.flops_counter = FlopsCounter(self.model_config)
        self.ulysses_sharding_manager = FSDPUlyssesShardingManager(None)
        self.rollout = vLLMRollout(path, self.config.rollout, self.tokenizer, self.processor)
        self.rollout.inference_engine.model = self.fsdp_module
        self.rollout.inference_engine.processor = self.processor
        same = SimpleNamespace(preprocess_data=lambda data: data, postprocess_data=lambda data: data, freed_bytes=0)
        self.rollout_sharding_manager = same

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def prepare_rollout_engine(self):
        self.fsdp_module.eval()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def release_rollout_engine(self):
        pass

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def update_actor(self, data):
        folder = Path(self.config.rollout.val_override_config["folder"])
        self.steps += 1
        torch.save(
            ({name: value.clone() for name, value in data.batch.items()}, data.non_tensor_batch),
            folder / f"batch_{self.steps}.pt",
        )
        return FSDPWorker.update_actor(self, data)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, path, save_model_only=False):
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(self.fsdp_module.state_dict(), Path(path, "model.pt"))
