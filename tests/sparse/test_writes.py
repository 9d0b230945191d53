"""What others write into masked weights is taken into the values, or refused in words; it is never lost in silence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from toy_models import build, tokens

import multiticket as mt

pytestmark = pytest.mark.usefixtures("path")

UP, HEAD, NORM = "model.layers.0.mlp.up_proj", "lm_head", "model.norm"


def loss_of(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    ids = tokens() if ids is None else ids
    logits = model(input_ids=ids).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def attached(family: str = "llama", density: float = 0.2) -> tuple[nn.Module, mt.Attachment]:
    model = build(family)
    return model, mt.attach(model, mt.Mask.random(model, density))


def content(model: nn.Module, layer: str) -> Tensor:
    return model.get_submodule(layer)._parameters["weight"].detach()


def by_data(layer: nn.Module, new: Tensor) -> None:
    layer.weight.data = new


def by_data_in_place(layer: nn.Module, new: Tensor) -> None:
    layer.weight.data.copy_(new)


def by_copy(layer: nn.Module, new: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(new)


def by_detached_copy(layer: nn.Module, new: Tensor) -> None:
    layer.weight.detach().copy_(new)


def by_init(layer: nn.Module, new: Tensor) -> None:
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight += new


def by_data_under_no_grad(layer: nn.Module, new: Tensor) -> None:
    with torch.no_grad():
        layer.weight.data = new


def by_parameter(layer: nn.Module, new: Tensor) -> None:
    layer._parameters["weight"].data.copy_(new)


WAYS = [by_data, by_data_in_place, by_copy, by_detached_copy, by_init, by_data_under_no_grad, by_parameter]


@pytest.mark.parametrize("layer", [UP, HEAD, NORM])
@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("when", ["before a forward pass", "before a step"])
def test_a_write_is_where_training_goes_on_from(write: Callable, layer: str, when: str):
    model, attachment = attached(density=0.3)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()
    new = torch.randn_like(content(model, layer))
    if when == "before a step":
        loss_of(model).backward()
    write(model.get_submodule(layer), new.clone())
    assert torch.equal(content(model, layer), new)
    name = layer + ".weight"
    places = attachment.mask.indices(name)
    if when == "before a forward pass":
        loss_of(model).backward()
    gradient = dict(attachment.named_parameters())[name].grad.clone()
    optimizer.step()
    wanted = new.clone()
    wanted.view(-1)[places] -= 0.1 * gradient
    torch.testing.assert_close(content(model, layer), wanted)
    torch.testing.assert_close(attachment.state_dict()["values"][name], wanted.take(places))


@pytest.mark.parametrize("write", WAYS)
def test_a_write_is_in_the_ticket_and_survives_a_look_at_the_base(write: Callable):
    model, attachment = attached()
    before = content(model, UP).clone()
    places = attachment.mask.indices(UP + ".weight")
    new = before.clone()
    new.view(-1)[places] += 1
    write(model.get_submodule(UP), new.clone())
    with attachment.disabled():
        assert torch.equal(content(model, UP), before)
    assert torch.equal(content(model, UP), new)
    ticket = attachment.ticket()
    attachment.detach(keep=False)
    with ticket.applied(model):
        assert torch.equal(content(model, UP), new)
    assert torch.equal(content(model, UP), before)


def test_of_values_and_weight_both_changed_the_values_count():
    model, attachment = attached()
    name, places = UP + ".weight", attachment.mask.indices(UP + ".weight")
    state = attachment.state_dict()
    by_copy(model.get_submodule(UP), torch.zeros(24, 16))
    attachment.load_state_dict(state)
    assert torch.equal(content(model, UP).take(places), state["values"][name])
    by_copy(model.get_submodule(UP), torch.zeros(24, 16))
    with torch.no_grad():
        for values in attachment.parameters():
            values.add_(1)
    model(input_ids=tokens())
    assert torch.equal(content(model, UP).take(places), state["values"][name] + 1)


def test_low_bits_that_rounding_hides_stay_where_nobody_wrote():
    model = build("llama", torch.bfloat16)
    attachment = mt.attach(model, mt.Mask.random(model, 0.3))
    name, places = UP + ".weight", attachment.mask.indices(UP + ".weight")
    with torch.no_grad():
        for values in attachment.parameters():
            values.mul_(1 + 1e-5)
    loss_of(model)
    values = attachment.state_dict()["values"][name].clone()
    row = model.get_submodule(UP).weight.data
    row.view(-1)[places[0]] = 3.0
    after = attachment.state_dict()["values"][name]
    assert after[0] == 3.0
    assert torch.equal(after[1:], values[1:])


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("trained", ["first", "both"])
def test_an_adapter_is_merged_into_an_attached_model(safe, trained):
    peft = pytest.importorskip("peft")
    model, attachment = attached("qwen2")
    if trained == "both":
        loss_of(model).backward()
        torch.optim.SGD(attachment.parameters(), lr=0.5).step()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with_adapter = peft.get_peft_model(model, config).eval()
    for values in attachment.parameters():
        values.requires_grad_(True)
    wanted = with_adapter(input_ids=tokens()).logits.detach()
    merged = with_adapter.merge_and_unload(safe_merge=safe)
    torch.testing.assert_close(merged(input_ids=tokens()).logits, wanted)
    loss_of(merged).backward()
    torch.optim.SGD(attachment.parameters(), lr=0.0).step()
    torch.testing.assert_close(merged(input_ids=tokens()).logits, wanted)
    loss_of(merged).backward()
    torch.optim.SGD(attachment.parameters(), lr=0.5).step()
    assert not torch.allclose(merged(input_ids=tokens()).logits, wanted)


def test_frozen_values_are_told_once():
    peft = pytest.importorskip("peft")
    model, _ = attached("qwen2")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match="do not train"):
        loss_of(model).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loss_of(model).backward()
        with torch.no_grad():
            model(input_ids=tokens())


def gemma3n() -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 48,
        "head_dim": 8,
        "laurel_rank": 4,
    }
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "vocab_size": 61}
    config = hf.Gemma3nTextConfig(
        **sizes,
        **special,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size_per_layer_input=61,
        hidden_size_per_layer_input=8,
        altup_num_inputs=2,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0],
        layer_types=["full_attention"],
        altup_coef_clip=0.01,
    )
    return hf.Gemma3nForCausalLM(config).train()


def test_a_model_that_clamps_its_weights_in_its_forward():
    model = gemma3n()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    dense = copy.deepcopy(model)
    attachment = mt.attach(model, mt.Mask.random(model, 0.5))
    for each in (model, dense):
        loss_of(each, tokens(length=5)).backward()
    clamped = {name for name, p in dense.named_parameters() if not torch.equal(p, base[name])}
    assert clamped
    torch.optim.SGD(attachment.parameters(), lr=0.0).step()
    for name, values in attachment.named_parameters():
        parameter = dict(dense.named_parameters())[name]
        torch.testing.assert_close(values.detach(), parameter.detach().take(attachment.mask.indices(name)))
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = torch.zeros_like(values) if values.grad is None else values.grad
        torch.testing.assert_close(found, wanted.take(attachment.mask.indices(name)), rtol=1e-4, atol=1e-6)
    attachment.detach(keep=False)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, base[name]), name


class Keeper(nn.Module):
    """Keeps its weights beside its parameters, in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.u, self.b = (nn.Parameter(torch.randn(3, 3)) for _ in range(4))
        self.norm = nn.Parameter(torch.randn(3))
        self.layer, shared = nn.Linear(3, 3), nn.Linear(3, 3)
        shared.weight = self.layer.weight
        self.held, self.pair, self.named = [self.w], (1, [self.v]), {"u": self.u, "norm": self.norm}
        self.__dict__["direct"] = self.b
        self.past_registration = [shared]

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x @ self.held[0] @ self.pair[1][0]) @ self.named["u"] * self.named["norm"]
        return self.past_registration[0](F.linear(x, self.direct))


