"""``multiticket inspect, overlap, merge, compose, diff``: look into tickets and make new ones of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiticket.cli.ticket_tables import facts, facts_table, layers_table, print_json, show, table

if TYPE_CHECKING:
    from multiticket.ticket import Ticket
    from multiticket.ticket.checkpoint import Checkpoint

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TicketPath = Annotated[Path, typer.Argument(help="A ticket file, or a run folder that holds one.")]
TicketPaths = Annotated[list[Path], typer.Argument(help="Ticket files, or run folders that hold one.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (inspect, overlap, merge, compose, diff):
        app.command(command.__name__)(command)


def inspect(
    ticket: TicketPath,
    base: Annotated[
        str | None,
        typer.Option(help="The base, to show what changed. Default: the one that the ticket names."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a ticket's rule, base, provenance, and how far it moves each layer."""
    from multiticket.ticket.describe import by_layer, changes

    path = _ticket_file(ticket)
    loaded = _load(ticket)
    checkpoint = _base_of(loaded, base)
    layers = by_layer(changes(loaded, _reader(checkpoint, loaded) if checkpoint else None))
    if as_json:
        print_json(
            {
                **facts(path, loaded),
                "norms_of": "change" if checkpoint else "values",
                "layers": {
                    name: {
                        "numel": change.numel,
                        "values": change.values,
                        "moved": change.moved,
                        "norm": change.norm,
                        "largest": change.largest,
                    }
                    for name, change in layers.items()
                },
            }
        )
        return
    show(facts_table(facts(path, loaded)), layers_table(layers, bool(checkpoint)))
    if checkpoint is None:
        show(
            "The base was not found, so these are norms of the values; name it with --base to see the change."
        )


