"""``multiticket theory`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_task import TASK

from multiticket.cli import main

COMMANDS = ("kl", "fisher", "subspace", "predict", "updates")


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["theory", *arguments])
    output = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, output.out, output.err


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from multiticket.cli import main\ntry: main(['theory', {!r}, '--help'])\n"
    code += "except SystemExit as stop: print('torch' in sys.modules, stop.code)"
    for command in COMMANDS:
        out = subprocess.run(
            [sys.executable, "-c", code.format(command)], capture_output=True, text=True, check=True
        ).stdout
        assert out.splitlines()[-1] == "False 0"
        assert "--json" in out


@pytest.fixture
def toy(toy_model_folder: Path) -> list[str]:
    return [
        str(toy_model_folder),
        "--task",
        "toy_task:TASK",
        "--problems",
        "6",
        "--group",
        "4",
        "--rank",
        "2",
    ]


def test_fisher(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "f.json", tmp_path / "f.svg"]
    options = ["--gradient", "score", "--json", str(files[0]), "--plot", str(files[1])]
    code, out, err = _run(["fisher", *toy, *options], capsys)
    assert code == 0, err
    found = json.loads(files[0].read_text())
    assert found["samples"] == found["rollouts"] == 24
    assert len(found["eigenvalues"]) == 24
    assert f"{found['effective_rank']['participation']:.1f}" in out
    assert "<svg" in files[1].read_text()
    first = files[0].read_text(), files[1].read_bytes()
    blocks = ["--memory", "0.0001"]
    assert _run(["fisher", *toy, *options], capsys)[0] == 0
    assert (files[0].read_text(), files[1].read_bytes()) == first
    assert _run(["fisher", *toy, *options, *blocks], capsys)[0] == 0
    streamed = json.loads(files[0].read_text())
    assert streamed["effective_rank"] == pytest.approx(found["effective_rank"], rel=1e-4)


def test_nought_problems_are_all_of_them(
    toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*toy, "--split", "test", "--problems", "0", "--group", "1", "--gradient", "score", "--json"]
    code, out, err = _run(["fisher", *words], capsys)
    assert code == 0, err
    assert json.loads(out)["rollouts"] == len(TASK.problems("test")) == 40


def test_subspace(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "s.json", tmp_path / "s.pdf"
    options = ["--masks", "random,embeddings", "--densities", "0.5,0.1", "--gradient", "score"]
    code, out, err = _run(["subspace", *toy, *options, "--json", str(file), "--plot", str(picture)], capsys)
    assert code == 0, err
    found = json.loads(file.read_text())
    assert {(row["mask"], row["density"]) for row in found["means"]} == {("random", 0.5), ("random", 0.1)}
    assert "left out: embeddings at 0.5" in out
    assert picture.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["kl"], "Give run folders, or both --before and --after."),
        (["kl", "--before", "tiny-qwen2"], "Give run folders, or both --before and --after."),
        (["kl", "nowhere"], "nowhere holds no run"),
        (["kl", "nowhere", "--task", "arithmetic"], "omit --task"),
        (["kl", "nowhere", "--plot", "picture.gif"], "--plot writes .svg, .png, .pdf, not '.gif'."),
        (["fisher", "--json", "no/such/folder/f.json"], "There is no folder no/such/folder"),
        (["fisher", "--gradient", "newton"], "give policy or score"),
        (["fisher", "--memory", "0"], "--memory must be a number of GiB above 0"),
        (["fisher", "--task", "chess"], "Unknown task 'chess'"),
        (
            ["fisher", "tiny-qwen2", "--ticket", "t.safetensors"],
            "Give one of MODEL, --ticket and --checkpoint",
        ),
        (["fisher", "--ticket", "t.safetensors"], "There is no ticket t.safetensors."),
        (["subspace", "--checkpoint", "run/checkpoints/step-2"], "There is no checkpoint run"),
        (["subspace", "--densities", "0.1,2"], "A density must be above 0 and at most 1, not 2."),
        (["subspace", "--densities", "few"], "--densities takes numbers separated by commas"),
        (["subspace", "--masks", "middle"], "There is no mask 'middle'"),
        (["predict", "nowhere"], "nowhere holds no run"),
        (["updates", "nowhere"], "nowhere holds no run"),
    ],
)
def test_mistakes(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(arguments, capsys)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_runs(toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from small_runs import small

    from multiticket.train.run import run_training

    runs = []
    for seed in range(4):
        config = small(
            toy_model_folder,
            steps=2,
            save_every=1,
            keep_last=2,
            eval_every=None,
            seed=seed,
            density=0.2 / (seed + 1),
        )
        run_training(config, tmp_path / f"toy-{seed}", show_progress=False)
        runs.append(str(tmp_path / f"toy-{seed}"))
    few = ["--problems", "5", "--group", "3"]
    for command, more in (("kl", []), ("updates", []), ("predict", ["--gradient", "score", "--rank", "2"])):
        files = [tmp_path / f"{command}.json", tmp_path / f"{command}.svg"]
        arguments = [command, *runs, *few, *more, "--json", str(files[0]), "--plot", str(files[1])]
        code, out, err = _run(arguments, capsys)
        assert code == 0, err
        assert all(f"toy-{seed}" in out for seed in range(4))
        assert len(json.loads(files[0].read_text())["runs"]) == 4
        assert "<svg" in files[1].read_text()
    code, out, err = _run(["kl", "--before", runs[0], "--after", runs[1], *few], capsys)
    assert code == 0, err
    assert "nats a completion" in out


def test_trained_states(toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run, its ticket and its last checkpoint are one state; the first checkpoint, the base and a full run others."""
    from small_runs import small

    from multiticket.train.run import run_training

    settings = {"steps": 2, "save_every": 1, "keep_last": 2, "eval_every": None}
    run, full = tmp_path / "toy", tmp_path / "full"
    run_training(small(toy_model_folder, **settings), run, show_progress=False)
    run_training(small(toy_model_folder, "full", **settings), full, show_progress=False)
    places = {
        "run": [str(run)],
        "ticket": ["--ticket", str(run / "ticket.safetensors")],
        "end": ["--checkpoint", str(run / "checkpoints" / "step-2")],
        "middle": ["--checkpoint", str(run / "checkpoints" / "step-1")],
        "base": [str(toy_model_folder), "--task", "toy_task:TASK"],
        "full": [str(full)],
    }
    few, found = ["--problems", "4", "--group", "3", "--rank", "1", "--gradient", "score"], {}
    for name, place in places.items():
        file = tmp_path / f"{name}.json"
        code, _, err = _run(["fisher", *place, *few, "--json", str(file)], capsys)
        assert code == 0, err
        found[name] = json.loads(file.read_text())
        assert found[name]["task"] == "toy_task:TASK"
    spectra = {name: tuple(one["eigenvalues"]) for name, one in found.items()}
    assert spectra["run"] == spectra["ticket"]
    assert spectra["run"] == pytest.approx(spectra["end"], rel=1e-4)
    assert len({spectra[name] for name in ("run", "middle", "base", "full")}) == 4
    file = tmp_path / "s.json"
    masks = ["--masks", "random", "--densities", "0.5", "--mask-seeds", "1", "--json", str(file)]
    code, _, err = _run(["subspace", *places["middle"], *few, *masks], capsys)
    assert code == 0, err
    assert json.loads(file.read_text())["samples"] == 12
