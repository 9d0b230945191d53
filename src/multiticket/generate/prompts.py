"""What a model reads of a problem: its chat template where the tokenizer has one, plain text otherwise.

Training and evaluation both ask here, so that both show a model the same. Everything is text whose ordinary
tokenisation gives what the template gives as tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from multiticket.generate.tool_templates import tool_options
from multiticket.tasks.asking import PLACE
from multiticket.tasks.tools import toolbox_of

_ANSWER = "-=ANSWER=-"
_MESSAGES = '[{"role": '
"""How a prompt begins that is a list of messages, written by `tasks.custom.messages_as_text`."""

POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")
"""What transformers calls an embedding of learned positions: GPT-2, OPT, encoders."""


def render(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = None,
    template: str | None = None,
    examples: Sequence[tuple[str, str]] = (),
    options: Mapping[str, Any] | None = None,
) -> str:
    """The text that ends where the model's answer begins.

    With a chat template: system prompt, examples and prompt as messages, and the beginning of the answer. Without one:
    the prompt as it is, below the system prompt and the examples if there are any.

    Args:
        template: stands around every prompt, in the place of `{prompt}`.
        examples: prompts and answers that come before, as turns.
        options: what the chat template is told, such as `enable_thinking: false`.

    Raises:
        ValueError: the prompt is a list of messages and there is no chat template, or the template refuses them.
    """
    messages = _conversation(prompt)
    if not tokenizer.chat_template:
        if messages is not None:
            raise ValueError(
                "The problems' prompts are messages, but this model's tokenizer has no chat template: use plain text."
            )
        shown = "".join(f"{_placed(p, template)}{a}\n" for p, a in examples) + _placed(prompt, template)
        return f"{system_prompt}\n\n{shown}\n" if system_prompt else shown
    if messages is None:
        messages = [{"role": "user", "content": _placed(prompt, template)}]
    turns = [
        {"role": role, "content": content}
        for p, a in examples
        for role, content in (("user", _placed(p, template)), ("assistant", a))
    ]
    own_system = [messages.pop(0)] if messages[0]["role"] == "system" else []
    if system_prompt and not own_system:
        own_system = [{"role": "system", "content": system_prompt}]
    text = _chat_with_system(tokenizer, [*own_system, *turns, *messages], options)
    return _without_first_token(text, tokenizer)


def _placed(prompt: str, template: str | None) -> str:
    return template.replace(PLACE, prompt) if template else prompt


def _conversation(prompt: str) -> list[dict[str, str]] | None:
    """The messages that a prompt stands for; None for plain text."""
    if not prompt.startswith(_MESSAGES):
        return None
    try:
        found = json.loads(prompt)
    except ValueError:
        return None
    return found if isinstance(found, list) and found else None


def prompt_texts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, task: Any) -> list[str]:
    """`render` of a task's prompts, as the task wants to be asked (`tasks.asked`)."""
    named: dict[str, Any] = {
        "system_prompt": getattr(task, "system_prompt", None),
        "template": getattr(task, "prompt_template", None),
        "examples": getattr(task, "examples", None) or (),
        "options": template_options(task, tokenizer),
    }
    return [render(prompt, tokenizer, **named) for prompt in prompts]


def with_observation(prompt: str, observed: str) -> str:
    """A task's prompt after which an environment says what it shows; in a list of messages, after the last one."""
    messages = _conversation(prompt)
    if messages is None:
        return prompt + observed
    messages[-1]["content"] += observed
    return json.dumps(messages, ensure_ascii=False)


