"""The bases that ship: they load, they are small, and their scores are what their records say."""

import json
import math
import socket

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from base_tokenizer import build_tokenizer
from measure_base import SAMPLES, complete
from multiticket import bases, tasks
from pretrain import RECIPES

NAMES = ("tiny-llama", "tiny-qwen2", "tiny-qwen3")
RECORDS = {name: json.loads((bases.path(name) / "base.json").read_text()) for name in NAMES}
MOST_BYTES = 15_000_000
PROBLEMS = 64


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a shipped base must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_names_and_paths() -> None:
    assert bases.names() == list(NAMES)
    assert bases.resolve("tiny-qwen2") == str(bases.path("tiny-qwen2"))
    assert bases.resolve("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    with pytest.raises(
        ValueError, match="Unknown base 'huge': the package ships tiny-llama, tiny-qwen2, tiny-qwen3"
    ):
        bases.path("huge")


def test_the_folders_are_small_and_hold_no_pickle() -> None:
    files = [file for name in NAMES for file in bases.path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    small = sum(file.stat().st_size for file in bases.path("tiny-qwen2").rglob("*"))
    assert small <= 3_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("base", NAMES)
def test_the_auto_classes_read_it(base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases.path(base))
    tokenizer = AutoTokenizer.from_pretrained(bases.path(base))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert sum(parameter.numel() for parameter in model.parameters()) == RECORDS[base]["parameters"]
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings == (base != "tiny-llama")
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.eos_token_id) == ("left", 0, 1)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_load_takes_a_dtype() -> None:
    assert bases.load("tiny-qwen2")[0].dtype == torch.bfloat16
    assert bases.load("tiny-qwen2", torch.float32)[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["arithmetic", "alphabet_sort"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_prompt_and_answer_fits_the_tokenizer_and_the_bounds(name: str, split: str) -> None:
    task, tokenizer = tasks.get(name), build_tokenizer()
    problems = task.problems(split)
    for text in (*problems["prompt"], *problems["answer"]):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    longest = max(len(ids) for ids in tokenizer(list(problems["answer"]))["input_ids"])
    assert longest + 1 <= task.max_completion_tokens


@pytest.mark.parametrize("base", NAMES)
@pytest.mark.parametrize("name", ["arithmetic", "alphabet_sort"])
def test_the_recorded_scores_are_what_reinforcement_starts_from(base: str, name: str) -> None:
    for split in ("validation", "test"):
        scores = RECORDS[base]["scores"][name][split]
        assert scores["n"] == len(tasks.get(name).problems(split))
        assert 0.25 <= scores["pass@1"] <= 0.50
        assert scores["pass@16"] > 0.80


@pytest.mark.parametrize("base", NAMES)
def test_the_record_names_the_recipe_that_the_code_has(base: str) -> None:
    recipe = RECIPES[base]
    assert {name: RECORDS[base]["recipe"][name] for name in ("seed", "steps", "mixed_steps")} == {
        "seed": recipe.seed,
        "steps": recipe.steps,
        "mixed_steps": recipe.mixed_steps,
    }


@pytest.mark.parametrize("base", NAMES)
@pytest.mark.parametrize("name", ["arithmetic", "alphabet_sort"])
def test_the_base_scores_what_its_record_says(base: str, name: str) -> None:
    """On 64 test problems, within four binomial standard deviations; a wrong tokenizer scores nothing."""
    model, tokenizer = bases.load(base, torch.float32)
    task = tasks.get(name)
    problems = task.problems("test")
    prompts, answers = problems["prompt"][:PROBLEMS], problems["answer"][:PROBLEMS]
    torch.manual_seed(0)
    for score, samples in (("greedy", 0), ("pass@1", SAMPLES // 4)):
        texts = complete(model, tokenizer, list(prompts), task.max_completion_tokens, samples)
        marks = [
            task.correct(text, answer) for row, answer in zip(texts, answers, strict=True) for text in row
        ]
        recorded = RECORDS[base]["scores"][name]["test"][score]
        band = 4 * math.sqrt(recorded * (1 - recorded) / PROBLEMS)
        assert abs(sum(marks) / len(marks) - recorded) < band, score
