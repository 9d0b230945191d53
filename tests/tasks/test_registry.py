"""Tasks by name, and the user's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from multiticket import tasks

OWN = """
from multiticket.tasks.protocol import as_dataset

class Echo:
    name = "echo"
    max_completion_tokens = 4
    def problems(self, split):
        return as_dataset([("a", "a")])
    def score(self, completion, answer):
        return float(completion == answer)
    def correct(self, completion, answer):
        return completion == answer

echo = Echo()
number = 3

class Unfinished:
    name = "unfinished"
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tasks_for_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_tasks_for_test", raising=False)


@pytest.mark.parametrize("name", ["arithmetic", "alphabet_sort", "alphabet_sort_turns", "gsm8k", "math"])
def test_shipped_tasks(name: str) -> None:
    task = tasks.get(name)
    assert isinstance(task, tasks.Task)
    assert task.name == name


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown task 'poetry': choose one of arithmetic, alphabet_sort"):
        tasks.get("poetry")


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("attribute", ["echo", "Echo"])
def test_own_task(attribute: str) -> None:
    task = tasks.get(f"own_tasks_for_test:{attribute}")
    assert task.name == "echo"
    assert task.problems("train")[0] == {"prompt": "a", "answer": "a"}


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    "reference", ["own_tasks_for_test:missing", "no_such_module_here:task", ":task", "own_tasks_for_test:"]
)
def test_an_own_task_that_cannot_be_loaded(reference: str) -> None:
    with pytest.raises(ValueError, match="Cannot load the task"):
        tasks.get(reference)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("attribute", ["number", "Unfinished"])
def test_what_is_not_a_task_is_refused(attribute: str) -> None:
    with pytest.raises(ValueError, match="is not a task: it needs name"):
        tasks.get(f"own_tasks_for_test:{attribute}")


def test_importing_tasks_imports_neither_torch_nor_datasets() -> None:
    code = "import sys, multiticket.tasks; sys.exit(bool({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