def refuse_too_long(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, model: Any, split: str, completion: int = 1
) -> str | None:
    """A warning where completions may go past the positions that the model was trained on; None where they cannot.

    Args:
        completion: tokens of the longest completion.

    Raises:
        ValueError: prompts are longer than the model reads (what they would cost grows with the square), or a model
            that looks its positions up in a table has none for the end of a completion.
    """
    most = positions_of(model)
    if most is None:
        return None
    room = max(most - completion, 0)
    long = [
        text for text in texts if len(text.encode(errors="replace")) > room
    ]  # tokens are no shorter than a byte
    lengths = [len(ids) for ids in tokenizer(text=long)["input_ids"]] if long else []
    length, text = max(zip(lengths, long, strict=True), default=(0, ""))
    if length >= most:
        beyond = sum(one >= most for one in lengths)
        raise ValueError(
            f"{beyond} of {len(texts)} {split} prompts are longer than the {most} tokens that the model reads; "
            f"the longest has {length:,}, and begins {text[:40]!r}: shorten them, or leave them out."
        )
    if length <= room:
        return None
    if _has_position_table(model):
        raise ValueError(
            f"The longest {split} prompt has {length:,} tokens and a completion up to {completion:,}, and the model "
            f"has {most:,} positions: set max_completion_tokens to {most - length:,} or less, or shorten the prompts."
        )
    return (
        f"the longest {split} prompt has {length:,} tokens and a completion up to {completion:,}, more than the "
        f"{most:,} positions that the model was trained on"
    )


def positions_of(model: Any) -> int | None:
    """Tokens of a prompt and its completion that a model was trained to read; None where it does not say."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def _has_position_table(model: Any) -> bool:
    """Whether positions are looked up, as in GPT-2, and not computed."""
    return any(
        isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES
        for name, module in model.named_modules()
    )


def template_options(task: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the chat template is told for a task.

    Raises ValueError for a task with tools and a tokenizer that cannot show them, see `tool_templates`.
    """
    told = dict(getattr(task, "template_options", None) or {})
    box = toolbox_of(task)
    return told if box is None else {**told, **tool_options(box, tokenizer)}


def rendered(problems: Dataset, tokenizer: PreTrainedTokenizerBase, task: Any) -> Dataset:
    """Problems with their prompts as a model reads them: the same object where that changes nothing.

    Their own prompts are then in a column `problem`.
    """
    prompts = list(problems["prompt"])
    texts = prompt_texts(prompts, tokenizer, task)
    if texts == prompts:
        return problems
    columns = {name: list(problems[name]) for name in problems.column_names}
    return Dataset.from_dict({**columns, "prompt": texts, "problem": prompts})


def render_reply(
    reply: str, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None
) -> str:
    """What stands between an answer of the model and its next one: the end of its turn, the user's `reply`, a new turn.

    Raises ValueError for a template that does not show an answer as it is, so that no turn can follow one.
    """
    if not tokenizer.chat_template:
        return f"{tokenizer.eos_token or ''}\n{reply}\n"
    messages = [
        {"role": "user", "content": "-"},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": reply},
    ]
    _, found, tail = _chat(tokenizer, messages, options).partition(_ANSWER)
    if not found:
        raise ValueError(
            "The tokenizer's chat template drops the model's answers, so a multi-turn task cannot use it."
        )
    return tail


def _chat_with_system(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], options: Mapping[str, Any] | None
) -> str:
    """The template's text. A system message that it refuses or leaves out stands before the user's first words."""
    if messages[0]["role"] != "system":
        return _chat(tokenizer, messages, options)
    system = messages[0]["content"]
    try:
        text = _chat(tokenizer, messages, options)
        if system.strip() in text:
            return text
    except ValueError:
        pass
    first = {**messages[1], "content": f"{system}\n\n{messages[1]['content']}"}
    return _chat(tokenizer, [first, *messages[2:]], options)


def _chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], options: Mapping[str, Any] | None
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **(options or {})
        )
    except TemplateError as error:
        raise ValueError(f"The tokenizer's chat template refuses the messages: {error}.") from None
    assert isinstance(text, str)
    return text


def _without_first_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Without the beginning-of-sequence token that the template wrote, where tokenising adds one anyway."""
    bos: Any = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer(text="")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(bos)
    return text
