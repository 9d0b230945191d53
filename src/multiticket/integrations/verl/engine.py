"""verl's FSDP2 engine with an attachment: built, stepped, sent to the rollout engine, and kept as a ticket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead, transformer_impl

from multiticket.integrations.verl.settings import mask_rule
from multiticket.mask import Mask
from multiticket.mask.names import VALUES_SUFFIX
from multiticket.sparse import Attachment, attach

BACKENDS = ("fsdp", "fsdp2")
TICKET = "ticket.safetensors"
"""In the folder of each checkpoint."""


def replace_engines() -> None:
    """Put an engine with tickets in the place of verl's, on every device; verl has no public way to replace one."""
    engines = EngineRegistry._engines["language_model"]
    for backend in BACKENDS:
        engines[backend].setdefault("cpu", FSDPEngineWithLMHead)
        for device, engine in engines[backend].items():
            if not issubclass(engine, TicketEngine):
                engines[backend][device] = with_tickets(engine)


def with_tickets(engine: type[Any]) -> type[Any]:
    """A subclass of one of verl's FSDP engines that trains a ticket where its model's settings ask for one."""
    return type(engine.__name__, (TicketEngine, engine), {"__module__": engine.__module__})


class TicketEngine:
    """What stands before an FSDP engine of verl in the resolution order.

    Without ``override_config.multiticket``, and for a reference policy, it changes nothing.
    """

    attachment: Attachment | None = None
    """The trained values; None where the engine is verl's own."""

    def initialize(self) -> None:
        """Raises ValueError for settings under which a ticket cannot train, before anything is loaded."""
        engine: Any = self
        self._rule = None
        if not engine.engine_config.forward_only:
            self._rule = mask_rule(engine.model_config.override_config or {})
        if self._rule is not None:
            _refuse_what_cannot_train(engine)
        super().initialize()  # type: ignore[misc]

    def _build_module(self) -> nn.Module:
        """With weights on every rank, which verl leaves to the first one: the base's values are read from them."""
        if self._rule is None:
            return super()._build_module()  # type: ignore[misc]
        name = "get_init_weight_context_manager"
        with mock.patch.object(transformer_impl, name, return_value=nullcontext):
            return super()._build_module()  # type: ignore[misc]

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        if self._rule is not None:
            on_cpu = torch.accelerator.current_accelerator() is None
            self.attachment = attach(
                module, Mask.from_rule(module, self._rule), "auto" if on_cpu else "blocks"
            )
        return super()._build_fsdp_module(module)  # type: ignore[misc]

    def _build_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        if self.attachment is None:
            return super()._build_optimizer(module)  # type: ignore[misc]
        from verl.workers.config.optimizer import build_optimizer

        engine: Any = self
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer = build_optimizer(trained, engine.optimizer_config)
        return optimizer

    # To the rollout engine

    def get_per_tensor_param(self, *args: Any, **kwargs: Any) -> Any:
        """All weights under plain names, with the values written into them. Collective."""
        self._write()
        named, adapter = super().get_per_tensor_param(*args, **kwargs)  # type: ignore[misc]
        return (pair for pair in named if not pair[0].endswith(VALUES_SUFFIX)), adapter

    def get_per_tensor_param_shard(self, *args: Any, **kwargs: Any) -> Any:
        """This rank's shards of all weights, with the values written into them. Collective."""
        self._write()
        shards, adapter = super().get_per_tensor_param_shard(*args, **kwargs)  # type: ignore[misc]
        return (shard for shard in shards if not shard[0].endswith(VALUES_SUFFIX)), adapter

    def prime_delta_snapshots(self) -> None:
        """No copy of the weights is kept to find out what changed: the mask says what may have."""
        if self.attachment is None:
            super().prime_delta_snapshots()  # type: ignore[misc]

    def get_per_tensor_param_delta_shard(self, *args: Any, **kwargs: Any) -> Any:
        """For verl's delta checkpoint engine: the k values at the mask's positions, whole on rank 0. Collective."""
        if self.attachment is None:
            return super().get_per_tensor_param_delta_shard(*args, **kwargs)  # type: ignore[misc]
        self._write()
        return self._masked_entries(self.attachment), None

    def _masked_entries(self, attachment: Attachment) -> Iterator[tuple[Any, ...]]:
        """verl's entries, one a masked tensor: ([(name, shape)], dtype, counts (1,), positions (k,), values (k,),
        group). Without a group, rank 0's is taken for all there is."""
        device = transformer_impl.get_device_id()
        for name, values in attachment.state_dict()["values"].items():
            content = values.to(device, attachment.dense_dtype(name)).to(
                torch.bfloat16
            )  # as verl sends weights
            positions = attachment.mask.indices(name, device).to(torch.int32)
            counts = torch.tensor([positions.numel()])
            yield [(name, attachment.mask.shape(name))], "bfloat16", counts, positions, content, None

    def _write(self) -> None:
        if self.attachment is not None:
            self.attachment.flush()

    # Checkpoints

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """verl's own files, the values among them, and beside them the ticket. Collective."""
        super().save_checkpoint(local_path, *args, **kwargs)  # type: ignore[misc]
        if self.attachment is None or local_path is None:
            return
        self._write()
        if dist.get_rank() == 0:
            engine: Any = self
            ticket = self.attachment.ticket(
                base=str(engine.model_config.path), trainer="verl", steps=int(kwargs.get("global_step", 0))
            )
            ticket.save(Path(local_path) / TICKET)
        dist.barrier()

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        super().load_checkpoint(local_path, *args, **kwargs)  # type: ignore[misc]
        if local_path is not None:
            self._write()


def _refuse_what_cannot_train(engine: Any) -> None:
    strategy = engine.engine_config.strategy
    if strategy != "fsdp2":
        raise ValueError(
            f"A ticket trains under FSDP2, not {strategy}: set actor.fsdp_config.strategy=fsdp2."
        )
    if engine.model_config.lora_rank > 0:
        raise ValueError("A ticket and a LoRA adapter do not train together: set model.lora_rank=0.")
    if engine._qat_enabled:
        raise ValueError("A ticket does not train under quantisation-aware training: turn actor.qat off.")
    if "hf_model" in engine.checkpoint_config.save_contents:
        raise ValueError(
            "checkpoint.save_contents names hf_model, which would hold the ticket's values beside the weights: leave "
            f"it out, and merge the {TICKET} of a checkpoint into the base (multiticket merge)."
        )
