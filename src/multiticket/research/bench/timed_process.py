"""One arm's process, which takes a step for each line ``step`` that it reads.

Started as ``python -m multiticket.research.bench.timed_process SETUP``, where SETUP is a `StepSetup` as JSON. Answers
are lines of JSON: when ready the number of trained values, for ``step`` its seconds, for ``memory`` the bytes that a
step needs at its peak.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from multiticket.research.bench.shapes import Shape
from multiticket.research.bench.timed_arms import FLOOR, Arm

LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class StepSetup:
    """What an arm's process needs to know."""

    shape: Shape
    arm: Arm
    batch: int
    tokens: int
    dtype: str
    device: str
    compiled: bool = False
    """Whether the model goes through ``torch.compile``; its first step, not timed, takes the compiling."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StepSetup:
        fields = json.loads(text)
        return cls(**{**fields, "shape": Shape(**fields["shape"]), "arm": Arm(**fields["arm"])})


def build_model(setup: StepSetup) -> Any:
    """A Qwen2 of the shape, with the same random weights in every process, ready to train."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = setup.shape
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=True,
        dtype=setup.dtype,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, setup.dtype))
    try:
        with torch.device(setup.device):
            return Qwen2ForCausalLM(config).train()
    finally:
        torch.set_default_dtype(before)


def prepare(arm: Arm, shape: Shape, model: Any) -> tuple[Any, list[Any]]:
    """The model as ``arm`` trains it, and the parameters that its optimiser steps."""
    if arm.kind == FLOOR:
        model.requires_grad_(False)
        return model, []
    import multiticket as mt
    from multiticket import arms
    from multiticket.arms.masks import mask_rule

    config = arm.settings(shape)
    if arm.density is None:
        prepared = arms.get(config.arm).prepare(model, None, config)
        return prepared.model, prepared.trained
    mask = mt.Mask.from_rule(model, mask_rule(config))
    if arm.path == "direct":  # the fastest of its methods, whatever else the machine has
        from multiticket.mask.names import masked_candidates
        from multiticket.sparse.direct.attachment import DirectAttachment

        return model, list(DirectAttachment(model, mask, masked_candidates(model)).parameters())
    return model, list(mt.attach(model, mask, gradient=arm.path).parameters())


class Step:
    """Forward, backward and AdamW (fused) over the same random tokens each time; the floor takes the gradient with
    respect to the embedded tokens, so that it reaches through every layer.

    Args:
        setup: what is measured.
        model: as ``prepare`` made it.
        trained: the parameters that AdamW steps; none for the floor.
        capturable: whether AdamW keeps its count on the GPU, so that a CUDA graph can hold a step.
    """

    def __init__(self, setup: StepSetup, model: Any, trained: list[Any], capturable: bool = False) -> None:
        import torch

        self.model, self.cuda = model, setup.device == "cuda"
        self.optimizer = None
        if trained:
            self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True, capturable=capturable)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, setup.shape.vocabulary, (setup.batch, setup.tokens), generator=generator)
        self.tokens = tokens.to(setup.device)

    def forward(self) -> None:
        inputs: dict[str, Any] = {"input_ids": self.tokens}
        if self.optimizer is None:
            inputs = {"inputs_embeds": self.model.get_input_embeddings()(self.tokens).requires_grad_()}
        self.loss = self.model(**inputs, labels=self.tokens, use_cache=False).loss

    def backward(self) -> None:
        self.loss.backward()

    def update(self) -> None:
        """The optimiser's step, after which a ticket's values are in the weights, and no gradient left."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def __call__(self) -> None:
        import torch

        self.forward()
        self.backward()
        del self.loss
        self.update()
        if self.cuda:
            torch.cuda.synchronize()


class TimedModel:
    """The model, the step and what it needs."""

    def __init__(self, setup: StepSetup) -> None:
        import torch

        from multiticket.research.bench.peak_memory import living
        from multiticket.train.peak_memory import high_water

        self.cuda = setup.device == "cuda"
        model = build_model(setup)
        self.before = torch.cuda.memory_allocated() if self.cuda else living()
        self.resident_before = high_water()
        model, trained = prepare(setup.arm, setup.shape, model)
        self.trained = sum(parameter.numel() for parameter in trained)
        if setup.compiled:
            model.compile()
        self.step = Step(setup, model, trained)
        for _ in range(2):  # makes the moments, and what is made when first asked for
            self.step()

    def seconds(self) -> float:
        started = time.perf_counter()
        self.step()
        return time.perf_counter() - started

    def memory(self) -> dict[str, int]:
        """Bytes above the model's weights, at a step's peak (``peak``) and at rest between steps (``rest``), and how
        far the process's high-water mark rose above where the model's weights had brought it (``resident``)."""
        import torch

        from multiticket.research.bench.peak_memory import living, peak_above_rest
        from multiticket.train.peak_memory import high_water

        resident = high_water() - self.resident_before
        if self.cuda:
            rest = torch.cuda.memory_allocated() - self.before
            torch.cuda.reset_peak_memory_stats()
            self.step()
            peak = torch.cuda.max_memory_allocated() - self.before
        else:
            transient = peak_above_rest(self.step)
            rest = living() - self.before
            peak = rest + transient
        return {"peak": peak, "rest": rest, "resident": resident}


def serve(setup: StepSetup, requests: Any, answers: Any) -> None:
    """Answer the lines of ``requests``, one line each, until there are no more."""

    def answer(fields: dict[str, Any]) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    timed = TimedModel(setup)
    answer({"trained": timed.trained})
    for request in requests:
        answer({"seconds": timed.seconds()} if request.strip() == "step" else timed.memory())


def main() -> None:
    from multiticket.quiet import hush
    from multiticket.train.allocator import keep_freed_memory

    keep_freed_memory()  # as every run does
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the parent decides what an interruption means, and closes our input
    hush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    serve(StepSetup.from_json(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
