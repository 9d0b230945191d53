"""fp32 values over 16-bit weights come back from what any loop or trainer saves: weights and an optimiser's state."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from test_exactness import loss_of
from torch import Tensor, nn
from toy_models import build, tokens

import multiticket as mt
from multiticket.sparse.exact import KEY

pytestmark = pytest.mark.usefixtures("path")

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
}
STEPS = 3


def start(dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Module, mt.Attachment]:
    model = build("llama", dtype)
    return model, mt.attach(model, mt.Mask.random(model, 0.2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        loss_of(model, tokens(seed=seed)).backward()
        optimizer.step()


def values_of(attachment: mt.Attachment) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in attachment.named_parameters()}


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def plain(model: nn.Module, attachment: mt.Attachment) -> dict[str, Tensor]:
    """What ``save_pretrained`` writes: the model's weights, and no values."""
    own = {name for name, _ in attachment.named_parameters()}
    return {name: held.clone() for name, held in model.state_dict().items() if name in own}


def resumed(weights: dict[str, Tensor], state: Any, kind: str) -> tuple[nn.Module, mt.Attachment, Any]:
    model, attachment = start()
    model.load_state_dict(weights, strict=False)
    optimizer = OPTIMISERS[kind](attachment.parameters())
    optimizer.load_state_dict(state)
    return model, attachment, optimizer


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_loop_that_saves_weights_and_optimiser_goes_on_at_the_same_bits(kind):
    model, attachment = start()
    optimizer = OPTIMISERS[kind](attachment.parameters())
    train(model, optimizer, range(STEPS))
    saved = plain(model, attachment), through_a_file(optimizer.state_dict())
    train(model, optimizer, range(STEPS, 2 * STEPS))

    again, other, once_more = resumed(*saved, kind)
    train(again, once_more, range(STEPS, 2 * STEPS))
    for name, values in values_of(attachment).items():
        torch.testing.assert_close(values_of(other)[name], values, rtol=0, atol=0, msg=name)


def test_without_them_it_would_not():
    """The control: with the moments alone, what rounding hid is lost."""
    model, attachment = start()
    optimizer = OPTIMISERS["adamw"](attachment.parameters())
    train(model, optimizer, range(STEPS))
    state = through_a_file(optimizer.state_dict())
    for one in state["state"].values():
        del one[KEY]
    saved = plain(model, attachment), state
    train(model, optimizer, range(STEPS, 2 * STEPS))
    again, other, once_more = resumed(*saved, "adamw")
    train(again, once_more, range(STEPS, 2 * STEPS))
    assert any(not torch.equal(values_of(other)[name], one) for name, one in values_of(attachment).items())


def test_saved_again_before_its_first_step_nothing_is_lost():
    model, attachment = start()
    optimizer = OPTIMISERS["adamw"](attachment.parameters())
    train(model, optimizer, range(STEPS))
    state = through_a_file(optimizer.state_dict())
    *_, once_more = resumed(plain(model, attachment), state, "adamw")
    again = once_more.state_dict()
    for index, one in state["state"].items():
        assert torch.equal(again["state"][index][KEY], one[KEY])


def test_weights_from_elsewhere_stay_where_they_are():
    model, attachment = start()
    optimizer = OPTIMISERS["sgd"](attachment.parameters())
    train(model, optimizer, range(STEPS))
    state = through_a_file(optimizer.state_dict())
    other = {name: held + 1 for name, held in plain(model, attachment).items()}
    again, twin, once_more = resumed(other, state, "sgd")
    for group in once_more.param_groups:
        group["lr"] = 0.0
    train(again, once_more, range(1))
    for name, values in values_of(twin).items():
        assert torch.equal(values, other[name].flatten()[twin.mask.indices(name)].float())
        assert torch.equal(again.get_parameter(name).detach(), other[name])


def test_the_state_belongs_to_the_optimiser_alone_while_it_runs():
    """A loop that resets all of its moments resets no weight."""
    model, attachment = start()
    optimizer = OPTIMISERS["adamw"](attachment.parameters())
    train(model, optimizer, range(1))
    optimizer.state_dict()
    before = values_of(attachment)
    for state in optimizer.state.values():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        for one in state.values():
            one.zero_()
    for name, values in values_of(attachment).items():
        assert torch.equal(values, before[name])


def test_weights_that_hold_every_bit_need_no_second_copy():
    model, attachment = start(torch.float32)
    optimizer = OPTIMISERS["adamw"](attachment.parameters())
    train(model, optimizer, range(1))
    assert all(KEY not in state for state in optimizer.state_dict()["state"].values())


def test_one_optimiser_a_tensor():
    model, attachment = start()
    named = dict(attachment.named_parameters())
    optimizers = {name: torch.optim.AdamW([values], lr=1e-4) for name, values in named.items()}

    def step(model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], seeds: range) -> None:
        for seed in seeds:
            loss_of(model, tokens(seed=seed)).backward()
            for one in optimizers.values():
                one.step()
            for one in optimizers.values():
                one.zero_grad()

    step(model, optimizers, range(STEPS))
    weights = plain(model, attachment)
    states = {name: through_a_file(one.state_dict()) for name, one in optimizers.items()}
    step(model, optimizers, range(STEPS, 2 * STEPS))

    again, other = start()
    again.load_state_dict(weights, strict=False)
    resumed = {name: torch.optim.AdamW([v], lr=1e-4) for name, v in other.named_parameters()}
    for name, one in resumed.items():
        one.load_state_dict(states[name])
    step(again, resumed, range(STEPS, 2 * STEPS))
    for name, values in values_of(attachment).items():
        assert torch.equal(values_of(other)[name], values), name


def test_a_state_of_another_mask_is_refused_in_words():
    model, attachment = start()
    optimizer = OPTIMISERS["sgd"](attachment.parameters())
    train(model, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    other = build("llama", torch.bfloat16)
    sparser = mt.attach(other, mt.Mask.random(other, 0.19))
    once_more = OPTIMISERS["sgd"](sparser.parameters())
    once_more.load_state_dict(state)
    with pytest.raises(ValueError, match="resume with the mask that was saved"):
        train(other, once_more, range(1))


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = tokens(seed=index)[0]
        return {"input_ids": row, "labels": row}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_transformers_own_trainer_resumes_at_the_same_bits(dtype, optim, tmp_path: Path):
    from transformers import Trainer, TrainingArguments

    def run(steps: int, folder: Path, resume: bool = False) -> tuple[dict[str, Tensor], nn.Module]:
        model, attachment = start(dtype)
        arguments = TrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=2, optim=optim,
            learning_rate=1e-3, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=Rows()).train(resume_from_checkpoint=resume)
        return values_of(attachment), model

    whole, _ = run(4, tmp_path / "whole")
    run(2, tmp_path / "cut")
    cut, _ = run(4, tmp_path / "cut", resume=True)
    for name, values in whole.items():
        assert torch.equal(cut[name], values), name
