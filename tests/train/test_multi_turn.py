"""Conversations: what a model reads, which tokens are its own, and what the loss sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from multiticket import config as settings
from multiticket import tasks
from multiticket.generate.conversations import Conversation, Limits, converse
from multiticket.generate.prompts import render, render_reply, rendered
from multiticket.tasks.protocol import as_dataset
from multiticket.train.multi_turn import rollout_function
from multiticket.train.recipe import grpo_config
from multiticket.train.rewards import reward_function
from multiticket.train.run import run_training
from multiticket.train.trainer import RLVRTrainer

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
PAD, EOS, A, B, THREE = 0, 1, 13, 14, 5


class Letters:
    """Three answers a conversation, each to be an `a`; it ends early after `b`."""

    name = "letters"
    max_completion_tokens = 4
    turns = 3

    def problems(self, split: str) -> Any:
        return as_dataset([(f"{n % 10}{n // 10}=", "a") for n in range(40)])

    def reply(self, completions: list[str], answer: str) -> str | None:
        return None if completions[-1].startswith("b") else f"{len(completions)}="

    def score_turns(self, completions: list[str], answer: str) -> float:
        return sum(c.count(answer) for c in completions) / max(sum(map(len, completions)), 1)

    def correct_turns(self, completions: list[str], answer: str) -> bool:
        return all(completion.startswith(answer) for completion in completions)

    def score(self, completion: str, answer: str) -> float:
        return self.score_turns([completion], answer)

    def correct(self, completion: str, answer: str) -> bool:
        return self.correct_turns([completion], answer)


TASK = Letters()


def asks(*prompts: str) -> list[tasks.Problem]:
    return [tasks.Problem(prompt, "a", {}) for prompt in prompts]


@pytest.fixture
def tokenizer(toy_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(toy_model_folder)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text=text, add_special_tokens=False)["input_ids"])


def test_the_task_is_a_multi_turn_task() -> None:
    assert isinstance(TASK, tasks.MultiTurnTask)
    assert not isinstance(tasks.get("arithmetic"), tasks.MultiTurnTask)


def test_prompts_are_plain_without_a_template(tokenizer: Any) -> None:
    assert render("12=", tokenizer) == "12="
    assert render("12=", tokenizer, "Add.") == "Add.\n\n12=\n"
    problems = TASK.problems("train")
    assert rendered(problems, tokenizer, TASK) is problems


def test_a_rendered_conversation_is_what_the_template_makes_of_it(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT
    tokenizer.bos_token = "="
    messages = [
        ("system", "00"),
        ("user", "12"),
        ("assistant", "a"),
        ("user", "3"),
        ("assistant", "b"),
        ("user", "4"),
    ]
    whole = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    start = render("12", tokenizer, "00")
    assert start + "a" + render_reply("3", tokenizer) + "b" + render_reply("4", tokenizer) == whole
    assert whole.startswith("=")


def test_a_beginning_of_sequence_is_not_written_twice(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = CHAT
    tokenizer.bos_token = "="
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="= $A", special_tokens=[("=", tokenizer.bos_token_id)]
    )
    text = render("12", tokenizer)
    assert tokenizer(text=text)["input_ids"] == tokenizer.apply_chat_template(
        [{"role": "user", "content": "12"}], add_generation_prompt=True, return_dict=False
    )


def test_a_template_that_hides_answers_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="drops the model's answers"):
        render_reply("3", tokenizer)


def test_the_mask_is_1_on_exactly_the_models_tokens(tokenizer: Any) -> None:
    script = [
        [[A, EOS], [A, A, A, A], [B, EOS]],  # ended, cut off, and the task ends the conversation
        [[A, A, EOS], [B, EOS]],
        [[EOS]],
    ]
    contexts_seen = []

    def generate(speaking: list[Conversation], turn: int) -> Any:
        contexts_seen.append([one.ids for one in speaking])
        return script[turn], [[-float(turn + 1)] * len(ids) for ids in script[turn]]

    done = converse(["1=", "2=", "3="], asks("1=", "2=", "3="), TASK, tokenizer, generate)
    after_1, after_2 = (ids_of(tokenizer, f"\n{n}=\n") for n in (1, 2))
    ended, cut, short = done
    assert ended.completion_ids == [A, EOS, *after_1, A, A, EOS, *after_2, EOS]
    assert ended.env_mask == [1, 1, *[0] * len(after_1), 1, 1, 1, *[0] * len(after_2), 1]
    assert ended.logprobs == [-1, -1, *[0] * len(after_1), -2, -2, -2, *[0] * len(after_2), -3]
    assert cut.completion_ids == [A, A, A, A, EOS, *after_1, B, EOS]
    assert cut.env_mask == [1, 1, 1, 1, 0, *[0] * len(after_1), 1, 1]
    assert (short.completion_ids, short.env_mask, short.turns) == ([B, EOS], [1, 1], ["b"])
    assert ended.turns == ["a", "aa", ""]
    assert contexts_seen[1][0] == [*ids_of(tokenizer, "1="), A, EOS, *after_1]
    assert [len(contexts) for contexts in contexts_seen] == [3, 2, 1]


@pytest.mark.parametrize("template", [None, CHAT])
def test_a_context_is_what_its_text_would_be_read_as(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = template
    tokenizer.bos_token = "="
    seen: dict[int, list[list[int]]] = {}

    def generate(speaking: list[Conversation], turn: int) -> Any:
        for one in speaking:
            seen.setdefault(one.place, []).append(one.ids)
        return [[A if sum(one.ids) % 3 else B, A, EOS][: 2 + sum(one.ids) % 2] for one in speaking], None

    prompts = [render(f"{n}=", tokenizer) for n in range(10)]
    done = converse(prompts, asks(*prompts), TASK, tokenizer, generate)
    for prompt, one in zip(prompts, done, strict=True):
        text = prompt
        for turn, context in enumerate(seen[one.place]):
            text += "" if not turn else one.turns[turn - 1] + render_reply(f"{turn}=", tokenizer)
            assert context == list(tokenizer(text=text)["input_ids"])
    assert {len(one.turns) for one in done} > {1}


def test_a_task_without_turns_has_one_and_needs_no_rollouts(tokenizer: Any) -> None:
    one = tasks.get("arithmetic")
    answers = [[A, EOS], [B]]
    done = converse(
        ["1=", "2="], asks("1=", "2="), one, tokenizer, lambda *_: (answers, None), Limits(stops=[EOS, A])
    )
    assert [each.turns for each in done] == [[""], ["b"]]
    assert [each.completion_ids for each in done] == answers
    assert rollout_function(one, one.problems("train")) is None


def test_a_prompt_with_two_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="have the same prompt"):
        rollout_function(TASK, {"prompt": ["1", "1"], "answer": ["a", "b"]})


def test_the_gradient_is_that_of_the_models_tokens_alone(
    toy_model_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    run = settings.build(
        {"rollouts": 8, "group": 4, "steps": 1, "arm": "full", "kl_rollouts": 8, "clip_norm": 1e9}
    )
    model = AutoModelForCausalLM.from_pretrained(toy_model_folder)
    problems = TASK.problems("train")
    trainer = RLVRTrainer(
        model=model,
        reward_funcs=reward_function(TASK),
        args=grpo_config(run, tmp_path, 4),
        train_dataset=problems,
        processing_class=tokenizer,
        attachment=None,
        kl_rollouts=8,
        rollout_func=rollout_function(TASK, problems),
    )
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert batch["advantages"].abs().sum() > 0
    mask = batch["tool_mask"] * batch["completion_mask"]
    assert 0 < mask.sum() < batch["completion_mask"].sum()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)

    trainer.compute_loss(model, batch).backward()
    assert trainer._kept is not None
    assert torch.equal(trainer._kept.mask, mask)  # the KL of a step is of the model's tokens too
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = (
        model(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, :-1]
        / run.temperature
    )
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)[:, -mask.size(1) :]
    (-(batch["advantages"][:, None] * log_probs * mask).sum() / mask.sum()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_run_of_a_task_with_turns(
    toy_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "get", lambda name: TASK)
    run = settings.build(
        {
            "task": "letters",
            "model": str(toy_model_folder),
            "density": 0.5,
            "rollouts": 16,
            "group": 8,
            "micro_batch": 8,
            "steps": 3,
            "eval": {"problems": 4, "samples": 2},
        }
    )
    result = run_training(run, tmp_path / "run", show_progress=False)
    assert result["eval"]["before"]["n"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["failures"] == 0 and 0 <= line["reward"] <= 1 for line in lines)
    assert max(line["completion_length"] for line in lines) > TASK.max_completion_tokens  # more than one turn
