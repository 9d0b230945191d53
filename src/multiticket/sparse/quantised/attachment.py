"""A quantised base: what trains is put into the copy of a weight that each product is made with, as QLoRA's base is.

Everything else is the path of accelerators: one flat parameter, k gradients gathered as the backward pass goes, plain
weights (norms, biases, embeddings, the head) through their aliases. What cannot be done to quantised weights, to keep
trained values in them, is refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from multiticket.mask import Mask
from multiticket.mask.fingerprint import fingerprint
from multiticket.mask.quantised import descriptions, is_quantised
from multiticket.sparse.hooked.attachment import HookedAttachment
from multiticket.sparse.hooked.tensor import MaskedTensor
from multiticket.sparse.quantised.layers import can_be_read_past_its_layer
from multiticket.sparse.quantised.tensor import QuantisedTensor
from multiticket.ticket.overlay import allow_saving, refuse_saving

_DDP_IGNORES = "_ddp_params_and_buffers_to_ignore"
"""What DistributedDataParallel asks a model for: frozen weights that it need not send to all ranks at its start. It
cannot send torchao's."""


class QuantisedAttachment(HookedAttachment):
    """A mask with positions in quantised weights."""

    path = "quantised"

    def __init__(self, model: nn.Module, mask: Mask, parameters: dict[str, nn.Parameter]) -> None:
        self._descriptions = descriptions({name: parameters[name] for name in mask.names})
        super().__init__(model, mask, parameters)
        self._told_trainers = _tell_trainers(model)
        refuse_saving(model)
        self._ignored_by_ddp = getattr(model, _DDP_IGNORES, None)
        torchao = {name for name, p in model.named_parameters() if can_be_read_past_its_layer(p)}
        setattr(model, _DDP_IGNORES, [*(self._ignored_by_ddp or ()), *torchao])

    def detach(self, keep: bool = True) -> None:
        """Give the model back as it was, the base.

        Args:
            keep: must be False: quantised weights cannot hold trained values.

        Raises:
            ValueError: ``keep`` is True.
        """
        self._refuse_if_detached()
        if keep:
            raise ValueError(
                "Quantised weights cannot keep trained values; save attachment.ticket(), detach(keep=False), and apply "
                "the ticket to the base wherever it is loaded."
            )
        super().detach(keep=False)
        allow_saving(self.model)
        if self._ignored_by_ddp is None:
            delattr(self.model, _DDP_IGNORES)
        else:
            setattr(self.model, _DDP_IGNORES, self._ignored_by_ddp)
        for module in self._told_trainers:
            module.__dict__.pop("_hf_peft_config_loaded", None)

    def _kind_of(self, parameter: nn.Parameter) -> type[MaskedTensor]:
        return QuantisedTensor if is_quantised(parameter) else MaskedTensor

    def _fingerprint(self, originals: dict[str, Tensor]) -> str:
        return fingerprint(self.mask, originals.__getitem__, self._descriptions)

    def _method(self, tensor: MaskedTensor, module: nn.Module, attribute: str) -> str:
        """As on the path of accelerators; ``product`` where a quantised layer's dense gradient is made at once."""
        method = super()._method(tensor, module, attribute)
        return "product" if method == "hook" and not tensor.in_memory else method

    def _take_what_was_put_there(self) -> None:
        for _, parameters, attribute, tensor in self._checks:
            replaced = parameters[attribute] is not tensor.known or tensor.address_now() != tensor.address
            if replaced and not tensor.in_memory:
                raise RuntimeError(
                    f"The quantised weight {tensor.name} was replaced; detach before changing a model, and attach "
                    "again."
                )
        super()._take_what_was_put_there()

    def _copy_model(self, memo: dict[int, Any]) -> nn.Module:
        raise ValueError(
            "A quantised model with an attachment cannot be copied; load the base again, attach the same mask, and "
            "load attachment.state_dict()."
        )


def _tell_trainers(model: nn.Module) -> list[nn.Module]:
    """Tell transformers' Trainer, which trains no quantised model without adapters, that something else trains."""
    told = [
        module
        for module in model.modules()
        if getattr(module, "is_quantized", False) and "_hf_peft_config_loaded" not in module.__dict__
    ]
    for module in told:
        module.__dict__["_hf_peft_config_loaded"] = True
    return told
