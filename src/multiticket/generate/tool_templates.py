"""How a model's chat template shows tools, and how the calls in its answers are read: by TRL's own functions.

TRL knows how the templates of many models write a call; any other tokenizer may say so itself, as its
`response_template` (transformers' name for it).
"""

from __future__ import annotations

import copy
import inspect
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from multiticket.errors import first_sentence
from multiticket.tasks.tools import Toolbox


def tool_options(box: Toolbox, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What `apply_chat_template` is told besides: the tools, and a template that stays as it is when messages follow.

    Raises ValueError for a tokenizer that has no chat template, or one that cannot show tools or read calls, for tools
    that cannot be described, and where TRL is missing.
    """
    _, template = _known(tokenizer, _key(tokenizer))
    return {"tools": box.schemas, **({"chat_template": template} if template is not None else {})}


def parse(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], before: list[int], box: Toolbox
) -> dict[str, Any]:
    """The message that an answer is: its role, content and perhaps `tool_calls`.

    What cannot be read as calls is content.

    Args:
        ids: of the answer, its end of turn included.
        before: of the context.
    """
    from trl.chat_template_utils import parse_response

    reader, _ = _known(tokenizer, _key(tokenizer))
    more: dict[str, Any] = (
        {"tools": box.schemas} if "tools" in inspect.signature(parse_response).parameters else {}
    )
    found: dict[str, Any] = parse_response(reader, ids, prefix=before, **more)
    return found


def reply_ids(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> list[int]:
    """The tokens between an answer that called tools, its end of turn included, and the next one.

    As TRL finds them: what the template writes behind a call, up to the beginning of an answer.

    Args:
        messages: of the tools.
        options: what the chat template is told, without the tools, which stand in the first prompt.
    """
    told = {name: value for name, value in options.items() if name != "tools"}
    call = {"type": "function", "function": {"name": messages[0]["name"], "arguments": {}}}
    asked: list[dict[str, Any]] = [
        {"role": "user", "content": "-"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]

    def ids_of(conversation: list[dict[str, Any]], **more: Any) -> list[int]:
        found: Any = tokenizer.apply_chat_template(
            conversation, tokenize=True, return_dict=False, **more, **told
        )
        return list(found)

    before, whole = ids_of(asked), ids_of([*asked, *messages], add_generation_prompt=True)
    ends = [place for place, token in enumerate(before) if token == tokenizer.eos_token_id]
    if ends:  # some templates write a line break behind it, and the model does not
        before = before[: ends[-1] + 1]
    if whole[: len(before)] != before:
        raise ValueError(
            "The chat template writes a call otherwise once the tool has answered, so its tools cannot be trained with."
        )
    return whole[len(before) :]


def _key(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    return str(tokenizer.chat_template), str(getattr(tokenizer, "response_template", None))


@lru_cache(maxsize=8)
def _known(tokenizer: PreTrainedTokenizerBase, key: tuple[str, str]) -> tuple[Any, str | None]:
    """A copy of the tokenizer that reads calls, and the template to write with where its own one will not do.

    Args:
        key: what these follow from, see `_key`.
    """
    try:
        from trl.chat_template_utils import (
            add_response_schema,
            get_training_chat_template,
            is_chat_template_prefix_preserving,
            supports_tool_calling,
        )
    except ImportError:
        raise ValueError('Tools need TRL 1.14 or newer: pip install "multiticket[train]".') from None
    advice = "take a model that was trained to call tools, such as Qwen2.5-Instruct"
    if not tokenizer.chat_template:
        raise ValueError(f"The task has tools, and this model's tokenizer has no chat template: {advice}.")
    if not _supported(supports_tool_calling, tokenizer):
        raise ValueError(f"The task has tools, and this model's chat template cannot show them: {advice}.")
    reader: Any = copy.copy(tokenizer)
    own = (getattr(reader, "response_template", None), getattr(reader, "response_schema", None))
    try:
        if own == (None, None):
            add_response_schema(reader)
    except ValueError:
        raise ValueError(
            "It is not known how this model's chat template writes calls of tools: set response_template on its "
            f"tokenizer and save it, or {advice}."
        ) from None
    try:
        reader.parse_response([tokenizer.eos_token_id], **({} if own[1] is not None else {"prefix": []}))
    except ImportError as error:
        raise ValueError(f"To read calls of tools: {first_sentence(error)}.") from None
    except (ValueError, TypeError):
        pass  # of an empty answer
    try:
        written = (
            None if is_chat_template_prefix_preserving(tokenizer) else get_training_chat_template(tokenizer)
        )
    except (ValueError, TemplateError):
        raise ValueError(
            "This model's chat template changes a call once the tool has answered, and TRL knows no other for it: "
            f"{advice}."
        ) from None
    return reader, written


def _supported(supports: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        return bool(supports(tokenizer))
    except Exception:  # the template fails on a call
        return False
