"""One rank of verl's actor, on a CPU: trains some steps, and writes what it has to ``OUT/RESULT.safetensors``.

python actor.py OUT RESULT BASE SETTINGS, under torchrun's variables. SETTINGS: JSON, a mapping with steps, multiticket
(None for verl's own engine) and what else `main` asks.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from problem import ANSWER, LEARNING_RATE, SENTENCES
from safetensors.torch import save_file
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry


def engine_of(base: str, asked: dict[str, Any]) -> Any:
    override: dict[str, Any] = {"attn_implementation": "sdpa", "model_config": {}}
    if asked.get("multiticket") is not None:
        override["multiticket"] = asked["multiticket"]
    model = HFModelConfig(
        path=base,
        external_lib="multiticket.integrations.verl",
        use_remove_padding=False,
        enable_gradient_checkpointing=False,
        override_config=override,
        lora_rank=asked.get("lora_rank", 0),
    )
    precision = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
    engine = EngineRegistry.new(
        model_type="language_model",
        backend=asked.get("strategy", "fsdp2"),
        model_config=model,
        engine_config=FSDPEngineConfig(
            strategy=asked.get("strategy", "fsdp2"),
            dtype="float32",
            model_dtype="fp32",
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=2,
            use_remove_padding=False,
            use_torch_compile=False,
            mixed_precision=precision,
            param_offload=False,
            forward_only=asked.get("forward_only", False),
        ),
        optimizer_config=FSDPOptimizerConfig(
            optimizer=asked.get("optimizer", "SGD"),
            lr=LEARNING_RATE,
            weight_decay=0.0,
            total_training_steps=10,
            clip_grad=1e9,
        ),
        checkpoint_config=CheckpointConfig(save_contents=asked.get("save", ["model", "optimizer", "extra"])),
    )
    engine.initialize()
    return engine


def batch(base: str) -> TensorDict:
    """This rank's part of the sentences."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tokens = [tokenizer(sentence).input_ids for sentence in SENTENCES[rank::ranks]]

    def nested(rows: list[list[int]]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)

    return tensordict_utils.get_tensordict(
        tensor_dict={
            "input_ids": nested(tokens),
            "position_ids": nested([list(range(len(row))) for row in tokens]),
            "loss_mask": nested([[0] * (len(row) - ANSWER) + [1] * ANSWER for row in tokens]),
        },
        non_tensor_dict={
            "temperature": 1.0,
            "use_remove_padding": False,
            "micro_batch_size_per_gpu": 2,
            "use_dynamic_bsz": False,
            "max_response_length": ANSWER,
            "max_response_len": ANSWER,
            "calculate_entropy": False,
        },
    )


def loss(model_output: Any, data: Any, dp_group: Any = None) -> tuple[torch.Tensor, dict[str, float]]:
    """The mean over all sentences of the negative log-probability of what the answer's mask selects."""
    log_probs, mask = model_output["log_probs"], data["loss_mask"]
    if log_probs.is_nested:
        log_probs, mask = log_probs.values(), mask.values()
        mask = mask.roll(-1)  # log_probs[t] is of the token after t
    total = -(log_probs * mask).sum() * dist.get_world_size() / len(SENTENCES)
    return total, {"loss": total.item()}


def train(engine: Any, data: TensorDict, steps: int) -> None:
    for _ in range(steps):
        engine.optimizer_zero_grad()
        engine.forward_backward_batch(data.clone(), loss)
        engine.optimizer_step()
        engine.lr_scheduler_step()


def main(out: Path, result: str, base: str, asked: dict[str, Any]) -> None:
    try:
        engine = engine_of(base, asked)
    except ValueError as error:
        (out / f"{result}.txt").write_text(str(error))
        return
    data = batch(base)
    if asked.get("load"):
        engine.load_checkpoint(asked["load"], del_local_after_load=False)
    train(engine, data, asked["steps"])
    if asked.get("save_to"):
        engine.save_checkpoint(asked["save_to"], global_step=asked["steps"])
    written = {name: tensor.detach().clone() for name, tensor in engine.get_per_tensor_param()[0]}
    facts: dict[str, Any] = {
        "trained": sum(p.numel() for p in engine.module.parameters() if p.requires_grad),
        "engine": type(engine).__name__,
        "attached": engine.attachment is not None,
    }
    entries: dict[str, torch.Tensor] = {}
    if engine.attachment is not None:
        engine.prime_delta_snapshots()
        for slots, _, counts, positions, values, group in engine.get_per_tensor_param_delta_shard()[0]:
            assert group is None
            assert int(counts.sum()) == positions.numel() == values.numel()
            entries[f"positions:{slots[0][0]}"], entries[f"values:{slots[0][0]}"] = positions, values
        facts["fingerprint"] = engine.attachment.base_fingerprint
    if dist.get_rank() == 0:
        save_file({n: t.contiguous() for n, t in written.items()}, out / f"{result}.safetensors")
        save_file(entries, out / f"{result}-entries.safetensors")
        (out / f"{result}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
    dist.destroy_process_group()
