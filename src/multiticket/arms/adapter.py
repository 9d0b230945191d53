"""What all arms share that train a PEFT adapter on every linear layer but the head: LoRA and its kin."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from multiticket.arms.protocol import Arm, Prepared, Reference, Which, base_of
from multiticket.arms.state import State, count_state, storage_bytes
from multiticket.config import RunConfig
from multiticket.mask import Mask, masked_candidates
from multiticket.runs.folder import RunFolder

LAYERS: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
"""What every adapter here adapts, in PEFT's words."""


class AdaptedModel(Prepared):
    """A PEFT model whose adapter trains, in fp32 over a frozen base."""

    def about(self, config: RunConfig, numel: int) -> dict[str, Any]:
        (adapter,) = self.model.peft_config.values()
        return {"method": None, "lora_rank": adapter.r, "density": self.nnz / numel}

    def typical_weight(self) -> None:
        """None: an adapter's values are no weights of the base."""
        return

    def reference(self, which: Which) -> Reference:
        """The base under the adapter, which is where a run starts too; it costs nothing."""

        @contextmanager
        def shown() -> Iterator[None]:
            with torch.no_grad(), self.model.disable_adapter():
                yield

        return shown

    def keep(
        self,
        folder: RunFolder,
        tokenizer: Any,
        provenance: Mapping[str, Any],
        state_dict: Mapping[str, Any] | None = None,
    ) -> Path:
        self.save_pretrained(folder.adapter, state_dict)
        return folder.adapter

    def save_pretrained(self, folder: Path, state_dict: Mapping[str, Any] | None = None) -> None:
        """The adapter alone, as PEFT keeps it: ``adapter_config.json`` and ``adapter_model.safetensors``."""
        kept = {} if state_dict is None else {"state_dict": state_dict}
        self.model.save_pretrained(folder, save_embedding_layers=False, **kept)


class AdapterArm(Arm):
    """An arm that says which adapter, and what that costs."""

    kept = "adapter"
    packages = ("peft",)
    graph_starts_late = True

    @abstractmethod
    def settings(self, peft: Any, rank: int, config: RunConfig) -> Any:
        """PEFT's configuration of the adapter."""

    def prepare(self, model: Any, tokenizer: Any, config: RunConfig) -> AdaptedModel:
        """With a fresh adapter; what is random in it is drawn with the run's seed.

        The caller's random state is left as it was.

        Raises:
            ValueError: PEFT is not installed, or does not know how to adapt this model.
        """
        return AdaptedModel(self._adapt(model, adapter_rank(model, config), config))

    def _adapt(self, model: Any, rank: int, config: RunConfig, **options: Any) -> Any:
        peft = import_peft(self.name)
        try:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                return peft.get_peft_model(model, self.settings(peft, rank, config), **options)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            name = model.config.name_or_path or model.config.model_type
            raise ValueError(
                f"PEFT refuses {self.facts.family} on all linear layers of {name}: {reason}; use another arm "
                f"than {self.name}."
            ) from None

    def read(self, place: Path, config: RunConfig) -> tuple[Any, Any]:
        base, tokenizer = base_of(config)
        return with_adapter(base, place), tokenizer

    def read_plain(self, place: Path, config: RunConfig) -> tuple[Any, Any]:
        model, tokenizer = self.read(place, config)
        return model.merge_and_unload(), tokenizer

    def plan(
        self, model: Any, config: RunConfig, mask: Mask, batch: dict[str, Tensor], masters: bool
    ) -> tuple[Any, State]:
        held = list(model.parameters())
        rank = config.lora_rank or max(1, round(mask.nnz / max(1, values_per_rank(model))))
        adapted = self._adapt(model, rank, config, low_cpu_mem_usage=True)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        return adapted, count_state(
            held, adapted.buffers(), trained, values=storage_bytes(trained), rank=rank
        )

    def kept_dtype(self, config: RunConfig) -> str:
        return "float32"


def adapter_rank(model: Any, config: RunConfig) -> int:
    """The rank asked for, or the one that trains nearest to density * all parameters; at least 1."""
    if config.lora_rank is not None:
        return config.lora_rank
    numel = sum(parameter.numel() for parameter in masked_candidates(model).values())
    return max(1, round(config.density * numel / values_per_rank(model)))


def values_per_rank(model: Any) -> int:
    """Trained values of an adapter of rank 1 on every linear layer but the head."""
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    return sum(sum(layer.weight.shape) for layer in layers)


def with_adapter(base: Any, adapter: Path) -> Any:
    """The base with a PEFT adapter read from its folder on top, not merged.

    Raises:
        ValueError: PEFT is not installed, the folder holds no adapter in safetensors, or it does not fit the base.
    """
    peft = import_peft("This adapter")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ValueError(f"{adapter} is not a PEFT adapter: it holds no adapter_model.safetensors.")
    try:
        return peft.PeftModel.from_pretrained(base, str(adapter))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"The adapter in {adapter} does not fit this base: {reason}.") from None


def adapter_base(adapter: Path) -> str:
    """The base that a PEFT adapter's folder names. ValueError if it is no such folder or names none."""
    try:
        named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        named = named["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{adapter} is not a PEFT adapter: it has no adapter_config.json that names a base."
        ) from None
    if not named:
        raise ValueError(f"The adapter in {adapter} does not name its base: give it as MODEL.")
    return str(named)


def import_peft(what: str) -> Any:
    """The library. ValueError where it is not installed, for `what` needs it."""
    try:
        import peft
    except ModuleNotFoundError:
        raise ValueError(f"{what} needs PEFT: pip install 'multiticket[peft]'.") from None
    return peft
