"""The plan against real models of the same shapes: state to the byte, activations as autograd saves them."""

from __future__ import annotations

import gc
import itertools
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import multiticket as mt
from multiticket.plan.head import naive_head_bytes
from multiticket.plan.memory import RESERVE, ArmPlan, plan
from multiticket.plan.workload import Workload
from multiticket.sparse.gradient import native
from multiticket.sparse.gradient.factored import factors_under_hooks
from multiticket.sparse.hooked import layers as hooked_layers

QWEN2 = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES: dict[str, Any] = {
    "qwen2-tied": hf.Qwen2Config(**QWEN2, **HEADS, tie_word_embeddings=True),
    "qwen2-untied": hf.Qwen2Config(**{**QWEN2, "hidden_size": 32}, **HEADS, tie_word_embeddings=False),
    "llama": hf.LlamaConfig(
        vocab_size=211,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
}
DTYPES = ("float32", "bfloat16")
BATCH, TOKENS, RANK = 3, 20, 5


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    """A folder with a configuration and nothing else, and the configuration."""
    config = SHAPES[request.param]
    config.save_pretrained(tmp_path)
    return str(tmp_path), config


def planned(folder: str, arm: str, dtype: str, **settings: Any) -> ArmPlan:
    settings = {
        "batch": BATCH,
        "tokens": TOKENS,
        "lora_rank": RANK,
        "density": 0.1,
        "device": "cpu",
        **settings,
    }
    return plan(Workload(folder, arms=(arm,), dtype=dtype, **settings)).arms[0]


def real(config: Any, dtype: str) -> Any:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).train()


def with_lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))


def rows(padding: int = 0) -> dict[str, Tensor]:
    ids = torch.arange(BATCH * TOKENS).view(BATCH, TOKENS) % 90 + 1
    attended = torch.ones_like(ids)
    attended[0, :padding] = 0
    return {"input_ids": ids, "attention_mask": attended}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(**rows(), labels=rows()["input_ids"]).loss.backward()
    optimizer.step()


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def moments(optimizer: torch.optim.Optimizer) -> int:
    return size(state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))


def living() -> int:
    """Bytes of all tensors that live in this process; the fake ones of compiled graphs have none."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            with suppress(RuntimeError):  # a compiled graph's tensors have no memory, and no pointer to it
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_a_quantised_base_is_counted_as_its_library_stores_it(tmp_path: Path) -> None:
    """To the byte for LLM.int8; NF4's two levels of scales are rounded up in each layer, to 256 scales."""
    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install)")
    config = hf.Qwen2Config(
        vocab_size=97, hidden_size=128, intermediate_size=256, num_hidden_layers=2, **HEADS
    )
    config.save_pretrained(tmp_path)
    for quantised in ("nf4", "int8"):
        model, stored = real(config, "bfloat16"), 0
        for layer in model.model.modules():
            if isinstance(layer, nn.Linear):
                if quantised == "nf4":
                    weight = bnb.nn.Params4bit(layer.weight.data, quant_type="nf4").to("cpu")
                    parts = [weight.data, weight.quant_state.absmax, weight.quant_state.state2.absmax]
                else:
                    weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False).to("cpu")
                    parts = [weight.data, weight.SCB]
                stored += size(parts) - size([layer.weight])
        dense, small = (planned(str(tmp_path), "ticket", "bfloat16", quantised=q) for q in (None, quantised))
        assert small.weights - dense.weights == pytest.approx(stored, rel=0 if quantised == "int8" else 1e-3)
        assert small.activations - dense.activations == 128 * 256 * 2
        assert (small.values, small.moments, small.positions) == (
            dense.values,
            dense.moments,
            dense.positions,
        )
    full = planned(str(tmp_path), "full", "bfloat16", quantised="nf4")
    assert full.weights == planned(str(tmp_path), "full", "bfloat16").weights


# State, to the byte


