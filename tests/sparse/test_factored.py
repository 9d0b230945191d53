"""The product that feeds a masked layer is not kept beside its factors; gradients keep their bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import multiticket as mt
from multiticket.sparse.gradient import factored, native

TOKENS, WIDTH, INNER = 12, 8, 24


class Norm(nn.Module):
    """As transformers' RMS norms are written."""

    def __init__(self, weight_first: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.weight_first = weight_first

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(dtype) if self.weight_first else x.to(dtype) * self.weight


class Normed(nn.Module):
    """Two layers that read a norm's output, as an attention's do."""

    def __init__(self, weight_first: bool = True) -> None:
        super().__init__()
        self.norm = Norm(weight_first)
        self.a, self.b = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x + 1)
        return self.a(normed) * self.b(normed)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def attached() -> tuple[Gated, mt.Attachment]:
    torch.manual_seed(0)
    model = Gated()
    return model, mt.attach(model, mt.Mask.random(model, 0.5))


def gradients(run) -> dict[str, Tensor]:
    model, attachment = attached()
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    run(model, x).square().sum().backward()
    return {name: values.grad for name, values in attachment.named_parameters()} | {"input": x.grad}


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that were found to be products."""
    found = []
    ask = factored.factors

    def noted(x, scaled=False, compare=None):
        parts = ask(x, scaled, compare)
        if parts is not None:
            found.append(tuple(x.shape))
        return parts

    monkeypatch.setattr("multiticket.sparse.direct.layers.factors", noted)
    return found


def test_multiplied_again_it_gives_the_same_bits(products, monkeypatch):
    with_factors = gradients(lambda model, x: model(x))
    assert products == [(TOKENS, INNER)]
    monkeypatch.setattr(
        "multiticket.sparse.direct.layers.factors", lambda x, scaled=False, compare=None: None
    )
    kept = gradients(lambda model, x: model(x))
    assert all(torch.equal(with_factors[name], kept[name]) for name in kept)


def test_the_factors_are_kept_and_not_the_product():
    model, _ = attached()
    x = torch.randn(TOKENS, WIDTH).requires_grad_()
    product = F.silu(model.gate(x)) * model.up(x)
    kept = [t for t in model.down(product).grad_fn.saved_tensors if t.shape == product.shape]
    assert len(kept) == 2
    assert all(t.data_ptr() != product.data_ptr() for t in kept)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_nothing_is_set_off_and_the_bits_are_the_same(reentrant, products):
    plain = gradients(lambda model, x: model(x))
    again = gradients(lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert len(products) == (2 if reentrant else 1)  # reentrant ones compute again without hooks


def test_offloaded_tensors_are_not_asked_for(products):
    with torch.autograd.graph.save_on_cpu():
        gradients(lambda model, x: model(x))
    assert products == []


def test_a_scaled_or_changed_input_is_kept_as_it_is():
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    scale = torch.randn(WIDTH, requires_grad=True)
    assert factored.factors(x * scale) is None
    assert factored.factors(x * scale, scaled=True) is None  # what it scales was not kept
    assert factored.factors(x * 2) is None
    assert factored.factors(x + 1) is None
    assert factored.factors(x) is None
    with torch.no_grad():
        assert factored.factors(x * x) is None
    assert factored.factors(x * x) is not None


needs_compiler = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
SCOPES = {"masked norm": "all", "frozen norm": "*.a.weight,*.b.weight,a.weight,b.weight"}


def normed(scope: str = "all", weight_first: bool = True, **attach) -> tuple[Normed, mt.Attachment]:
    torch.manual_seed(0)
    model = Normed(weight_first)
    return model, mt.attach(model, mt.Mask.random(model, 0.5, scope=scope), **attach)


def normed_gradients(run, *how) -> dict[str, Tensor]:
    model, attachment = normed(*how, gradient="native")
    x = torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    run(model, x).square().sum().backward()
    return {name: values.grad for name, values in attachment.named_parameters()} | {"input": x.grad}


@needs_compiler
@pytest.mark.parametrize("weight_first", [True, False])
@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_a_norms_output_is_made_again_with_the_same_bits(scope, weight_first, products, monkeypatch):
    made_again = normed_gradients(lambda model, x: model(x), scope, weight_first)
    assert products == [(3, TOKENS, WIDTH)] * 2
    monkeypatch.setattr(
        "multiticket.sparse.direct.layers.factors", lambda x, scaled=False, compare=None: None
    )
    kept = normed_gradients(lambda model, x: model(x), scope, weight_first)
    assert all(torch.equal(made_again[name], kept[name]) for name in kept)


@needs_compiler
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_norm_gives_the_same_bits(reentrant):
    plain = normed_gradients(lambda model, x: model(x))
    again = normed_gradients(lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@needs_compiler
def test_a_norms_output_is_not_kept():
    model, _ = normed(gradient="native")
    x = torch.randn(TOKENS, WIDTH).requires_grad_()
    out = model.norm(x + 1)
    kept = model.a(out).grad_fn.saved_tensors
    assert all(t.data_ptr() != out.data_ptr() for t in kept)
    whole = [t for t in kept if t.shape == out.shape]
    assert [t.data_ptr() for t in whole] == [out.grad_fn.next_functions[0][0]._saved_self.data_ptr()]


@needs_compiler
def test_a_norm_is_kept_where_its_factors_do_not_give_its_bits_or_its_readers_would_multiply(products):
    model, _ = normed(gradient="native")
    model.bfloat16()
    model(torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16))  # rounded between the products
    model, _ = normed(gradient="native")
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(TOKENS, WIDTH).requires_grad_())  # rounded after them
    model, _ = normed(gradient="sampled")
    model(torch.randn(TOKENS, WIDTH).requires_grad_())
    model, _ = normed(gradient="native")
    out = model.norm(torch.randn(TOKENS, WIDTH).requires_grad_() + 1)
    model.a(out[:, :]), model.a(out.mul_(2))
    assert products == []


def steered(how: str, product: Tensor) -> None:
    """Write to a product past autograd, as clamping, steering and patching of activations do."""
    if how == "no_grad":
        with torch.no_grad():
            product[:, 0] = 5.0
    elif how == "data":
        product.data[-1, -1] = 5.0
    elif how == "detach":
        product.detach().clamp_(-0.01, 0.01)
    elif how == "numpy":
        product.detach().view(torch.uint8).numpy()[3, :8] = 0x41
    elif how == "alias":
        torch.utils.dlpack.from_dlpack(product.detach()).view(-1)[7] = 5.0


WAYS = ["not at all", "no_grad", "data", "detach", "numpy", "alias"]


class Steered(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.how = Norm(), how
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.gate(x)) * self.up(x)
        steered(self.how, h)
        h = self.norm(x + self.down(h))
        steered(self.how, h)
        return self.up(h)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("gradient", ["native", "sampled", "blocks", "hooks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_or_norm_written_to_past_autograd_gives_the_dense_gradient(how, gradient, dtype):
    if gradient == "native" and native.library() is None:
        pytest.skip("needs a C compiler")
    dense, model = Steered(how).to(dtype), Steered(how).to(dtype)
    attachment = mt.attach(model, mt.Mask.random(model, 0.5), gradient=gradient)
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    for each in (dense, model):
        each(x.clone().requires_grad_()).float().square().mean().backward()
    for name, values in attachment.named_parameters():
        wanted = dense.get_parameter(name).grad.float().take(attachment.mask.indices(name))
        close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(values.grad, wanted, msg=name, **close)


@pytest.mark.parametrize("how", WAYS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_factors_are_taken_only_of_what_still_is_their_product(how, dtype):
    torch.manual_seed(0)
    a, b = (torch.randn(40, 17, dtype=dtype, requires_grad=True) for _ in range(2))
    product = a.sin() * b.sin()
    assert factored.factors(product) is not None
    steered(how, product)
    assert factored.factors(product) is None
    turned = a.T.sin() * b.T.sin()
    assert factored.factors(turned) is not None
    turned.data[0, 0] += 1
    assert factored.factors(turned) is None


@needs_compiler
@pytest.mark.parametrize("dtype", native.DTYPES)
def test_the_compiled_comparison_rounds_as_torch_does(dtype):
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2, 300, 1000), dtype=torch.int64).to(torch.int32)
    a, b = (bits if dtype == torch.float32 else bits.to(torch.int16)).view(dtype)[..., :300]
    a, b = (torch.where(part.isfinite(), part, 1.0).to(dtype).contiguous() for part in (a, b))
    product = a * b
    product = torch.where(product.isnan(), 0.0, product)
    fine = ~(a * b).isnan()
    assert fine.all()
    assert native.is_product(product, (a, b))
    for place in [(0, 0), (299, 299), (150, 7)]:
        wrong = product.clone()
        wrong[place] = 1.0 if wrong[place] != 1 else 2.0
        assert not native.is_product(wrong, (a, b))
    wrong = product.clone()
    wrong[5, 5] = torch.nan
    assert not native.is_product(wrong, (a, b))


def test_where_a_comparison_waits_for_the_device_it_is_made_until_it_has_held(monkeypatch):
    asked, found = [], [None, (torch.ones(1),), (torch.ones(1),)]

    def ask(x, compare):
        asked.append(compare)
        return found[len(asked) - 1]

    monkeypatch.setattr("multiticket.sparse.hooked.plan.factors", ask)
    model, _ = attached()
    attachment = mt.attach(Gated(), mt.Mask.random(model, 0.5), gradient="hooks")
    plan = attachment._records[attachment.model.down].linear
    plan.narrowing = True
    for _ in range(3):
        plan.factors_of(torch.empty(2, INNER, device="meta"))
    assert asked == [True, True, False]
