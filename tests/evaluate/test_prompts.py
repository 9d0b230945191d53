"""What a model reads of a problem."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from multiticket import tasks
from multiticket.generate.prompts import prompt_texts, render, rendered
from multiticket.tasks.protocol import with_metadata

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if think is defined and not think %}<no>{% endif %}{% if add_generation_prompt %}[a]{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT
)
DROPS_SYSTEM = CHAT.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")


@pytest.fixture
def tokenizer(toy_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(toy_model_folder)


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def test_plain_text(tokenizer: Any) -> None:
    assert render("1=", tokenizer) == "1="
    assert render("1=", tokenizer, "Add.") == "Add.\n\n1=\n"
    assert render("1", tokenizer, template="{prompt}=", examples=[("2", "3"), ("4", "5")]) == "2=3\n4=5\n1="


def test_a_conversation(tokenizer: Any) -> None:
    with_template(tokenizer, CHAT)
    assert render("1=", tokenizer) == "[user]1=[a]"
    assert render("1=", tokenizer, "Add.") == "[system]Add.[user]1=[a]"
    told = render("1", tokenizer, "Add.", "{prompt}=", [("2", "3")], {"think": False})
    assert told == "[system]Add.[user]2=[assistant]3[user]1=<no>[a]"


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_template_without_a_system_role(tokenizer: Any, template: str) -> None:
    with_template(tokenizer, template)
    assert render("1=", tokenizer, "Add.") == "[user]Add.\n\n1=[a]"
    assert (
        render("1=", tokenizer, "Add.", examples=[("2=", "3")]) == "[user]Add.\n\n2=[assistant]3[user]1=[a]"
    )
    assert render("1=", tokenizer) == "[user]1=[a]"


def test_prompts_that_are_messages(tokenizer: Any) -> None:
    prompt = json.dumps([{"role": "system", "content": "Own."}, {"role": "user", "content": "1="}])
    with pytest.raises(ValueError, match="has no chat template"):
        render(prompt, tokenizer)
    with_template(tokenizer, CHAT)
    assert render(prompt, tokenizer, "Add.", examples=[("2=", "3")]) == (
        "[system]Own.[user]2=[assistant]3[user]1=[a]"
    )
    assert render('[{"role": nonsense', tokenizer) == '[user][{"role": nonsense[a]'


def test_a_template_that_refuses_is_said(tokenizer: Any) -> None:
    with_template(tokenizer, "{{ raise_exception('never') }}")
    with pytest.raises(ValueError, match="chat template refuses the messages: never"):
        render("1=", tokenizer)


def test_metadata_stays_beside_a_rendered_prompt(tokenizer: Any) -> None:
    with_template(tokenizer, CHAT)
    problems = with_metadata([("1=", "1", {"n": 1}), ("2=", "2", {})])
    shown = rendered(problems, tokenizer, tasks.get("arithmetic"))
    assert shown["prompt"] == ["[user]1=[a]", "[user]2=[a]"]
    assert shown["metadata"] == problems["metadata"]


def test_arithmetic_and_names_are_asked_in_words_where_there_is_a_chat_template(tokenizer: Any) -> None:
    for name, tokens in (("arithmetic", 6), ("alphabet_sort", 32)):
        assert tasks.asked(tasks.get(name), tokenizer).max_completion_tokens == tokens
    with_template(tokenizer, CHAT)
    sums = tasks.asked(tasks.get("arithmetic"), tokenizer)
    assert (sums.name, sums.max_completion_tokens) == ("arithmetic", 48)
    problem = sums.problems("test")[0]
    expression = tasks.get("arithmetic").problems("test")[0]["prompt"].removesuffix("=")
    assert problem["prompt"].replace(" ", "") == f"Whatis{expression}?Endwiththenumberalone."
    assert sums.score(f"Well, that is {problem['answer']}.", problem["answer"]) == 1.0
    assert sums.score(problem["prompt"], problem["answer"]) == 0.0
    names = tasks.asked(tasks.get("alphabet_sort"), tokenizer)
    problem = names.problems("test")[0]
    assert "Use exactly this format" in problem["prompt"]
    assert problem["prompt"].count("Name") == 3
    assert names.correct(f"Here they are:\n{problem['answer']}\nDone.", problem["answer"])
    assert tasks.asked(sums, tokenizer) is sums


def test_settings_go_before_what_a_task_says(tokenizer: Any, tmp_path: Path) -> None:
    with_template(tokenizer, CHAT)
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"prompt": "1 + 1", "answer": "2"}) + "\n")
    asking = tasks.Asking("Brief.", "Q: {prompt}", str(file), {"think": False})
    task = tasks.asked(tasks.get("arithmetic"), tokenizer, asking)
    assert prompt_texts(["3 + 4"], tokenizer, task) == [
        "[system]Brief.[user]Q: 1 + 1[assistant]2[user]Q: 3 + 4<no>[a]"
    ]
    shown = tasks.asked(tasks.get("arithmetic"), tokenizer, tasks.Asking(examples=2))
    first = tasks.asked(tasks.get("arithmetic"), tokenizer).problems("train")[0]
    assert shown.examples[0] == (first["prompt"], first["answer"])
    assert len(shown.examples) == 2
    assert tasks.Asking("a").over(tasks.Asking("b", "{prompt}!")) == tasks.Asking("a", "{prompt}!")


def test_an_empty_system_prompt_takes_the_tasks_away(tokenizer: Any) -> None:
    task = tasks.asked(tasks.get("arithmetic"), tokenizer, tasks.Asking(""))
    assert task.system_prompt is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asking", "message"),
    [
        (tasks.Asking(prompt_template="Q:"), r"must contain \{prompt\} for the problem"),
        (tasks.Asking(examples=-1), "not -1"),
        (tasks.Asking(examples="nowhere.jsonl"), "Cannot read the problems in nowhere"),
        (tasks.Asking(examples=10**6), "training problems, so no 1000000 examples"),
    ],
)
def test_mistakes_are_said_in_one_sentence(tokenizer: Any, asking: tasks.Asking, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.asked(tasks.get("arithmetic"), tokenizer, asking)
