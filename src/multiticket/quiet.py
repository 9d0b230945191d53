"""Silence for what TRL, transformers and datasets say while they work, and no phoning home. For commands alone."""

from __future__ import annotations

import logging
import os
import sys
import warnings

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""What these libraries read when they are imported."""
LOGGERS = (
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "peft",
    "torch.distributed",
    "torch.utils._pytree",
    "torchao",
    "bitsandbytes",
    "huggingface_hub",
)


def hush() -> None:
    """Let the libraries under the trainer say errors only. Before they are imported, or after; twice is fine.

    A process is hushed by the command, or the worker, that it is for. The library hushes nobody.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", module=r"(transformers|trl|accelerate|datasets|torch|torchao|huggingface_hub)(\..*)?"
    )
    if transformers := sys.modules.get("transformers"):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    if datasets := sys.modules.get("datasets"):
        datasets.utils.logging.set_verbosity_error()
        datasets.disable_progress_bars()
