"""``multiticket push, pull, import-shira``: tickets on the hub, and SHiRA adapters as tickets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from multiticket.cli.outputs import Command, Json, give, refuse_unwritable

TicketPath = Annotated[Path, typer.Argument(help="A ticket file, or a run folder that holds one.")]
Repo = Annotated[str, typer.Argument(help="owner/name on the hub.")]


def register(app: typer.Typer) -> None:
    app.command("push", cls=Command)(push)
    app.command("pull", cls=Command)(pull)
    app.command("import-shira", cls=Command)(import_shira)


def push(
    ticket: TicketPath,
    repo: Repo,
    base: Annotated[
        str | None, typer.Option(help="The base's name on the hub. Default: the one that the ticket names.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility of a new repository.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The branch; default: main.")] = None,
    message: Annotated[str | None, typer.Option(help="The commit message.")] = None,
    license: Annotated[str | None, typer.Option(help="License of the values, such as apache-2.0.")] = None,
    json: Json = None,
) -> None:
    """Upload a ticket and its model card to the hub."""
    from multiticket import Ticket
    from multiticket.cli.ticket_tables import show
    from multiticket.runs.kept import ticket_file

    refuse_unwritable(json)
    loaded = Ticket.load(ticket_file(ticket))
    address = loaded.push_to_hub(repo, base, private, revision, message, license)
    give({"repo": repo, "commit": address}, json, lambda: show(f"Pushed {ticket} to {repo}: {address}"))


def pull(
    repo: Annotated[str, typer.Argument(help="owner/name on the hub, or owner/name@revision.")],
    revision: Annotated[str | None, typer.Option(help="A commit, branch or tag.")] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write; default NAME.safetensors.")] = None,
    json: Json = None,
) -> None:
    """Download a ticket from the hub and verify it."""
    from multiticket import Ticket
    from multiticket.cli.ticket_tables import facts, facts_table, show
    from multiticket.ticket import hub
    from multiticket.ticket.atomic import replacing

    refuse_unwritable(json, output)
    found = hub.repository(repo)
    if found is None:
        raise ValueError(f"{repo} is not named owner/name, as on the hub, or is a file that is here already.")
    name, named_revision = found
    output = output or Path(f"{name.split('/')[1]}.safetensors")
    if output.exists():
        raise ValueError(f"{output} already exists; choose another --output.")
    cached = hub.download(name, revision or named_revision)
    ticket = Ticket.load(cached)  # what cannot be read is not handed on
    with cached.open("rb") as source, replacing(output) as target:
        shutil.copyfileobj(source, target)
    told = facts(output, ticket)
    give(told, json, lambda: show(facts_table(told)))


def import_shira(
    adapter: Annotated[Path, typer.Argument(help="The folder of a PEFT SHiRA adapter.")],
    output: Annotated[Path, typer.Option(help="The ticket file to write.")],
    model: Annotated[
        str | None, typer.Option(help="The base. Default: the one that the adapter names.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16: of the base and the values.")] = "float32",
    json: Json = None,
) -> None:
    """Convert a SHiRA adapter to a ticket with the same effect as merging the adapter."""
    from multiticket.cli.ticket_tables import facts, facts_table, show

    refuse_unwritable(json, output)
    if output.exists():
        raise ValueError(f"{output} already exists; choose another --output.")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype is float32 or bfloat16, not {dtype!r}.")

    from multiticket.arms.adapter import adapter_base
    from multiticket.models import load_model
    from multiticket.ticket import shira

    base, _ = load_model(model or adapter_base(adapter), dtype)
    ticket = shira.import_shira(adapter, base)
    if model is not None:
        ticket.provenance["model"] = model
    ticket.save(output)
    told = facts(output, ticket)
    give(told, json, lambda: show(facts_table(told)))
