"""Silence for what TRL, transformers and datasets say while they work, and no phoning home."""

from __future__ import annotations

import logging
import os
import warnings


def hush() -> None:
    """Only errors from the libraries under the trainer. Call it before they are imported, and after (twice is fine)."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    for name in (
        "transformers",
        "trl",
        "accelerate",
        "datasets",
        "peft",
        "torch.distributed",
        "huggingface_hub",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", module=r"(transformers|trl|accelerate|datasets|torch|huggingface_hub)(\..*)?"
    )


def hush_loaded() -> None:
    """What can only be silenced once the libraries are there: their progress bars."""
    import datasets
    import transformers

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
