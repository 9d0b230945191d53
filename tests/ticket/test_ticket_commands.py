"""multiticket inspect, overlap, merge, compose, diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ticket_models import bits, make_ticket, same_bits

from multiticket.cli import main
from multiticket.mask import Mask
from multiticket.ticket import Ticket, compose


@pytest.fixture
def base(toy_model_folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(toy_model_folder, dtype="auto")


@pytest.fixture
def tickets(base: torch.nn.Module, toy_model_folder: Path, tmp_path: Path) -> list[Path]:
    """Two parts of seed 0, and seed 1; all name their base."""
    paths = []
    for number, (seed, part) in enumerate([(0, 0), (0, 1), (1, 0)]):
        ticket = make_ticket(base, Mask.random(base, 0.05, seed=seed, part=part), number)
        ticket.provenance = {"model": str(toy_model_folder), "task": "arithmetic", "note": "[bold]\x1b[31m"}
        paths.append(tmp_path / f"t{number}.safetensors")
        ticket.save(paths[-1])
    return paths


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()  # what fixtures printed
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(exit_.value.code or 0), output.out, output.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_inspect(
    capsys: pytest.CaptureFixture[str], tickets: list[Path], base: torch.nn.Module, toy_model_folder: Path
) -> None:
    found = run_json(capsys, "inspect", tickets[0])
    ticket = Ticket.load(tickets[0])
    assert found["nnz"] == ticket.nnz
    assert found["rules"][0]["density"] == 0.05
    assert found["fingerprints"] == [ticket.fingerprint]
    assert found["provenance"]["task"] == "arithmetic"
    assert found["norms_of"] == "change"
    weights = dict(base.named_parameters())
    squared = sum(
        float(
            (
                ticket.sections[0].values[n].double()
                - weights[n].detach().reshape(-1)[ticket.mask.indices(n)].double()
            )
            .square()
            .sum()
        )
        for n in ticket.mask.names
        if n.startswith("model.layers.1.")
    )
    assert found["layers"]["layer 1"]["norm"] == pytest.approx(squared**0.5, rel=1e-9)
    assert list(found["layers"]) == ["embeddings", "layer 0", "layer 1", "norms"]
    code, out, _ = run(capsys, "inspect", tickets[0], "--base", toy_model_folder)
    assert code == 0
    assert "layer 1" in out
    assert "█" in out
    assert "[bold]" in out
    assert "\x1b[31m" not in out


def test_inspect_without_the_base(
    capsys: pytest.CaptureFixture[str], tickets: list[Path], tmp_path: Path, base: torch.nn.Module
) -> None:
    ticket = Ticket.load(tickets[0])
    ticket.provenance = {}
    ticket.save(tmp_path / "alone.safetensors")
    assert run_json(capsys, "inspect", tmp_path / "alone.safetensors")["norms_of"] == "values"
    code, out, _ = run(capsys, "inspect", tmp_path / "alone.safetensors")
    assert code == 0
    assert "give --model to see the change" in " ".join(out.split())
    code, _, err = run(capsys, "inspect", tickets[0], "--base", "tiny-qwen2")
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_overlap(capsys: pytest.CaptureFixture[str], tickets: list[Path]) -> None:
    found = run_json(capsys, "overlap", *tickets, "--by-tensor")
    assert found["intersection"][0][1] == 0
    assert found["jaccard"][0][0] == 1
    assert found["jaccard"][0][2] == found["jaccard"][2][0]
    assert found["expected"][0][2] == pytest.approx(0.05 / 1.95, rel=0.02)
    assert abs(found["z"][0][2]) < 4
    assert "model.norm.weight" in found["tensors"]
    code, out, _ = run(capsys, "overlap", *tickets)
    assert code == 0
    assert "0.00000" in out
    code, _, err = run(capsys, "overlap", tickets[0])
    assert (code, err) == (2, "multiticket: Give at least two tickets.\n")


def test_a_run_folder_stands_for_its_ticket(
    capsys: pytest.CaptureFixture[str], tickets: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    tickets[0].rename(tmp_path / "run" / "ticket.safetensors")
    assert run_json(capsys, "overlap", tmp_path / "run", tickets[2])["nnz"][0] > 0
    (tmp_path / "none").mkdir()
    code, _, err = run(capsys, "inspect", tmp_path / "none")
    assert code == 2
    assert "without a ticket.safetensors" in err


def test_compose_and_merge(
    capsys: pytest.CaptureFixture[str],
    tickets: list[Path],
    tmp_path: Path,
    base: torch.nn.Module,
    toy_model_folder: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    whole = tmp_path / "whole.safetensors"
    assert run_json(capsys, "compose", tickets[0], tickets[1], "--output", whole)["collisions"] == 0
    code, _, err = run(capsys, "compose", tickets[0], tickets[2], "--output", tmp_path / "x")
    assert code == 2
    assert "positions belong to more than one" in err
    assert not (tmp_path / "x").exists()
    code, out, _ = run(
        capsys, "compose", tickets[0], tickets[2], "--output", tmp_path / "x", "--collisions", "last"
    )
    assert code == 0
    assert "collided" in out
    code, _, err = run(capsys, "compose", tickets[0], tickets[1], "--output", whole)
    assert code == 2
    assert "already exists" in err
    done = run_json(capsys, "merge", whole, "--model", toy_model_folder, "--output", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    Ticket.load(whole).merge(base)
    assert same_bits(bits(merged), bits(base))
    assert done["values"] == Ticket.load(whole).nnz
    code, out, _ = run(capsys, "merge", tickets[0], "--output", tmp_path / "of its own base")
    assert code == 0
    code, _, err = run(capsys, "merge", tickets[0], "--model", "no/such-model", "--output", tmp_path / "y")
    assert code == 2
    assert "neither a shipped base" in err
    code, _, err = run(capsys, "merge", whole, "--output", tmp_path / "z")
    assert code == 0  # both parts name the base
    assert same_bits(bits(AutoModelForCausalLM.from_pretrained(tmp_path / "z", dtype="auto")), bits(base))
    assert run_json(capsys, "inspect", whole)["norms_of"] == "change"


def test_a_ticket_that_names_no_base(
    capsys: pytest.CaptureFixture[str], tickets: list[Path], tmp_path: Path
) -> None:
    loaded = [Ticket.load(path) for path in tickets[:2]]
    for number, ticket in enumerate(loaded):
        ticket.provenance = {**ticket.provenance, "model": f"one/of-{number}"}
    compose(loaded).save(tmp_path / "of two")
    loaded[0].provenance = {}
    loaded[0].save(tmp_path / "of none")
    for name in ("of two", "of none"):
        assert "model" not in Ticket.load(tmp_path / name).told
        for command in (
            ["merge", tmp_path / name, "--output", tmp_path / "y"],
            ["eval", "--ticket", tmp_path / name],
        ):
            code, _, err = run(capsys, *command)
            assert code == 2
            assert "does not name its base; give it" in err
    assert not (tmp_path / "y").exists()


def test_diff(
    capsys: pytest.CaptureFixture[str],
    tickets: list[Path],
    tmp_path: Path,
    base: torch.nn.Module,
    toy_model_folder: Path,
) -> None:
    ticket = Ticket.load(tickets[0])
    before = bits(base)
    ticket.merge(base)
    base.save_pretrained(tmp_path / "tuned")
    output = tmp_path / "changed.safetensors"
    found = run_json(capsys, "diff", toy_model_folder, tmp_path / "tuned", "--output", output)
    assert found["changed"] == found["kept"] == ticket.nnz
    assert found["sparsity"] == pytest.approx(1 - ticket.nnz / found["numel"])
    changed = Ticket.load(output)
    assert all(torch.equal(changed.mask.indices(n), ticket.mask.indices(n)) for n in ticket.mask.names)
    from transformers import AutoModelForCausalLM

    fresh = AutoModelForCausalLM.from_pretrained(toy_model_folder, dtype="auto")
    with changed.applied(fresh):
        assert same_bits(bits(fresh), bits(base))
    assert same_bits(bits(fresh), before)
    code, out, _ = run(capsys, "diff", toy_model_folder, tmp_path / "tuned", "--top", "0.001")
    assert code == 0
    assert "sparsity" in out
    code, _, err = run(capsys, "diff", toy_model_folder, toy_model_folder)
    assert code == 2
    assert "does not differ" in err


def test_mistakes_get_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tickets: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(tickets[0].read_bytes()[:-3])
    for arguments in (
        ["inspect", broken],
        ["inspect", tmp_path / "missing"],
        ["overlap", broken, tickets[0]],
        ["merge", broken, "--output", tmp_path / "m"],
        ["compose", broken, tickets[0], "--output", tmp_path / "c"],
        ["compose", tickets[0], tickets[1], "--output", tmp_path / "c", "--collisions", "sum"],
        ["diff", tmp_path / "missing", tmp_path / "missing", "--output", tmp_path / "d"],
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1
    assert not any((tmp_path / name).exists() for name in "mcd")