def test_weights_that_a_module_keeps_in_containers():
    torch.manual_seed(0)
    model, x = Keeper(), torch.randn(4, 3)
    dense = copy.deepcopy(model)
    dense(x).square().mean().backward()
    held = model.held, model.pair, model.named, model.direct
    attachment = mt.attach(model, mt.Mask.random(model, 0.7))
    for _ in range(2):
        for values in attachment.parameters():
            values.grad = None
        model(x).square().mean().backward()
        for name, values in attachment.named_parameters():
            wanted = dict(dense.named_parameters())[name].grad
            torch.testing.assert_close(values.grad, wanted.take(attachment.mask.indices(name)), msg=name)
    torch.optim.SGD(attachment.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert torch.equal(model.held[0] @ x.T, model.w @ x.T)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))
    attachment.detach()
    assert (model.held, model.pair, model.named, model.direct) == held
    assert model.held[0] is model.w
    assert model.direct is model.b
    model(x).sum().backward()
    assert model.w.grad is not None


def resized(model: nn.Module) -> None:
    model.resize_token_embeddings(70)


def replaced_block(model: nn.Module) -> None:
    model.model.layers[1].mlp = copy.deepcopy(model.model.layers[0].mlp)


def tied(model: nn.Module) -> None:
    with torch.no_grad():
        model.lm_head.weight = model.model.embed_tokens.weight


