"""What a model reads of a problem: its chat template where the tokenizer has one, plain text otherwise.

Training and evaluation both ask here, so that both show a model the same. Everything is text whose ordinary
tokenisation gives what the template gives as tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from multiticket.tasks.protocol import as_dataset

_ANSWER = "-=ANSWER=-"


def render(prompt: str, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None) -> str:
    """The text that ends where the model's answer begins.

    With a chat template: system prompt and prompt as messages, and the beginning of the answer. Without one: the
    prompt as it is, below the system prompt if there is one.
    """
    if not tokenizer.chat_template:
        return f"{system_prompt}\n\n{prompt}\n" if system_prompt else prompt
    return _without_first_token(_chat(tokenizer, _messages(prompt, system_prompt), True), tokenizer)


def prompt_texts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, task: Any) -> list[str]:
    """`render` of a task's prompts, with the task's system prompt where it has one."""
    system_prompt = getattr(task, "system_prompt", None)
    return [render(prompt, tokenizer, system_prompt) for prompt in prompts]


def rendered(problems: Dataset, tokenizer: PreTrainedTokenizerBase, task: Any) -> Dataset:
    """Problems with their prompts as a model reads them: the same object where that changes nothing."""
    prompts = list(problems["prompt"])
    texts = prompt_texts(prompts, tokenizer, task)
    return problems if texts == prompts else as_dataset(list(zip(texts, problems["answer"], strict=True)))


def render_reply(reply: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands between an answer of the model and its next one: the end of its turn, the user's `reply`, a new turn.

    Raises ValueError for a template that does not show an answer as it is, so that no turn can follow one.
    """
    if not tokenizer.chat_template:
        return f"{tokenizer.eos_token or ''}\n{reply}\n"
    messages = [
        *_messages("-", None),
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": reply},
    ]
    _, found, tail = _chat(tokenizer, messages, True).partition(_ANSWER)
    if not found:
        raise ValueError(
            "The tokenizer's chat template leaves answers out, so a task with several turns cannot use it."
        )
    return tail


def _messages(prompt: str, system_prompt: str | None) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def _chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], answer_follows: bool) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_follows)
    assert isinstance(text, str)
    return text


def _without_first_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Without the beginning-of-sequence token that the template wrote, where tokenising adds one anyway."""
    bos: Any = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer(text="")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(bos)
    return text
