"""Tickets on the hub, through huggingface_hub's real client and a stand-in server."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stand_in_hub import TOKEN, start

from multiticket import bases
from multiticket.mask import Mask
from multiticket.sparse import attach
from multiticket.ticket import Ticket, card, hub

Run = Callable[..., subprocess.CompletedProcess[str]]
SCORES = {
    "before": {"pass@1": 0.38, "interval": [0.35, 0.41], "greedy": 0.5, "greedy_interval": [0.45, 0.55], "n": 512},
    "after": {
        "pass@1": 0.724, "interval": [0.693, 0.752], "greedy": 0.9, "greedy_interval": [0.87, 0.92], "n": 512,
        "samples": 4, "temperature": 1.0, "split": "test",
    },
}  # fmt: skip


def make(density: float = 0.01, **provenance: object) -> Ticket:
    model, _ = bases.load("tiny-qwen2")
    attachment = attach(model, Mask.random(model, density=density, seed=0))
    for values in attachment.parameters():
        values.data += 0.5
    told = {"task": "arithmetic", "model": "tiny-qwen2", "density": density, "steps": 50, "scores": SCORES}
    return attachment.ticket(**{**told, **provenance})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server, place = start()
    yield place
    server.shutdown()


@pytest.fixture
def run(address: str, tmp_path: Path) -> Run:
    """Python code, or words of the command, in a process whose hub is the stand-in."""
    home = tmp_path / "home"

    def process(
        code: str | list[str], token: str | None = TOKEN, **more: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        environment |= {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
        }
        environment |= {"HF_TOKEN": token} if token else {}
        words = ["-c", textwrap.dedent(code)] if isinstance(code, str) else ["-m", "multiticket", *code]
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    return process


def test_there_and_back(run: Run, tmp_path: Path) -> None:
    make().save(tmp_path / "small.safetensors")
    make(0.05).save(tmp_path / "large.safetensors")
    done = run(
        """
        import multiticket as mt
        from huggingface_hub import ModelCard, hf_hub_download
        small, large = mt.Ticket.load("small.safetensors"), mt.Ticket.load("large.safetensors")
        first = small.push_to_hub("me/sums", license="apache-2.0")
        assert "/me/sums/commit/" in first, first
        there = hf_hub_download("me/sums", "ticket.safetensors")
        assert open(there, "rb").read() == open("small.safetensors", "rb").read()
        sha = first.rsplit("/", 1)[1]
        large.push_to_hub("me/sums")  # uploaded as a large file
        assert mt.Ticket.load("me/sums").nnz == large.nnz
        assert mt.Ticket.load("me/sums", revision=sha).nnz == small.nnz
        assert mt.Ticket.load(f"me/sums@{sha}").nnz == small.nnz
        small.push_to_hub("me/sums", revision="other")
        assert mt.Ticket.load("me/sums@other").nnz == small.nnz
        assert mt.Ticket.load("me/sums").nnz == large.nnz
        model, _ = mt.bases.load("tiny-qwen2")
        with mt.Ticket.load("me/sums").applied(model):
            pass
        data = ModelCard.load("me/sums").data
        assert data.library_name == "multiticket", data
        assert data.license == "apache-2.0", "kept by the second push"
        assert data.model_name == "sums"
        assert {r.metric_type: r.metric_value for r in data.eval_results} == {"pass@1": 0.724, "greedy": 0.9}
        """
    )
    assert done.returncode == 0, done.stderr


def test_what_its_owner_wrote_on_a_card_is_kept(run: Run, tmp_path: Path) -> None:
    make().save(tmp_path / "t.safetensors")
    done = run(
        """
        import multiticket as mt
        from huggingface_hub import HfApi, ModelCard
        ticket = mt.Ticket.load("t.safetensors")
        ticket.push_to_hub("me/cards")
        card = ModelCard.load("me/cards")
        card.text = card.text.replace("# cards", "# My sums") + "\\nThanks to nobody."
        card.data.language = "en"
        card.data.tags.append("mine")
        HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="me/cards")
        ticket.push_to_hub("me/cards", base="owner/base")
        card = ModelCard.load("me/cards")
        assert card.text.strip().startswith("# My sums"), card.text
        assert card.text.strip().endswith("Thanks to nobody.")
        assert card.text.count("multiticket: begin") == card.text.count("## Use") == 1
        assert card.data.language == "en" and card.data.base_model == "owner/base"
        assert card.data.base_model_relation == "adapter" and "mine" in card.data.tags
        """
    )
    assert done.returncode == 0, done.stderr


def test_the_commands(run: Run, tmp_path: Path) -> None:
    make().save(tmp_path / "t.safetensors")
    pushed = run(["push", "t.safetensors", "me/by-command", "--private"])
    assert pushed.returncode == 0, pushed.stderr
    assert "/me/by-command/commit/" in pushed.stdout.replace("\n", "")
    pulled = run(["pull", "me/by-command"])
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "by-command.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()
    again = run(["pull", "me/by-command"])
    assert (again.returncode, "already exists" in again.stderr) == (2, True)
    seen = run(["inspect", "me/by-command"])
    assert (seen.returncode, "arithmetic" in seen.stdout) == (0, True), seen.stderr
    offline = run(["inspect", "me/by-command"], HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    measured = run(["eval", "--ticket", "me/by-command", "--problems", "2", "--samples", "1"])
    assert measured.returncode == 0, measured.stderr
    stranger = run(
        ["pull", "me/by-command", "--output", "x.safetensors"], token=None, HF_HOME=str(tmp_path / "other")
    )
    assert stranger.returncode == 2
    assert "a private one and you are not logged in" in " ".join(stranger.stderr.split())
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        (
            "me/nothing",
            TOKEN,
            "no file me/nothing, and the hub did not give that ticket: it has no repository",
        ),
        ("me/empty", TOKEN, "the repository has no ticket.safetensors"),
        ("me/empty@nowhere", TOKEN, "at revision nowhere: there is no such revision"),
    ],
)
def test_what_cannot_be_had_is_said(run: Run, name: str, token: str, message: str) -> None:
    done = run(
        f"""
        import multiticket as mt
        from huggingface_hub import HfApi
        HfApi().create_repo("me/empty", exist_ok=True)
        try:
            mt.Ticket.load("{name}")
        except ValueError as error:
            print(error)
        """,
        token,
    )
    assert message in done.stdout, done.stderr


def test_pushing_without_a_token(run: Run, tmp_path: Path) -> None:
    make().save(tmp_path / "t.safetensors")
    done = run(["push", "t.safetensors", "me/refused"], token="hf_reads")
    assert done.returncode == 2
    assert "you are not logged in with a token that may write there" in " ".join(done.stderr.split())
    assert "hf_reads" not in done.stderr


def test_a_local_base_must_be_named(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(ValueError, match=r"a local folder: give its name on the hub"):
        make(model=str(tmp_path / "base")).push_to_hub("me/t")
    with pytest.raises(ValueError, match="does not name its base"):
        make(model=None).push_to_hub("me/t")
    with pytest.raises(ValueError, match="named owner/name, not 'sums'"):
        make().push_to_hub("sums")


def test_no_path_of_this_machine_is_shared() -> None:
    told = {
        "model": "/home/ann/base",
        "task": "my:score@/home/ann/data.jsonl,test=../held/out.jsonl",
        "from_ticket": "/home/ann/runs/a/ticket.safetensors",
        "nested": [{"path": "~/x/y"}],
        "rate": 1e-3,
        "adapter": "owner/name",
    }
    assert hub.shareable(told, "owner/base") == {
        "model": "owner/base",
        "task": "my:score@data.jsonl,test=out.jsonl",
        "from_ticket": "ticket.safetensors",
        "nested": [{"path": "y"}],
        "rate": 1e-3,
        "adapter": "owner/name",
    }


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("me/name", ("me/name", None)),
        ("me/name@v1", ("me/name", "v1")),
        ("me/name@refs/pr/1", ("me/name", "refs/pr/1")),
        ("me/t.safetensors", None),
        ("name", None),
        ("/me/name", None),
        ("./me/name", None),
        ("a/b/c", None),
    ],
)
def test_names(name: str, found: object) -> None:
    assert hub.repository(name) == found


def test_the_card_says_what_it_is_and_how_to_use_it() -> None:
    text = card.describe(make(), "me/sums", "Qwen/Qwen2.5-0.5B", on_hub=True)
    assert (
        "10,620 of 1,064,448 parameters (1.00%) of [Qwen/Qwen2.5-0.5B](https://huggingface.co/Qwen/" in text
    )
    assert "| with this ticket | 72.4% (69.3% to 75.2%) | 90.0% (87.0% to 92.0%) |" in text
    assert "| base | 38.0% (35.0% to 41.0%) |" in text
    assert 'mt.Ticket.load("me/sums")' in text
    assert 'dtype="bfloat16"' in text
    bare = card.describe(make(scores=None, task=None), "me/sums", "tiny-qwen2", on_hub=False)
    assert "pass@1" not in bare


def test_the_cards_lines_run(tmp_path: Path) -> None:
    ticket = make()
    ticket.save(tmp_path / "t.safetensors")
    text = card.describe(ticket, str(tmp_path / "t.safetensors"), "tiny-qwen2", on_hub=False)
    code = text.split("```python\n")[1].split("```")[0].replace('tokenizer("...",', 'tokenizer("1+2=",')
    exec(compile(code, "card", "exec"), {})


@pytest.mark.parametrize("odd", [1, None, "0.4", [], [0.1], [0.1, 0.2, 0.3], ["a", "b"], {"a": 1}])
def test_a_card_leaves_out_what_is_no_interval(odd: object) -> None:
    """Provenance is whatever its author wrote."""
    ticket = make(scores={"before": SCORES["before"], "after": {**SCORES["after"], "interval": odd}})
    assert "| with this ticket | 72.4% | 90.0% (87.0% to 92.0%) |" in card.describe(
        ticket, "me/x", "tiny-qwen2", False
    )
    assert [result["metric_args"]["interval_95"] for result in card.results(ticket)] == [[], [0.87, 0.92]]