def tied_where_gradients_are_recorded(model: nn.Module) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def tied_by_its_own_method(model: nn.Module) -> None:
    model.config.tie_word_embeddings = True
    model.tie_weights()


def reshaped(model: nn.Module) -> None:
    model.lm_head.weight = nn.Parameter(torch.randn(70, 16))


def reshaped_data(model: nn.Module) -> None:
    model.lm_head.weight.data = torch.randn(70, 16)


def cut_short(model: nn.Module) -> None:
    weight = model.lm_head._parameters["weight"]
    weight.data = weight.data[:-8]  # where it was, and smaller


def weight_norm(model: nn.Module) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)


def old_weight_norm(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(model.lm_head)


def pruned(model: nn.Module) -> None:
    prune.random_unstructured(model.lm_head, "weight", 0.5)


def pruned_for_good(model: nn.Module) -> None:
    prune.l1_unstructured(model.lm_head, "weight", 0.5)
    prune.remove(model.lm_head, "weight")


def spectral(model: nn.Module) -> None:
    torch.nn.utils.parametrizations.spectral_norm(model.model.layers[0].mlp.up_proj)


def orthogonal(model: nn.Module) -> None:
    torch.nn.utils.parametrizations.orthogonal(model.model.layers[0].self_attn.q_proj)


SURGERY = [
    *(
        resized,
        replaced_block,
        tied,
        tied_where_gradients_are_recorded,
        tied_by_its_own_method,
        reshaped,
        reshaped_data,
        cut_short,
    ),
    *(weight_norm, old_weight_norm, pruned, pruned_for_good, spectral, orthogonal),
]


@pytest.mark.parametrize("operation", SURGERY)
def test_surgery_on_an_attached_model_is_refused_in_words(operation: Callable):
    model, _ = attached()
    words = "detach before changing a model|was replaced by another"

    def operate_and_train() -> None:
        operation(model)
        loss_of(model).backward()

    with pytest.raises(RuntimeError, match=words):
        operate_and_train()


@pytest.mark.parametrize(
    "operation",
    [weight_norm, pruned, pruned_for_good, spectral, orthogonal, tied_where_gradients_are_recorded],
)
def test_a_model_trains_on_after_what_was_refused(operation: Callable):
    (model, attachment), (twin, other) = attached(), attached()
    with pytest.raises(RuntimeError, match="has an attachment, and cannot become"):
        operation(model)
    for one, its in ((model, attachment), (twin, other)):
        loss_of(one).backward()
        torch.optim.SGD(its.parameters(), lr=0.1).step()
    for (name, mine), (_, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    attachment.detach()
    assert isinstance(model.lm_head.weight, nn.Parameter)


def test_wrapping_modules_is_no_surgery():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model, attachment = attached()
    loss_of(model).backward()
    wanted = {name: values.grad.clone() for name, values in attachment.named_parameters()}
    model.model.layers[0] = checkpoint_wrapper(model.model.layers[0])
    for values in attachment.parameters():
        values.grad = None
    for _, values in attachment.named_parameters():
        values.grad = None
    loss_of(model).backward()
    for name, values in attachment.named_parameters():
        torch.testing.assert_close(values.grad, wanted[name])


def test_a_parameter_of_the_same_shape_put_in_its_place():
    """The direct path takes its content; with hooks it is refused, as the alias still looks at the old one."""
    model, attachment = attached()
    new = torch.randn(61, 16)
    model.lm_head.weight = nn.Parameter(new.clone())
    if attachment.path == "hooks":
        with pytest.raises(RuntimeError, match="replaced by another"):
            loss_of(model)
        return
    loss_of(model).backward()
    torch.optim.SGD(attachment.parameters(), lr=0.0).step()
    assert torch.equal(content(model, HEAD), new)
    name = HEAD + ".weight"
    assert torch.equal(attachment.state_dict()["values"][name], new.take(attachment.mask.indices(name)))
