"""What holds for every command: help, mistakes, models, run folders and JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from multiticket.cli import app, main
from multiticket.cli.outputs import with_json_places

COMMANDS: dict[str, Any] = {}
for _name, _command in get_command(app).commands.items():  # type: ignore[attr-defined]
    if hasattr(_command, "commands"):
        COMMANDS.update({f"{_name} {inner}": one for inner, one in _command.commands.items()})
    else:
        COMMANDS[_name] = _command
TASK = ["--task", "toy_task:TASK", "--problems", "10", "--samples", "2"]


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    output = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, output.out, output.err


def _options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_h_and_json_and_its_help_is_a_sentence_about_each_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(capsys, *name.split(), "-h")[0] == 0
    assert name == "serve" or "--json" in _options(COMMANDS[name])
    for parameter in COMMANDS[name].params:
        assert parameter.help, (name, parameter.name)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_model_in_its_place_may_be_given_as_an_option_too(name: str) -> None:
    places = [
        str(parameter.metavar)
        for parameter in COMMANDS[name].params
        if not parameter.opts[0].startswith("--")
    ]
    assert not any("MODEL" in place or "BASE" in place for place in places) or "--model" in _options(
        COMMANDS[name]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--stepz", "3"], "See 'multiticket train --help'."),
        (["study", "status"], "See 'multiticket study status --help'."),
        (["theory", "kll"], "See 'multiticket theory --help'."),
        (["merge"], "See 'multiticket merge --help'."),
        (["trian"], "See 'multiticket --help'."),
        (["plan", "tiny-qwen2", "--model", "tiny-llama"], "Two models were given"),
        (["plan"], "Give a model"),
        (["diff", "tiny-qwen2"], "Give two models"),
        (["plan", "tiny-qwen2", "--json", "no/such/folder/plan.json"], "There is no folder"),
    ],
)
def test_a_mistake_names_the_right_help_and_exits_with_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["study"], ["theory"]])
def test_without_a_command_help_is_printed_and_nothing_else(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "Usage: multiticket" in out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("train --arm ", {"full", "ticket", "lora"}),
        ("eval --split t", {"train", "test"}),
        ("insp", {"inspect"}),
    ],
)
def test_a_shell_is_told_how_words_go_on(words: str, found: set[str]) -> None:
    environment = {
        **os.environ,
        "_MULTITICKET_COMPLETE": "complete_bash",
        "COMP_WORDS": f"multiticket {words}",
        "COMP_CWORD": str(len(words.split()) + (1 if words.endswith(" ") else 0)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "multiticket"], env=environment, capture_output=True, text=True, check=False
    )
    assert found <= {*done.stdout.split()}, done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a", "--json"], ["a", "--json=-"]),
        (["--json", "a.safetensors", "b"], ["--json=-", "a.safetensors", "b"]),
        (["--json", "a.json", "b"], ["--json=a.json", "b"]),
        (["--json", "-", "b"], ["--json=-", "b"]),
        (["--json=out", "b"], ["--json=out", "b"]),
        (["--json", "--base", "b"], ["--json=-", "--base", "b"]),
        (["--", "--json"], ["--", "--json"]),
    ],
)
def test_json_stands_alone_or_before_its_file(words: list[str], found: list[str]) -> None:
    assert with_json_places(words) == found


def test_json_goes_to_a_file_beside_the_table_or_alone_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    code, table, _ = _run(capsys, "plan", "--model", "tiny-qwen2", "--json", str(file))
    assert code == 0
    assert "peak in training" in table
    for form in (["--json"], ["--json", "-"]):
        assert json.loads(_run(capsys, "plan", "tiny-qwen2", *form)[1]) == json.loads(file.read_text())


def test_a_runs_folder_is_taken_wherever_what_it_made_is(
    toy_runs: dict[str, Path], toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {arm: tmp_path / arm for arm in toy_runs}
    for arm, folder in toy_runs.items():
        shutil.copytree(folder, runs[arm])
    made = {"ticket": "ticket.safetensors", "lora": "adapter", "full": "model"}

    def scores(*arguments: str) -> dict[str, Any]:
        code, out, err = _run(capsys, "eval", *arguments, *TASK, "--json")
        assert code == 0, err
        found = json.loads(out)
        return {name: found[name] for name in ("pass@1", "greedy", "reward", "n", "samples")}

    for arm, run in runs.items():
        after = json.loads((run / "result.json").read_text())["eval"]["after"]
        assert scores(str(run)).items() <= after.items()
        assert scores("--model", str(run)) == scores(str(run))
        assert (run / made[arm]).exists()
    assert scores("--ticket", str(runs["ticket"])) == scores(str(runs["ticket"]))
    assert scores("--adapter", str(runs["lora"])) == scores(str(runs["lora"]))
    ticket = str(runs["ticket"])
    assert _run(capsys, "inspect", ticket, "--json")[0] == 0
    assert _run(capsys, "inspect", ticket, str(toy_model_folder))[0] == 0
    assert _run(capsys, "overlap", ticket, ticket)[0] == 0
    assert _run(capsys, "merge", ticket, "--output", str(tmp_path / "merged"))[0] == 0
    assert _run(capsys, "compose", ticket, "--output", str(tmp_path / "composed.safetensors"))[0] == 0
    more = ["--steps", "1", "--rollouts", "16", "--group", "4", "--output", str(tmp_path / "on"), *TASK]
    code, _, err = _run(capsys, "train", "--from-ticket", ticket, *more)
    assert code == 0, err
    code, _, err = _run(capsys, "eval", "--ticket", str(runs["lora"]), *TASK)
    assert (code, "(the run made adapter)" in err) == (2, True)
    for folder in (runs["lora"], tmp_path):
        assert _run(capsys, "inspect", str(folder))[0] == 2


def test_the_folder_of_a_run_stands_for_the_whole_model_that_it_made_wherever_a_model_is_given(
    toy_runs: dict[str, Path], toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = tmp_path / "full", str(toy_model_folder)
    shutil.copytree(toy_runs["full"], run)
    ticket = str(tmp_path / "on" / "ticket.safetensors")

    def found(*arguments: str) -> Any:
        code, out, err = _run(capsys, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    assert found("diff", base, str(run)) == found("diff", base, str(run / "model"))
    assert found("diff", str(run), "--model", base)["changed"] > 0
    plans = [found("plan", str(place), "--batch", "1") for place in (run, run / "model")]
    assert plans[0]["parameters"] == plans[1]["parameters"]
    assert plans[0]["arms"] == plans[1]["arms"]
    more = ["--steps", "1", "--rollouts", "16", "--group", "4", "--learning-rate", "0.01", *TASK]
    trained = found("train", "--model", str(run), *more, "--output", str(tmp_path / "on"))
    after = json.loads((run / "result.json").read_text())["eval"]["after"]
    assert {name: trained["eval"]["before"][name] for name in ("pass@1", "greedy", "reward")} == {
        name: after[name] for name in ("pass@1", "greedy", "reward")
    }
    assert found("inspect", ticket, str(run))["norms_of"] == "change"
    scores = [found("eval", *words, "--ticket", ticket, *TASK) for words in ([str(run)], [])]
    assert scores[0]["reward"] == scores[1]["reward"]
    found("merge", ticket, "--model", str(run), "--output", str(tmp_path / "merged"))
    assert _run(capsys, "merge", ticket, base, "--output", str(tmp_path / "none"))[0] == 2


def test_a_run_that_made_no_whole_model_is_none(
    toy_runs: dict[str, Path], toy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = str(toy_runs["ticket"]), str(toy_model_folder)
    for command in (
        ["diff", base, run],
        ["plan", run],
        ["train", run, *TASK, "--output", str(tmp_path / "new")],
        ["merge", run, run, "--output", str(tmp_path / "new")],
    ):
        code, _, err = _run(capsys, *command)
        assert code == 2
        assert f"makes no whole model: give its base, {base}" in err
    assert not (tmp_path / "new").exists()


def test_a_run_that_has_made_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"arm": "ticket", "task": "arithmetic"}))
    code, _, err = _run(capsys, "eval", str(tmp_path))
    assert code == 2
    assert "has no result yet" in err


@pytest.mark.parametrize(
    "command", [["eval", "no-one/no-model"], ["plan", "no-one/no-model"], ["train", "no-one/no-model"]]
)
def test_what_cannot_be_loaded_offline_is_said_in_whole_sentences(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    code, _, err = _run(capsys, *command)
    assert code == 2
    assert err.splitlines()[-1].endswith(
        "it is not in the local cache, and HF_HUB_OFFLINE keeps this process offline."
    )
    assert "http" not in err
