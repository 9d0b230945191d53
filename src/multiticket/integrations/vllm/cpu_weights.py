"""For vLLM's CPU back end alone: keep linear weights as they are, so that they can be written.

That back end packs them for its matrix products after loading and throws the originals away. With this, layers
call torch's own product instead, which is slower; nothing of it concerns a GPU.
"""

from __future__ import annotations

import os

import torch

SWITCH = "MULTITICKET_VLLM_CPU_WEIGHTS"
"""The environment variable that asks for it: ``keep``."""


def keep_if_asked() -> None:
    """Where the variable says ``keep`` and the platform is a CPU."""
    if _on_cpu() and os.environ.get(SWITCH) == "keep":
        import vllm.model_executor.layers.utils as layers

        layers.dispatch_cpu_unquantized_gemm = _unpacked


def packs_weights() -> bool:
    """Whether this is the CPU back end, and nobody asked it to keep its weights."""
    return _on_cpu() and os.environ.get(SWITCH) != "keep"


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _unpacked(layer: torch.nn.Module, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]
