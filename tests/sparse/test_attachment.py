"""What attach, disabled, saving, loading, moving and detach do to a model."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from toy_models import FAMILIES, build, qwen2, tokens
from transformers import AutoModelForCausalLM

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not n.endswith("__values")}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def move(attachment: mt.Attachment, by: float = 0.5) -> None:
    with torch.no_grad():
        for values in attachment.parameters():
            values.add_(by)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_detach_gives_the_base_back_bit_for_bit_or_keeps_what_was_trained(family, dtype):
    model = build(family, dtype)
    base = weights_of(model)
    attachment = mt.attach(model, mt.Mask.random(model, 0.1))
    move(attachment)
    attachment.detach(keep=False)
    assert_same(weights_of(model), base)

    attachment = mt.attach(model, mt.Mask.random(model, 0.1))
    move(attachment)
    values = {name: value.detach().clone() for name, value in attachment.named_parameters()}
    attachment.detach()
    trained = weights_of(model)
    for name in base:
        flat, mask = trained[name].flatten(), attachment.mask
        wanted = base[name].flatten().clone()
        if name in values:
            wanted[mask.indices(name)] = values[name].to(dtype)
        assert torch.equal(flat, wanted)
    with pytest.raises(ValueError, match="was detached"):
        attachment.flush()


def test_requires_grad_comes_back_as_it_was():
    model = build("qwen2")
    model.model.norm.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    mt.attach(model, mt.Mask.random(model, 0.1)).detach()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("family", FAMILIES)
def test_save_pretrained_writes_a_plain_checkpoint(family, tmp_path):
    model = build(family)
    ids = tokens()
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2, fused=True)
    model(input_ids=ids).logits.square().mean().backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loaded_weights, trained = weights_of(loaded), weights_of(model)
    assert_same(loaded_weights, trained)
    model.eval()
    assert torch.equal(loaded.eval()(input_ids=ids).logits, model(input_ids=ids).logits)
    attachment.detach()
    assert "_keys_to_ignore_on_save" not in vars(model) or not model._keys_to_ignore_on_save


def test_disabled_shows_the_base_and_records_no_gradient():
    model = build("qwen2").eval()
    ids = tokens()
    base = model(input_ids=ids).logits.detach()
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    move(attachment)
    trained = model(input_ids=ids).logits
    assert not torch.equal(trained, base)
    with attachment.disabled():
        reference = model(input_ids=ids).logits
        with attachment.disabled():
            assert torch.equal(model.lm_head.weight.detach(), model.model.embed_tokens.weight.detach())
        assert torch.equal(model(input_ids=ids).logits, base)
    assert torch.equal(reference, base)
    assert not reference.requires_grad
    trained.sum().backward()  # the graph made before is still whole
    assert torch.equal(model(input_ids=ids).logits, trained)


def test_disabled_restores_after_an_error():
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    move(attachment)
    attachment.flush()
    trained = weights_of(model)
    with pytest.raises(KeyError), attachment.disabled():
        raise KeyError
    assert_same(weights_of(model), trained)


def test_values_stay_fp32_when_the_model_is_cast():
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    move(attachment, 1e-4)
    values = {name: value.detach().clone() for name, value in attachment.named_parameters()}
    model.bfloat16()
    ids = tokens()
    model(input_ids=ids).logits.float().mean().backward()
    for name, value in attachment.named_parameters():
        assert value.dtype == value.grad.dtype == torch.float32
        assert torch.equal(value.detach(), values[name])
        dense = dict(model.named_parameters())[name]
        assert dense.dtype == torch.bfloat16
        assert torch.equal(dense.flatten()[attachment.mask.indices(name)], values[name].bfloat16())
    model.half()
    assert all(value.grad.dtype == torch.float32 for value in attachment.parameters())
    model.float()
    model(input_ids=ids)
    name = attachment.mask.names[0]
    restored = dict(model.named_parameters())[name].flatten()[attachment.mask.indices(name)]
    assert torch.equal(restored, values[name])


def test_a_copied_model_is_independent_and_whole():
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    ids = tokens()
    twin = copy.deepcopy(model)
    before = model(input_ids=ids).logits.detach()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.endswith("__values"):
                parameter.add_(0.5)
    assert not torch.equal(twin(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(twin.lm_head.weight, twin.model.embed_tokens.weight)
    assert attachment.nnz == sum(p.numel() for p in twin.parameters() if p.requires_grad)


def test_state_dict_resumes_and_refuses_another_mask_or_base():
    model = build("llama")
    mask = mt.Mask.random(model, 0.1, seed=1)
    attachment = mt.attach(model, mask)
    move(attachment, 1e-3)
    state = attachment.state_dict()
    trained = weights_of(model)

    again = build("llama")
    fresh = mt.attach(again, mt.Mask.random(again, 0.1, seed=1))
    fresh.load_state_dict(state)
    attachment.flush()
    trained = weights_of(model)
    assert_same(weights_of(again), trained)

    other_mask = build("llama")
    with pytest.raises(ValueError, match="mask"):
        mt.attach(other_mask, mt.Mask.random(other_mask, 0.1, seed=2)).load_state_dict(state)
    other_base = build("llama")
    with torch.no_grad():
        other_base.lm_head.weight.add_(1.0)
    before = weights_of(other_base)
    refusing = mt.attach(other_base, mt.Mask.random(other_base, 0.1, seed=1))
    with pytest.raises(ValueError, match="another base"):
        refusing.load_state_dict(state)
    refusing.flush()
    assert_same(weights_of(other_base), before)


def test_torch_state_dict_round_trip_and_a_plain_checkpoint_into_an_attached_model():
    model = build("qwen2")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    move(attachment)
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = weights_of(model)
    model.load_state_dict(base, strict=False)
    for name, values in attachment.named_parameters():
        assert torch.equal(values.detach(), base[name].flatten()[attachment.mask.indices(name)])
    model.load_state_dict(saved)
    assert_same(weights_of(model), trained)


def test_ties_can_be_seen_and_made_again():
    """accelerate compares the two weights by ``is``, and calls ``tie_weights``."""
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    head, table = model.lm_head.weight, model.model.embed_tokens.weight
    assert head is table
    head.sum().backward()
    head.sum().backward()  # one view serves every reader, and more than one backward pass
    name = "model.embed_tokens.weight"
    assert torch.equal(dict(attachment.named_parameters())[name].grad.unique(), torch.tensor([2.0]))
    model.lm_head._parameters["weight"] = nn.Parameter(head.detach().clone(), requires_grad=False)
    model.tie_weights()
    assert model.lm_head._parameters["weight"] is model.model.embed_tokens._parameters["weight"]
    classes = type(model), type(build("qwen2"))
    attachment.detach()
    assert type(model) is classes[1] is not classes[0]


def test_a_model_survives_the_meta_device():
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    move(attachment)
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = weights_of(model)
    model.to("meta")
    assert model.lm_head.weight.is_meta
    model.load_state_dict(saved, assign=True)
    model.tie_weights()
    assert_same(weights_of(model), trained)
    move(attachment)
    name = attachment.mask.names[0]
    moved = dict(attachment.named_parameters())[name]
    assert torch.equal(model.state_dict()[name].flatten()[attachment.mask.indices(name)], moved.detach())


@pytest.mark.parametrize("where", ["meta", torch.float64])
def test_a_model_that_is_moved_leaves_no_weight_behind(where):
    model = build("qwen2")
    attachment = mt.attach(model, mt.Mask.random(model, 0.2))
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    for _ in range(2):
        model(tokens()).logits.logsumexp(-1).sum().backward()
        optimizer.step()
    weights = [weight for name, weight in model.named_parameters() if name in attachment.mask.names]
    memory = [StorageWeakRef(weight.untyped_storage()) for weight in weights]
    del weights
    model.to(where)
    gc.collect()
    assert len(memory) > 10
    assert all(storage.expired() for storage in memory)


def test_the_mask_of_a_wrapped_model_fits_the_model():
    model = build("qwen2")
    plain = mt.Mask.random(model, 0.1)
    wrapped = mt.Mask.random(nn.ModuleDict({"module": model}), 0.1)
    assert plain.names == wrapped.names
    assert all(torch.equal(plain.indices(n), wrapped.indices(n)) for n in plain.names)


def test_what_cannot_work_is_refused_in_words():
    model = build("qwen2")
    mask = mt.Mask.random(model, 0.1)
    attachment = mt.attach(model, mask)
    with pytest.raises(ValueError, match="attachment already"):
        mt.attach(model, mask)
    attachment.detach()
    with pytest.raises(ValueError, match="lacks"):
        mt.attach(build("gpt2"), mask)
    with pytest.raises(ValueError, match="has shape"):
        mt.attach(nn.Linear(3, 4), mt.Mask.random(nn.Linear(30, 40), 0.5))
    with torch.device("meta"):
        empty = qwen2()
    with pytest.raises(ValueError, match="meta device"):
        mt.attach(empty, mt.Mask.random(empty, 0.1))
    assert all(parameter.requires_grad for parameter in empty.parameters())
    model.is_quantized = True
    with pytest.raises(ValueError, match="quantised"):
        mt.attach(model, mask)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_says_what_it_is():
    model = qwen2()
    attachment = mt.attach(model, mt.Mask.random(model, 0.1, seed=3))
    numel = attachment.mask.numel
    assert repr(attachment) == (
        f"Attachment(Qwen2ForCausalLM, {attachment.nnz:,} of {numel:,} values ({100 * attachment.nnz / numel:.3g} %), "
        f"method='random', seed=3, path={attachment.path!r})"
    )