def overlap(
    tickets: TicketPaths,
    by_tensor: Annotated[bool, typer.Option("--by-tensor", help="Also by tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Compare the masks of two or more tickets with what chance would give."""
    from multiticket.mask import overlap_matrix

    if len(tickets) < 2:
        raise ValueError("Overlap needs at least two tickets.")
    matrix = overlap_matrix([_load(path).mask for path in tickets])
    pairs = [(i, j) for i in range(len(tickets)) for j in range(i + 1, len(tickets))]
    mean = sum(matrix[i][j].jaccard for i, j in pairs) / len(pairs)
    expected = sum(matrix[i][j].expected for i, j in pairs) / len(pairs)
    if as_json:
        print_json(
            {
                "tickets": [str(path) for path in tickets],
                "nnz": [matrix[i][i].first for i in range(len(tickets))],
                "jaccard": [[cell.jaccard for cell in row] for row in matrix],
                "intersection": [[cell.intersection for cell in row] for row in matrix],
                "expected": [[cell.expected for cell in row] for row in matrix],
                "z": [[cell.z for cell in row] for row in matrix],
                "mean_jaccard": mean,
                "mean_expected": expected,
            }
            | (
                {
                    "tensors": {
                        name: [[cell.tensors[name].jaccard for cell in row] for row in matrix]
                        for name in matrix[0][0].tensors
                    }
                }
                if by_tensor
                else {}
            )
        )
        return
    labels = [chr(ord("A") + i) if len(tickets) <= 26 else str(i + 1) for i in range(len(tickets))]
    rows = []
    for i, path in enumerate(tickets):
        cells = [f"{matrix[i][j].jaccard:.5f}" if i != j else "" for j in range(len(tickets))]
        rows.append([labels[i], str(path), f"{matrix[i][i].first:,}", *cells])
    show(table("Jaccard index of every two masks", ["", "ticket", "positions", *labels], rows))
    spread = ", ".join(f"{matrix[i][j].z:+.1f}" for i, j in pairs[:12]) + (" ..." if len(pairs) > 12 else "")
    show(
        f"Mean {mean:.6f}; independent masks would share {expected:.6f}. Standard deviations from that: {spread}"
    )
    if by_tensor:
        tensors = [
            [name, *(f"{matrix[i][j].tensors[name].jaccard:.5f}" for i, j in pairs)]
            for name in matrix[0][0].tensors
        ]
        show(table("By tensor", ["tensor", *(labels[i] + labels[j] for i, j in pairs)], tensors))


def merge(
    ticket: TicketPath,
    output: Annotated[Path, typer.Option(help="A new folder for the merged checkpoint.")],
    model: Annotated[
        str | None,
        typer.Option(help="The base: a shipped one, a folder, or a hub name. Default: the ticket's own."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the base with the ticket in it as a plain Hugging Face checkpoint."""
    from multiticket.ticket import merge_checkpoint

    loaded = _load(ticket)
    named = model or loaded.provenance.get("model")
    if not isinstance(named, str):
        raise ValueError("The ticket does not say what base it belongs to; name it with --model.")
    done = merge_checkpoint(_folder(named), loaded, output)
    if as_json:
        print_json(done)
    else:
        show(f"Wrote {done['values']:,} values of {done['tensors']} tensors into a copy of {named}: {output}")


def compose(
    tickets: TicketPaths,
    output: Annotated[Path, typer.Option(help="The ticket file to write.")],
    collisions: Annotated[
        str, typer.Option(help="Where positions collide: refuse, last (the later ticket's value) or mean.")
    ] = "refuse",
    as_json: Json = False,
) -> None:
    """Put several tickets of one base into one file."""
    from multiticket.ticket import compose as composed

    _refuse_existing(output)
    whole = composed([_load(path) for path in tickets], collisions)
    whole.save(output)
    shared = whole.provenance["collisions"]["positions"]
    if as_json:
        print_json({**facts(output, whole), "collisions": shared})
    else:
        show(
            f"Wrote {whole.nnz:,} values of {len(tickets)} tickets to {output}; {shared:,} positions collided."
        )


def diff(
    base: Annotated[str, typer.Argument(help="A shipped base, a checkpoint folder, or a hub name.")],
    finetuned: Annotated[str, typer.Argument(help="A checkpoint that was trained from it.")],
    output: Annotated[
        Path | None, typer.Option(help="The ticket file to write; without it, only the report is made.")
    ] = None,
    top: Annotated[
        float | None, typer.Option(help="Keep only this fraction of each tensor: its largest changes.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Keep only changes larger than this.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Say how sparse a finished fine-tuning's update was, and turn it into a ticket."""
    from multiticket.ticket import changed_between
    from multiticket.ticket.changed import Update, by_group

    if output is not None:
        _refuse_existing(output)
    ticket, updates = changed_between(_folder(base), _folder(finetuned), tolerance, top)
    total = Update()
    for update in updates.values():
        total.add(update)
    if output is not None:
        ticket.save(output)
    if as_json:
        print_json(
            {
                "numel": total.numel,
                "changed": total.changed,
                "changed_beyond_1e-5": total.beyond_published,
                "sparsity": total.sparsity,
                "norm": total.squared**0.5,
                "kept": total.kept,
                "output": None if output is None else str(output),
                "groups": {
                    name: {
                        "numel": group.numel,
                        "changed": group.changed,
                        "sparsity": group.sparsity,
                        "kept": group.kept,
                    }
                    for name, group in by_group(updates).items()
                },
            }
        )
        return
    rows = [
        [
            name,
            f"{g.numel:,}",
            f"{g.changed / g.numel:.2%}",
            f"{g.sparsity:.2%}",
            f"{g.squared**0.5:.4g}",
            f"{g.kept:,}",
        ]
        for name, g in [*by_group(updates).items(), ("all", total)]
    ]
    show(table("What changed", ["", "entries", "changed", "sparsity at 1e-5", "norm", "in the ticket"], rows))
    if output is not None:
        show(f"Wrote {ticket.nnz:,} values to {output}.")


def _load(path: Path) -> Ticket:
    from multiticket.ticket import Ticket

    return Ticket.load(_ticket_file(path))


def _ticket_file(path: Path) -> Path:
    inside = path / "ticket.safetensors"
    if path.is_dir() and not inside.is_file():
        raise ValueError(f"{path} is a folder without a ticket.safetensors; name a ticket file.")
    return inside if path.is_dir() else path


def _folder(name: str) -> Path:
    """The folder of a shipped base, of a folder's own path, or of a model that the hub's cache has or can get."""
    from multiticket import bases

    folder = Path(bases.resolve(name))
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"])
        )
    except (ImportError, OSError, ValueError) as error:
        shipped = ", ".join(bases.names())
        raise ValueError(
            f"{name} is neither a shipped base ({shipped}) nor a folder nor a reachable model."
        ) from error


def _base_of(ticket: Ticket, named: str | None) -> Checkpoint | None:
    """The named base, checked; or the one that the provenance names, where it is here and is the base."""
    from multiticket import bases
    from multiticket.ticket.checkpoint import Checkpoint
    from multiticket.ticket.merge import check_checkpoint

    if named is not None:
        checkpoint = Checkpoint(_folder(named))
        check_checkpoint(checkpoint, ticket)
        return checkpoint
    told = ticket.provenance.get("model")
    if not isinstance(told, str) or not Path(bases.resolve(told)).is_dir():
        return None
    try:
        checkpoint = Checkpoint(bases.resolve(told))
        check_checkpoint(checkpoint, ticket)
    except ValueError:
        return None
    return checkpoint


def _reader(checkpoint: Checkpoint, ticket: Ticket) -> Any:
    from multiticket.ticket.dense import gather

    shapes = {name: shape for section in ticket.sections for name, shape in section.mask.shapes.items()}
    return lambda name, flat: gather(checkpoint.find(name, shapes[name])[0].mapped(), flat)


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise ValueError(f"{output} exists already; choose another output file.")
