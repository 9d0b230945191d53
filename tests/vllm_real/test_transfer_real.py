"""Syncs of k values into a real engine: bit-equal to vLLM's own ways, cut and repeated, refused where they must be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from real_tickets import BASE
from transformers import PreTrainedModel

from multiticket import bases
from multiticket.mask import Mask, fingerprint


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return bases.load(BASE, torch.float32)[0]


@pytest.fixture(scope="module")
def llm() -> Iterator[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        yield LLM(
            model=bases.resolve(BASE),
            dtype="float32",
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=16,
            weight_transfer_config=WeightTransferConfig(backend="multiticket"),
        )


@pytest.fixture
def mask(model: PreTrainedModel) -> Mask:
    return Mask.random(model, 0.01, seed=5)


def values(model: PreTrainedModel, mask: Mask) -> dict[str, torch.Tensor]:
    return {name: model.get_parameter(name).detach().view(-1)[mask.indices(name)] for name in mask.names}


def checksums(llm) -> dict[str, str]:  # type: ignore[no-untyped-def]
    return llm.collective_rpc("compute_weight_checksums")[0]


def sync_of(llm, model: PreTrainedModel, mask: Mask, **more):  # type: ignore[no-untyped-def]
    from multiticket.integrations.vllm.clients import LocalEngine
    from multiticket.integrations.vllm.sync import TicketSync

    base = values(model, mask)
    return TicketSync(LocalEngine(llm), mask, fingerprint(mask, base.__getitem__), **more)


def moved(base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()}


def test_k_values_sparse_patches_and_a_dense_load_give_the_same_bits(
    llm, model: PreTrainedModel, mask: Mask
) -> None:  # type: ignore[no-untyped-def]
    from vllm.model_executor.model_loader.checkpoint_weight_patch import (
        CheckpointWeightPatch,
        load_checkpoint_weight_patches,
    )

    inside = llm.apply_model(lambda model: model)[0]
    before = checksums(llm)
    sync = sync_of(llm, model, mask, piece_bytes=8000)
    assert checksums(llm) == before
    base = values(model, mask)
    new = moved(base)
    flat = torch.cat(list(new.values()))
    back = torch.cat(list(base.values()))
    sync.send(flat)
    by_values = checksums(llm)
    assert by_values != before
    sync.send(back)
    assert checksums(llm) == before
    load_checkpoint_weight_patches(
        inside,
        [
            CheckpointWeightPatch(name, mask.shape(name), torch.float32, new[name], mask.indices(name))
            for name in mask.names
        ],
    )
    assert checksums(llm) == by_values
    sync.send(back)
    dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, value in new.items():
        dense[name].view(-1)[mask.indices(name)] = value
    inside.load_weights(dense.items())
    assert checksums(llm) == by_values
    sync.send(back)
    assert checksums(llm) == before


def test_a_cut_sync_says_so_writes_nothing_and_is_repeated(llm, model: PreTrainedModel, mask: Mask) -> None:  # type: ignore[no-untyped-def]
    before = checksums(llm)
    sync = sync_of(llm, model, mask, piece_bytes=8000)
    flat = torch.cat(list(moved(values(model, mask)).values()))
    pieces = list(sync._pieces(flat))
    assert len(pieces) > 2
    sync.engine.start_weight_update()
    sync.engine.update_weights(pieces[0])
    with pytest.raises(ValueError, match="The sync was interrupted: 2000 of"):
        sync.engine.finish_weight_update()
    assert checksums(llm) == before
    with pytest.raises(RuntimeError, match="already"):
        sync.engine.start_weight_update()
    sync.send(flat)  # calls the open one off by itself
    assert checksums(llm) != before
    another = sync_of(llm, model, mask)  # a new trainer finds the base
    assert checksums(llm) == before
    another.engine.start_weight_update()
    with pytest.raises(ValueError, match="missing"):
        another.engine.update_weights(pieces[1])
    another.send(flat)
    sync_of(llm, model, mask)
    assert checksums(llm) == before


def test_another_base_is_refused(llm, model: PreTrainedModel, mask: Mask) -> None:  # type: ignore[no-untyped-def]
    from multiticket.integrations.vllm.clients import LocalEngine
    from multiticket.integrations.vllm.sync import TicketSync

    before = checksums(llm)
    with pytest.raises(ValueError, match="another base"):
        TicketSync(LocalEngine(llm), mask, "0" * 64)
    other, _ = bases.load("tiny-qwen3", torch.float32)
    with pytest.raises(ValueError, match="cannot take a ticket"):
        TicketSync(LocalEngine(llm), Mask.random(other, 0.01), "0" * 64)
    assert checksums(llm) == before


def test_the_sampled_log_probabilities_are_the_merged_models(llm, model: PreTrainedModel, mask: Mask) -> None:  # type: ignore[no-untyped-def]
    from vllm import SamplingParams

    from multiticket.ticket import Ticket

    base = values(model, mask)
    new = moved(base)
    sync_of(llm, model, mask).send(torch.cat(list(new.values())))
    told = llm.generate(
        [f"{a}+{a + 7}=" for a in range(10, 30)],
        SamplingParams(temperature=1, seed=0, max_tokens=8, logprobs=0),
        use_tqdm=False,
    )
    apart = 0.0
    with Ticket(mask, new, fingerprint(mask, base.__getitem__)).applied(model), torch.no_grad():
        for one in told:
            prompt, out = one.prompt_token_ids, list(one.outputs[0].token_ids)
            logits = model(torch.tensor([prompt + out])).logits[0, len(prompt) - 1 : -1]
            mine = logits.log_softmax(-1)[torch.arange(len(out)), out]
            theirs = torch.tensor(
                [step[token].logprob for step, token in zip(one.outputs[0].logprobs, out, strict=True)]
            )
            apart = max(apart, (mine - theirs).abs().max().item())
    sync_of(llm, model, mask)
    assert apart < 1e-4