@pytest.mark.parametrize(("dtype", "density"), [("float32", 0.1), ("bfloat16", 0.01)])
def test_a_tickets_state_is_exact(shape: tuple[str, Any], dtype: str, density: float) -> None:
    folder, config = shape
    expected = planned(folder, "ticket", dtype, density=density)
    model = real(config, dtype)
    mask = mt.Mask.random(model, density)
    weights, buffers = size(model.parameters()), size(model.buffers())
    model(**rows())  # what the first pass leaves behind for good is not the engine's
    before = living()
    attachment = mt.attach(model, mask)
    optimizer = torch.optim.AdamW(attachment.parameters())
    step(model, optimizer)
    gradients = [values.grad for values in attachment.parameters()]
    grown = living() - before

    values = list(attachment.parameters())
    assert (expected.weights, expected.buffers) == (weights, buffers)
    assert expected.trained == attachment.nnz
    assert expected.values == size(values)
    assert expected.gradients == size(gradients)
    assert expected.moments == moments(optimizer)
    assert expected.positions == size(weight.positions for weight in attachment._weights.values())
    # nothing else is left: what lives on, however the engine calls it, is what was planned
    assert grown == expected.state - expected.weights - expected.buffers


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tickets_state_is_exact_on_the_path_of_accelerators(
    shape: tuple[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the hooks keep what was written last, and a flag, beside what they keep on an accelerator."""
    folder, config = shape
    monkeypatch.setattr(native, "can_gather", lambda positions: False)
    expected = planned(folder, "ticket", dtype, device="cuda")
    model = real(config, dtype)
    mask = mt.Mask.random(model, 0.1)
    model(**rows())
    before = living()
    attachment: Any = mt.attach(model, mask, gradient="hooks")
    optimizer = torch.optim.AdamW(attachment.parameters())
    step(model, optimizer)
    grown = living() - before

    values = list(attachment.parameters())
    groups = attachment._collector.groups
    assert (expected.trained, len(values)) == (attachment.nnz, 2)
    assert (expected.values, expected.moments) == (size(values), moments(optimizer))
    assert expected.positions == size(tensor.positions for tensor in attachment._tensors.values())
    on_a_cpu = size([*(group.written for group in groups), attachment._collector.probe])
    assert grown - on_a_cpu == expected.state - expected.weights - expected.buffers


def test_full_state_is_exact_in_fp32(shape: tuple[str, Any]) -> None:
    folder, config = shape
    expected = planned(folder, "full", "float32")
    model = real(config, "float32")
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    counters = size(state["step"] for state in optimizer.state.values())
    assert expected.values == expected.positions == 0
    assert (expected.weights, expected.buffers) == (size(model.parameters()), size(model.buffers()))
    assert expected.gradients == size(parameter.grad for parameter in model.parameters())
    assert (expected.moments, expected.bookkeeping) == (moments(optimizer), counters)


def test_full_state_in_bf16_is_that_of_fp32_masters(shape: tuple[str, Any]) -> None:
    folder, config = shape
    expected = planned(folder, "full", "bfloat16")
    model = real(config, "bfloat16")
    masters = [nn.Parameter(parameter.detach().float()) for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(masters)
    model(**rows(), labels=rows()["input_ids"]).loss.backward()
    for master, parameter in zip(masters, model.parameters(), strict=True):
        master.grad = parameter.grad.float()
    optimizer.step()
    assert expected.weights == size(model.parameters())
    assert expected.values == size(masters)
    assert expected.gradients == size(master.grad for master in masters)
    assert expected.moments == moments(optimizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert expected.state - expected.buffers - expected.bookkeeping == 18 * parameters


@pytest.mark.parametrize("dtype", DTYPES)
def test_loras_state_is_exact(shape: tuple[str, Any], dtype: str) -> None:
    folder, config = shape
    expected = planned(folder, "lora", dtype)
    model = real(config, dtype)
    weights = size(model.parameters())
    model = with_lora(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    step(model, optimizer)
    counters = size(state["step"] for state in optimizer.state.values())
    assert (expected.weights, expected.buffers) == (weights, size(model.buffers()))
    assert (expected.values, expected.gradients) == (size(trained), size(p.grad for p in trained))
    assert (expected.moments, expected.bookkeeping) == (moments(optimizer), counters)
    assert expected.trained == sum(parameter.numel() for parameter in trained)


def test_the_rank_not_given_trains_as_many_values_as_the_ticket(shape: tuple[str, Any]) -> None:
    folder, _ = shape
    lora = planned(folder, "lora", "float32", lora_rank=None, density=0.3)
    ticket = planned(folder, "ticket", "float32", density=0.3)
    a_rank = lora.trained // lora.lora_rank
    assert abs(lora.trained - ticket.trained) <= a_rank / 2 + 1


@pytest.mark.parametrize(
    ("layers", "width", "inner", "heads"), [(24, 896, 4864, 14), (28, 1536, 8960, 12)], ids=["0.5B", "1.5B"]
)
def test_qwen2_5_at_one_percent_stays_below_2_25_bytes_a_parameter(
    layers: int, width: int, inner: int, heads: int, tmp_path: Path
) -> None:
    hf.Qwen2Config(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    whole = plan(Workload(str(tmp_path), arms=("ticket",), batch=4, tokens=512))
    assert 2 < whole.arms[0].state / whole.parameters <= 2.25


# Activations, as autograd saves them


def saved(model: nn.Module, padding: int = 0, checkpointing: bool = False) -> int:
    """Bytes that a real forward pass saves: each storage once, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in itertools.chain(model.parameters(), model.buffers())}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    factors = nullcontext() if checkpointing else factors_under_hooks()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), factors:
        model(**rows(padding), use_cache=False)
    return sum(t.untyped_storage().nbytes() for pointer, t in seen.items() if pointer not in own)


