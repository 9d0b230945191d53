"""Training every parameter, as the paper's rival does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiticket.arms.protocol import Arm, Prepared, Products, Reference, Which, Work
from multiticket.arms.state import MASTER, State, count_state
from multiticket.config import RunConfig
from multiticket.mask import Mask
from multiticket.models import load_model
from multiticket.runs.folder import RunFolder
from multiticket.sparse.sharded import is_sharded


class WholeModel(Prepared):
    """All parameters of a model."""

    def reference(self, which: Which) -> Reference:
        """A copy of all weights, since none of them stays. ValueError on a model that FSDP2 shards."""
        return _copy_of(self.model)

    def keep(
        self,
        folder: RunFolder,
        tokenizer: Any,
        provenance: Mapping[str, Any],
        state_dict: Mapping[str, Any] | None = None,
    ) -> Path:
        """The whole model as a plain checkpoint."""
        with folder.replacing_model() as partial:
            self.model.save_pretrained(partial, state_dict=state_dict)
            tokenizer.save_pretrained(partial)
        return folder.model


class Full(Arm):
    name = "full"
    kept = "model"

    def prepare(self, model: Any, tokenizer: Any, config: RunConfig) -> WholeModel:
        return WholeModel(model)

    def mask(self, model: Any, tokenizer: Any, config: RunConfig) -> Mask:
        """Every position."""
        return Mask.random(model, density=1.0)

    def read(self, place: Path, config: RunConfig) -> tuple[Any, Any]:
        return load_model(str(place), config.dtype)

    def plan(
        self, model: Any, config: RunConfig, mask: Mask, batch: dict[str, Tensor], masters: bool
    ) -> tuple[Any, State]:
        """With `masters` as the paper does: 18 bytes a parameter of a bf16 model.

        fp32 master weights beside a bf16 or fp16 model (an fp32 model is its own master), fp32 gradients, two fp32
        moments. Without, as a run here does: the weights themselves are stepped.
        """
        parameters = list(model.parameters())
        small = [parameter for parameter in parameters if parameter.dtype != MASTER] if masters else []
        values = sum(parameter.numel() for parameter in small) * MASTER.itemsize
        dtype = MASTER if masters else parameters[0].dtype
        return model, count_state(parameters, model.buffers(), parameters, values, dtype)

    def head(self, tile: int, hidden: int, gradient: int, block: int) -> int:
        return tile + hidden + gradient

    def notes(self, config: RunConfig) -> list[str]:
        if config.dtype == "float32":
            return []
        return [f"The weights themselves are stepped in {config.dtype}, without fp32 masters."]

    def work(self, products: Products) -> Work:
        return Work(weight_gradient=products.everything)


def _copy_of(model: nn.Module) -> Reference:
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise ValueError(
            "beta above 0 with the full arm keeps a copy of all weights, which does not work with FSDP: set "
            "beta to 0, or use the ticket or lora arm."
        )
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @contextmanager
    def shown() -> Iterator[None]:
        parameters = dict(model.named_parameters())
        now = {name: parameters[name].data for name in base}
        with torch.no_grad():
            for name, kept in base.items():
                parameters[name].data = kept
            try:
                yield
            finally:
                for name, data in now.items():
                    parameters[name].data = data

    return shown


ARM = Full()
