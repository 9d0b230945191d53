"""``multiticket compare`` as a person types it, on results as evaluation writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multiticket import config
from multiticket.cli import main
from multiticket.runs.folder import RunFolder


def _write(path: Path, chance: Any, seed: int = 0, samples: int = 4, **changes: Any) -> Path:
    """A file of results for problems solved with these chances."""
    generator = np.random.default_rng(seed)
    lines = []
    for index, p in enumerate(chance):
        line = {"index": index, "prompt": f"{index}+1=", "answer": str(index + 1)}
        line["correct"] = [bool(right) for right in generator.uniform(size=samples) < p]
        line["reward"] = float(p)
        line["greedy_correct"] = bool(generator.uniform() < p)
        line["greedy_completion"] = "?"
        lines.append({**line, **changes})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _run_folder(path: Path, chance: Any, seed: int, **settings: Any) -> Path:
    _write(path / "eval-after.jsonl", chance, seed)
    RunFolder(path).create(config.build(settings))
    return path


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, output.out, output.err


@pytest.fixture
def ease() -> Any:
    return np.random.default_rng(7).uniform(0.2, 0.6, size=400)


def test_two_files(ease: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _write(tmp_path / "a.jsonl", ease), _write(tmp_path / "b.jsonl", ease + 0.2, seed=1)
    code, out, _ = _run(["compare", str(a), str(b), "--json"], capsys)
    assert code == 0
    found = json.loads(out)
    rights = [
        np.mean([sum(json.loads(line)["correct"]) / 4 for line in path.read_text().splitlines()])
        for path in (a, b)
    ]
    assert (found["pass@1"]["a"], found["pass@1"]["b"]) == pytest.approx(tuple(rights))
    assert found["pass@1"]["interval"][0] < 0.2 < found["pass@1"]["interval"][1]
    assert found["pass@1"]["verdict"] == "B is not worse than A by 2 points or more; it is better"
    assert (found["n"], found["samples"], found["margin"]) == (400, [4, 4], 0.02)
    mcnemar = found["greedy"]["mcnemar"]
    assert mcnemar["only_b"] - mcnemar["only_a"] == round(400 * found["greedy"]["difference"])
    assert mcnemar["p_value"] < 1e-3

    _, out, _ = _run(["compare", str(b), str(a), "--margin", "0.05"], capsys)
    assert "pass@1: B is worse than A by more than 5 points." in out
    assert f"{100 * (rights[0] - rights[1]):+.1f}" in out


def test_several_runs_a_side(
    ease: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        _run_folder(tmp_path / f"full-{seed}", ease, seed)
        _run_folder(tmp_path / f"ticket-{seed}", ease, 10 + seed)
    monkeypatch.chdir(tmp_path)
    code, out, _ = _run(
        ["compare", "full-*", "ticket-0,ticket-1,ticket-2", "--margin", "0.1", "--json"], capsys
    )
    found = json.loads(out)
    assert code == 0
    assert len(found["a"]) == len(found["b"]) == 3
    assert found["pass@1"]["non_inferior"] is True
    assert "mcnemar" not in found["greedy"]
    _, out, _ = _run(["compare", "full-*", "ticket-*"], capsys)
    assert "intervals over problems and runs (3 and 3)" in out


def test_what_cannot_be_compared_is_refused(
    ease: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(Path("a.jsonl"), ease)
    _write(Path("short.jsonl"), ease[:-1])
    _write(Path("other.jsonl"), ease, prompt="something else")
    _write(Path("answers.jsonl"), ease, answer="0")
    Path("broken.jsonl").write_text('{"index": 0}\n')
    Path("text.txt").write_text("no JSON\n")
    Path("empty.jsonl").write_text("")
    _run_folder(Path("run"), ease, 0)
    _run_folder(Path("warm"), ease, 0, eval={"temperature": 2.0})
    RunFolder(Path("begun")).create(config.build({}))
    Path("nothing").mkdir()
    for arguments, says in (
        (["a.jsonl", "short.jsonl"], "hold 400 and 399 problems"),
        (["a.jsonl", "other.jsonl"], "differ in the prompt of problem 0"),
        (["a.jsonl", "answers.jsonl"], "differ in the answer of problem 0"),
        (["a.jsonl", "broken.jsonl"], "does not hold per-problem results"),
        (["a.jsonl", "text.txt"], "does not hold per-problem results"),
        (["a.jsonl", "empty.jsonl"], "holds no problems"),
        (["a.jsonl", "missing"], "There is no run folder or file of results at missing"),
        (["a.jsonl", "nothing"], "nothing holds no run"),
        (["run", "warm"], "different temperature (1.0 and 2.0)"),
        (["run", "begun"], "has no results yet"),
        (["run,run", "a.jsonl"], "names a run twice"),
        (["a.jsonl", "a.jsonl", "--margin", "2"], "The margin is a difference in accuracy"),
    ):
        code, out, err = _run(["compare", *arguments], capsys)
        assert (code, out) == (2, "")
        assert says in err
        assert len(err.splitlines()) == 1


def test_comparing_needs_no_torch(ease: Any, tmp_path: Path) -> None:
    a = _write(tmp_path / "a.jsonl", ease)
    code = (
        "import sys\nfrom multiticket.cli import main\n"
        f"try:\n    main(['compare', {str(a)!r}, {str(a)!r}])\nexcept SystemExit as stop:\n"
        "    assert not stop.code\nassert not {'torch', 'trl', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
