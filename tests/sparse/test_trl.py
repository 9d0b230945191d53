"""Gradients through GRPOTrainer's own loss, whose fused head reads ``lm_head.weight`` without calling the head."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from test_exactness import assert_gradients_are_the_dense_ones
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_models import gemma3, llama, qwen2, qwen3_moe, tokens
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import multiticket as mt
from multiticket.train.trl_compat import SCORES_BY_CALLING

pytestmark = pytest.mark.usefixtures("path")

HEADS = {
    "tied": qwen2,
    "untied": lambda: qwen2(tied=False),
    "llama": llama,
    "gemma3": gemma3,
    "moe": qwen3_moe,
}


def toy_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 61)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def grpo(model: nn.Module, folder) -> GRPOTrainer:
    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        learning_rate=1e-2,
        max_steps=2,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(sum(map(ord, c)) % 7) for c in completions],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3 w4", "w5 w6"] * 8}),
        processing_class=toy_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1  # set by train(), needed by the loss
    return trainer


def rollouts() -> dict[str, Tensor]:
    ids = tokens(batch=4, length=9)
    completion_mask = torch.ones(4, 5, dtype=torch.long)
    completion_mask[1, 3:] = 0
    return {
        "prompt_ids": ids[:, :4],
        "prompt_mask": torch.ones(4, 4, dtype=torch.long),
        "completion_ids": ids[:, 4:],
        "completion_mask": completion_mask,
        "advantages": torch.tensor([1.0, -0.5, 0.25, -0.75]),
        "num_items_in_batch": completion_mask.sum(),
    }


@pytest.mark.parametrize("head", HEADS)
def test_gradients_through_the_trainers_own_loss(head, tmp_path):
    torch.manual_seed(0)
    model = HEADS[head]().train()
    dense_model = copy.deepcopy(model)
    trainer = grpo(dense_model, tmp_path / "dense")
    trainer.compute_loss(trainer.model, rollouts()).backward()
    dense = {name: p.grad.flatten() for name, p in dense_model.named_parameters()}

    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    trainer = grpo(model, tmp_path / "ticket")
    trainer.compute_loss(trainer.model, rollouts()).backward()
    assert_gradients_are_the_dense_ones(attachment, dense)
    assert any(float(values.grad.abs().max()) > 0 for values in attachment.parameters())


def test_the_stock_trainer_trains_the_mask_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    model = qwen2()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    attachment = mt.attach(model, mt.Mask.random(model, 0.1))
    grpo(model, tmp_path).train()
    attachment.detach()
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() != base[name]).flatten().nonzero().flatten()
        assert torch.isin(moved, attachment.mask.indices(name)).all()
    assert any(not torch.equal(p.detach(), base[name]) for name, p in model.named_parameters())


class Sizes(TorchDispatchMode):
    """How many entries each tensor has that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.seen |= {tensor.numel() for tensor in made if isinstance(tensor, Tensor) and not func.is_view}
        return result


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_no_gradient_of_the_whole_head_is_ever_made(tied, bias, tmp_path, monkeypatch):
    monkeypatch.setattr("multiticket.sparse.gradient.blocks.BLOCK_ENTRIES", 10 * 64)

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = qwen2(tied).train()
        if bias:
            model.lm_head.bias = nn.Parameter(torch.randn(model.lm_head.weight.shape[0]))
        return model

    dense_model, model = build(), build()
    trainer = grpo(dense_model, tmp_path / "dense")
    trainer.compute_loss(trainer.model, rollouts()).backward()
    dense = {name: p.grad.flatten() for name, p in dense_model.named_parameters()}

    scope = "lm_head,model.embed_tokens*,lm_head*"
    attachment = mt.attach(model, mt.Mask.random(model, 0.2, scope=scope))
    trainer = grpo(model, tmp_path / "ticket")
    loss = trainer.compute_loss(trainer.model, rollouts())
    with Sizes() as sizes:
        loss.backward()
    assert model.lm_head.weight.numel() not in sizes.seen
    assert 10 * 64 in sizes.seen
    assert_gradients_are_the_dense_ones(attachment, dense)


def test_the_sparse_head_gives_trls_own_numbers_in_bf16(tmp_path):
    torch.manual_seed(0)
    model = qwen2(tied=False).to(torch.bfloat16).train()
    own = copy.deepcopy(model)
    trainer = grpo(own, tmp_path / "dense")
    loss = trainer.compute_loss(trainer.model, rollouts())
    loss.backward()
    attachment = mt.attach(model, mt.Mask.random(model, 0.2, scope="lm_head*"))
    trainer = grpo(model, tmp_path / "ticket")
    sparse_loss = trainer.compute_loss(trainer.model, rollouts())
    sparse_loss.backward()
    assert torch.equal(loss, sparse_loss)
    (name, values), *_ = attachment.named_parameters()
    wanted = own.get_parameter(name).grad.flatten()[attachment.mask.indices(name)]
    torch.testing.assert_close(values.grad.to(torch.bfloat16), wanted, rtol=1e-2, atol=1e-6)


@pytest.mark.skipif(not SCORES_BY_CALLING, reason="TRL 1.14 makes its logits whole")
@pytest.mark.parametrize("masked", [True, False])
def test_a_cpu_scores_a_part_of_the_vocabulary_at_a_time(masked, tmp_path, monkeypatch):
    """TRL's tiles of 32,768 words are several GB on a CPU, where seven tensors of that size are there at once."""
    monkeypatch.setattr("multiticket.sparse.autograd.fused_head.HOST_CHUNK", 16)
    torch.manual_seed(0)
    model = qwen2(tied=False).train()
    vocabulary = model.lm_head.weight.shape[0]
    mt.attach(model, mt.Mask.random(model, 0.2, scope="*" if masked else "*mlp*"))
    trainer = grpo(model, tmp_path)
    batch = rollouts()
    batch["completion_mask"][1, 2:] = 0
    with Sizes() as sizes:
        trainer.compute_loss(trainer.model, batch).backward()
    scored = int(batch["completion_mask"].sum())  # neither prompts nor padding
    assert scored * 16 in sizes.seen
    assert scored * vocabulary not in sizes.seen


@pytest.mark.skipif(not SCORES_BY_CALLING, reason="TRL 1.14 makes its logits whole")
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_in_which_no_token_counts_has_gradients_of_zero(masked, tmp_path):
    """All completions were cut off, say, and ``mask_truncated_completions`` is set."""
    torch.manual_seed(0)
    model = qwen2(tied=False).train()
    attachment = mt.attach(model, mt.Mask.random(model, 0.2)) if masked else None
    trainer = grpo(model, tmp_path)
    batch = rollouts()
    batch["completion_mask"][:] = 0
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss == 0
    trained = dict(attachment.named_parameters() if attachment else model.named_parameters())
    assert trained
    assert all(value.grad is None or not value.grad.any() for value in trained.values())
