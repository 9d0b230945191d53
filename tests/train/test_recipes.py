"""Every recipe runs, with a tiny model in its model's place and tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multiticket import config as settings
from multiticket.train.run import run_training

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
TINY = {
    "steps": 2,
    "rollouts": 4,
    "group": 2,
    "micro_batch": 2,
    "max_completion_tokens": 3,
    "eval": {"problems": 2, "samples": 1},
}


@pytest.fixture
def _local_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task, columns in (("gsm8k", ("question", "answer")), ("math", ("problem", "solution"))):
        folder = tmp_path / task
        folder.mkdir()
        for split, first, last in (("train", 0, 520), ("test", 520, 525)):
            rows = [dict(zip(columns, (f"{n}=", rf"\boxed{{{n}}}"), strict=True)) for n in range(first, last)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setenv(f"MULTITICKET_{task.upper()}", str(folder))


@pytest.mark.usefixtures("_local_problems")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_end_to_end(recipe: Path, toy_model_folder: Path, tmp_path: Path) -> None:
    run = settings.load(recipe, {**TINY, "model": str(toy_model_folder)})
    result = run_training(run, tmp_path / "run", show_progress=False)
    assert (result["task"], result["arm"], result["steps"]) == (run.task, run.arm, 2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "paper-alphabet_sort",
            ("Qwen/Qwen2.5-0.5B-Instruct", "alphabet_sort_turns@2", 512, 16, 128, 150, 0.7),
        ),
        ("paper-gsm8k", ("Qwen/Qwen2.5-0.5B", "gsm8k", 512, 16, 1024, 100, 0.9)),
        ("paper-math", ("Qwen/Qwen2.5-1.5B", "math", 512, 8, 2048, 100, 0.9)),
    ],
)
def test_the_papers_recipes_have_its_numbers(recipe: str, expected: tuple[object, ...]) -> None:
    run = settings.load(next(path for path in RECIPES if path.stem == recipe), {})
    sizes = (run.model, run.task, run.rollouts, run.group, run.max_completion_tokens, run.steps)
    assert (*sizes, run.eval.temperature) == expected
    assert (run.density, run.learning_rate, run.temperature, run.clip_norm, run.weight_decay) == (
        0.01,
        1e-4,
        1,
        1,
        0.01,
    )
