"""The recipe, on a few tiny steps."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

import pretrain
from base_tokenizer import build_tokenizer
from pretrain import Recipe, build_model, encode, main_batches, negative_log_likelihood

TOKENIZER = build_tokenizer()
TINY = Recipe(
    steps=3,
    mixed_steps=1,
    arithmetic_batch=4,
    sorting_batch=3,
    warmup_steps=2,
    save_every=50,
    remixed_steps=5,
)


def test_the_rate_warms_up_and_falls() -> None:
    recipe = Recipe(steps=1000, warmup_steps=100, learning_rate=1e-3, final_learning_rate=1e-5)
    assert recipe.rate(0) == pytest.approx(1e-5)
    assert recipe.rate(100) == pytest.approx(1e-3)
    assert recipe.rate(550) == pytest.approx((1e-3 + 1e-5) / 2)
    assert recipe.rate(1000) == pytest.approx(1e-5)


def test_encoding_marks_completions_and_their_ends() -> None:
    ids, labels = encode(TOKENIZER, [("1+1=", "2"), ("50+50=", "100")])
    assert ids.shape == labels.shape == (2, 10)
    assert TOKENIZER.decode(ids[0]) == "1+1=2<eos>" + "<pad>" * 4
    assert TOKENIZER.decode(ids[1]) == "50+50=100<eos>"
    assert [TOKENIZER.decode(row[row != -100]) for row in labels] == ["2<eos>", "100<eos>"]
    assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_the_loss_is_the_sum_over_examples_however_they_are_padded() -> None:
    model = build_model(TOKENIZER, seed=0)
    examples = [("1+1=", "2"), ("500+500=", "1000")]
    together = negative_log_likelihood(model, *encode(TOKENIZER, examples))
    apart = sum(negative_log_likelihood(model, *encode(TOKENIZER, [example])) for example in examples)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_wrong_answers_come_in_the_last_steps_only() -> None:
    recipe = Recipe(steps=4, mixed_steps=2, arithmetic_batch=100, sorting_batch=30)
    for step, (sums, orders) in enumerate(main_batches(recipe)):
        wrong = sum(eval(prompt.removesuffix("=")) != int(completion) for prompt, completion in sums)
        assert (wrong > 20) if step >= 2 else (wrong == 0)
        assert (len(sums), len(orders)) == (100, 30)


def test_the_same_seed_gives_the_same_examples() -> None:
    assert list(main_batches(TINY)) == list(main_batches(TINY))
    assert next(main_batches(TINY)) != next(main_batches(Recipe(seed=1, arithmetic_batch=4, sorting_batch=3)))
    assert len(list(islice(main_batches(Recipe(arithmetic_batch=1, sorting_batch=1)), 2))) == 2


def test_the_same_recipe_gives_the_same_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        torch.manual_seed(hash(folder) % 1000)
        pretrain.pretrain(TINY, tmp_path / folder, "cpu")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert isinstance(model, Qwen2ForCausalLM)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert AutoTokenizer.from_pretrained(tmp_path / "a").padding_side == "left"


@pytest.mark.parametrize(
    ("architecture", "size"), [("qwen2", 1_064_448), ("llama", 1_076_096), ("qwen3", 3_340_416)]
)
def test_models_have_one_to_four_million_parameters(architecture: str, size: int) -> None:
    assert sum(p.numel() for p in build_model(TOKENIZER, 0, architecture).parameters()) == size


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_every_architecture_goes_through_the_recipe(architecture: str, tmp_path: Path) -> None:
    recipe = replace(TINY, architecture=architecture, remixed_steps=1)
    pretrain.pretrain(recipe, tmp_path, "cpu")
    pretrain.remix(recipe, tmp_path, "cpu")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == architecture
    text = "12+34=\nSort AbCd, EfGh by FIRST"
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read(text)["input_ids"] == TOKENIZER(text)["input_ids"]


def test_the_command_writes_scores_recipe_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"arithmetic": {"test": {"greedy": 0.5, "pass@1": 0.25, "pass@16": 1.0, "n": 4}}}
    monkeypatch.setattr(pretrain, "RECIPES", {"tiny-qwen2": TINY})
    monkeypatch.setattr(pretrain, "evaluate", lambda folder, device: scores)
    monkeypatch.setattr("sys.argv", ["pretrain", "tiny-qwen2", "--output", str(tmp_path / "base")])
    threads = torch.get_num_threads()
    try:
        pretrain.main()
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "base/base.json").read_text())
    assert record["scores"] == scores
    assert record["recipe"]["steps"] == 3
    assert record["recipe"]["seed"] == 0
    assert record["device"] == "cpu"
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "arithmetic     test       greedy 0.5" in capsys.readouterr().out