def real_arm(config: Any, arm: str, dtype: str, density: float, checkpointing: bool) -> Any:
    model = real(config, dtype)
    if arm == "ticket":
        mt.attach(model, mt.Mask.random(model, density))
    if arm == "lora":
        model = with_lora(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if arm == "lora":
            model.enable_input_require_grads()
    return model


ARMS = [("full", 0.1), ("ticket", 0.01), ("ticket", 0.1), ("lora", 0.1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("arm", "density"), ARMS)
def test_activations_are_what_autograd_saves(
    shape: tuple[str, Any], arm: str, density: float, checkpointing: bool, dtype: str
) -> None:
    folder, config = shape
    expected = planned(folder, arm, dtype, density=density, gradient_checkpointing=checkpointing)
    measured = saved(real_arm(config, arm, dtype, density, checkpointing), checkpointing=checkpointing)
    assert expected.activations == pytest.approx(measured, rel=0.01)  # 5 % are promised, equality is seen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("method", "least_kept"), [("random", 1), ("random", 1 << 20), ("columns", 1)])
def test_on_an_accelerator_activations_are_what_layers_under_hooks_save(
    shape: tuple[str, Any],
    method: str,
    least_kept: int,
    checkpointing: bool,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linear layers keep their input, norms all of theirs, the last of a gated block two factors where it is large."""
    monkeypatch.setattr(hooked_layers, "LEAST_KEPT", least_kept)
    folder, config = shape
    rule = mt.MaskRule(method, 0.05, 0, 0, "all")
    model = real(config, dtype)
    attachment = mt.attach(model, mt.Mask.from_rule(model, rule), gradient="hooks")
    found = {*attachment.gradient_methods().values()}
    assert found >= ({"factors", "hook", "vector"} if method == "random" else {"thin"})
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = planned(
        folder,
        "ticket",
        dtype,
        device="cuda",
        gradient_checkpointing=checkpointing,
        make_mask=lambda planned: mt.Mask.from_rule(planned, rule),
    )
    assert expected.activations == pytest.approx(saved(model, checkpointing=checkpointing), rel=0.01)


@pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
@pytest.mark.parametrize(("scope", "kept"), [("all", 0), ("*_proj.weight", 1)])
def test_on_a_cpu_the_norms_outputs_are_not_kept(scope: str, kept: int, tmp_path: Path) -> None:
    """Layers wide enough for the kernel, which multiplies a norm's factors again; a first norm over a frozen embedding
    has none, for nothing of it needs a gradient."""
    config = hf.Qwen2Config(**{**QWEN2, "hidden_size": 128, "intermediate_size": 256}, **HEADS)
    config.save_pretrained(tmp_path)
    model = real(config, "float32")
    mask = mt.Mask.random(model, 0.01, scope=scope)
    attachment = mt.attach(model, mask)
    assert "native" in attachment.gradient_methods().values()
    asked: dict[str, Any] = {
        "density": 0.01,
        "make_mask": lambda planned: mt.Mask.random(planned, 0.01, scope=scope),
    }
    expected = planned(str(tmp_path), "ticket", "float32", **asked)
    assert expected.activations == pytest.approx(saved(model), rel=0.01)
    on_a_gpu = planned(str(tmp_path), "ticket", "float32", **asked, device="cuda")
    norms = (2 * config.num_hidden_layers - kept) * BATCH * TOKENS * config.hidden_size * 4
    assert on_a_gpu.activations > expected.activations + 0.99 * norms
    attachment.detach()
    mt.attach(model, mask, gradient="hooks")
    assert on_a_gpu.activations == pytest.approx(saved(model), rel=0.01)


@pytest.mark.parametrize("arm", ["full", "ticket", "lora"])
def test_padded_rows_save_the_mask_and_repeated_keys(arm: str, tmp_path: Path) -> None:
    config = SHAPES["qwen2-tied"]
    config.save_pretrained(tmp_path)
    model = real_arm(config, arm, "float32", 0.1, False)
    padded = planned(str(tmp_path), arm, "float32", padded=True)
    assert padded.activations == pytest.approx(saved(model, padding=6), rel=0.01)
    assert padded.activations > 1.02 * planned(str(tmp_path), arm, "float32").activations


@pytest.mark.parametrize("arm", ["full", "ticket"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sliding_window_is_masked_as_in_the_real_model(arm: str, dtype: str, tmp_path: Path) -> None:
    config = hf.Gemma3TextConfig(**QWEN2, **HEADS, head_dim=16, sliding_window=6)
    config.save_pretrained(tmp_path)
    expected = planned(str(tmp_path), arm, dtype)
    assert expected.activations == pytest.approx(saved(real_arm(config, arm, dtype, 0.1, False)), rel=0.01)


def test_the_layer_that_is_recomputed_saves_what_it_saves_without_checkpointing(tmp_path: Path) -> None:
    config = SHAPES["qwen2-tied"]
    peaks = []
    for layers in (2, 3):
        hf.Qwen2Config(
            **{**config.to_dict(), "num_hidden_layers": layers, "layer_types": None}
        ).save_pretrained(tmp_path)
        peaks.append(planned(str(tmp_path), "full", "float32", gradient_checkpointing=False).activations)
    expected = planned(str(tmp_path), "full", "float32", gradient_checkpointing=True)
    # one more layer saves one layer's more; the first also saves its input's copies shared with nobody before it
    assert expected.recomputed == pytest.approx(peaks[1] - peaks[0], rel=0.05)


# Logits, cache and sums


def test_the_cache_is_the_one_that_generation_fills(shape: tuple[str, Any]) -> None:
    folder, config = shape
    cache = real(config, "bfloat16")(**rows(), use_cache=True).past_key_values
    filled = size(t for layer in cache.layers for t in (layer.keys, layer.values))
    assert planned(folder, "ticket", "bfloat16", completions=2 * BATCH).cache == 2 * filled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_naive_head_needs_the_logits_four_times(dtype: torch.dtype) -> None:
    """The largest sum of living tensors in the vocabulary's width, while the loss goes forward and back."""
    gc.collect()  # of an earlier test's tensors
    tokens, vocabulary = 64, 501
    logits = torch.randn(tokens, vocabulary, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,))
    peak = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            out = func(*args, **(kwargs or {}))
            wide = [t for t in gc.get_objects() if issubclass(type(t), Tensor) and t.shape == logits.shape]
            peak = max(peak, sum({t.data_ptr(): t.nbytes for t in wide}.values()))
            return out

    with Watch():
        F.cross_entropy(logits.float(), targets).backward()
    assert peak == naive_head_bytes(tokens, vocabulary, dtype.itemsize)


def test_only_a_trained_head_needs_a_gradient_of_its_width(tmp_path: Path) -> None:
    config = SHAPES["qwen2-tied"]
    config.save_pretrained(tmp_path)
    arms = {arm.arm: arm for arm in plan(Workload(str(tmp_path), density=0.1, tokens=TOKENS)).arms}
    gradient = config.vocab_size * config.hidden_size * 4
    assert arms["full"].logits_fused - arms["lora"].logits_fused == gradient
    assert arms["ticket"].logits_naive == arms["lora"].logits_naive


def test_peaks_and_what_fits() -> None:
    sizes = {"weights": 100, "buffers": 1, "values": 2, "gradients": 4, "moments": 8, "positions": 16}
    arm = ArmPlan(
        arm="ticket",
        trained=1,
        lora_rank=None,
        **sizes,
        bookkeeping=32,
        activations=1000,
        recomputed=500,
        logits_fused=300,
        logits_naive=10_000,
        cache=1_400,
    )
    assert arm.state == 163
    assert arm.training == 163 + 1000 + 500
    assert arm.generation == 163 - 4 + 1_400
    assert arm.fits(RESERVE + arm.training)
    assert not arm.fits(RESERVE + arm.training - 1)


def test_twice_the_batch_takes_twice_the_activations(shape: tuple[str, Any]) -> None:
    folder, _ = shape
    once, twice = (planned(folder, "ticket", "bfloat16", batch=n).activations for n in (2, 4))
    assert twice == pytest.approx(2 * once, rel=0.02)  # position embeddings are shared by the rows


# Mistakes


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"arms": ("full", "half")}, "full, ticket, lora"),
        ({"arms": ()}, "full, ticket, lora"),
        ({"density": 0.0}, "density must be above 0"),
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"completions": -1}, "completions must be at least 1"),
        ({"lora_rank": 0}, "lora-rank must be at least 1"),
        ({"quantised": "int3"}, "no format 'int3'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    SHAPES["llama"].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        plan(Workload(str(tmp_path), **settings))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        plan(Workload(str(tmp_path)))


def test_a_model_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    hf.ViTConfig(hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a causal language model"):
        plan(Workload(str(tmp_path)))


def test_lora_that_peft_refuses_is_told(tmp_path: Path) -> None:
    hf.MambaConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=3
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"PEFT refuses LoRA.*use another arm than lora"):
        planned(str(tmp_path), "lora", "float32")
