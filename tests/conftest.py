"""What all tests share: no network, one thread, and a toy model with a toy task to train it on."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

SUPPORT = Path(__file__).parent / "support"
if str(SUPPORT) not in sys.path:
    sys.path.insert(0, str(SUPPORT))


@pytest.fixture(scope="module", autouse=True)
def _freeze() -> None:
    """What imports and earlier modules left is never garbage: looked through, it doubles the time of a small run."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # so that the interpreter can end tidily


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def save_toy_model(folder: Path) -> Path:
    """A Hugging Face checkpoint: a Qwen2 of 2 layers and width 32 with random weights, one token a character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    letters = [*"0123456789=ab"]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=16,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the toy model lies."""
    return save_toy_model(tmp_path_factory.mktemp("toy-model"))


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory: pytest.TempPathFactory, toy_model_folder: Path) -> dict[str, Path]:
    """Folders of runs of 4 steps, a checkpoint every 2, by arm."""
    from small_runs import small

    from multiticket.train.run import run_training

    folder = tmp_path_factory.mktemp("runs")
    for arm in ("full", "ticket", "lora"):
        config = small(toy_model_folder, arm, steps=4, keep_last=9, eval_every=None)
        run_training(config, folder / arm, show_progress=False)
    return {arm: folder / arm for arm in ("full", "ticket", "lora")}
