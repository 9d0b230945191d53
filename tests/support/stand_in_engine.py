"""What vLLM is to TRL, played by a plain transformers model that records what is pushed to it.

It knows the tensors of a plain checkpoint and no others, generates with what it was given, and reports the sampled
tokens' log-probabilities as vLLM does, in both of TRL's modes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM


class Engine:
    """A model of its own, the weights that arrived, and sampling."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.with_zeros()
        self.pushes: list[dict[str, torch.Tensor]] = []

    def with_zeros(self) -> None:
        """Nothing is known before the first push."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()

    def take(self, name: str, tensor: torch.Tensor) -> None:
        known = dict(self.model.named_parameters())
        with torch.no_grad():
            known[name].copy_(tensor)  # a KeyError for a name that a checkpoint does not have
        assert name not in self.pushes[-1], f"{name} is pushed twice"
        self.pushes[-1][name] = tensor.detach().clone()

    @torch.no_grad()
    def sample(self, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
        ids, log_probs = list(prompt), []
        for _ in range(tokens):
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            ids.append(int(torch.multinomial(logits.exp(), 1)))
            log_probs.append(float(logits[ids[-1]]))
            if ids[-1] == self.model.config.eos_token_id:
                break
        return ids[len(prompt) :], log_probs


class StandInLLM:
    """``vllm.LLM`` as TRL's colocate mode calls it."""

    made: list[StandInLLM] = []  # noqa: RUF012

    def __init__(self, model: str, **_: Any) -> None:
        self.engine = Engine(model)
        self.sleeping = False
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self._load))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        self._complete = True
        StandInLLM.made.append(self)

    def _load(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        assert not self.sleeping
        if self._complete:
            self.engine.pushes.append({})
            self._complete = False
        for name, tensor in weights:
            self.engine.take(name, tensor)

    def reset_prefix_cache(self) -> None:
        self._complete = True

    def sleep(self, level: int) -> None:
        assert level == 2
        self.engine.with_zeros()
        self.sleeping = True

    def wake_up(self, tags: list[str]) -> None:
        self.sleeping = False

    def generate(self, prompts: list[dict[str, Any]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        outputs = []
        for prompt in prompts:
            ids, log_probs = self.engine.sample(prompt["prompt_token_ids"], sampling_params.max_tokens)
            said = [{t: SimpleNamespace(logprob=lp, rank=1)} for t, lp in zip(ids, log_probs, strict=True)]
            outputs.append(
                SimpleNamespace(
                    prompt_token_ids=prompt["prompt_token_ids"],
                    outputs=[SimpleNamespace(token_ids=ids, logprobs=said)],
                )
            )
        return outputs


class StandInClient:
    """TRL's ``VLLMClient``, with the server behind it."""

    folder: str
    made: list[StandInClient] = []  # noqa: RUF012

    def __init__(self, **_: Any) -> None:
        self.engine = Engine(self.folder)
        self.announced: list[list[tuple[str, str, list[int]]]] = []
        StandInClient.made.append(self)

    def init_communicator(self, device: Any) -> None:
        pass

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata: list[tuple[str, str, list[int]]], named_params: Any) -> None:
        self.engine.pushes.append({})
        self.announced.append(metadata)
        for (name, dtype, shape), (sent, tensor) in zip(metadata, named_params, strict=True):
            assert (name, dtype, shape) == (sent, str(tensor.dtype).split(".")[1], list(tensor.shape))
            self.engine.take(sent, tensor)

    def reset_prefix_cache(self) -> None:
        pass

    def generate(self, prompts: list[list[int]], n: int, max_tokens: int, **_: Any) -> dict[str, Any]:
        drawn = [self.engine.sample(prompt, max_tokens) for prompt in prompts for _ in range(n)]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in drawn],
            "logprobs": [[[lp] for lp in log_probs] for _, log_probs in drawn],
        }
