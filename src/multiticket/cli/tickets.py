"""``multiticket inspect, overlap, merge, compose, diff``: look into tickets and make new ones of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multiticket.cli.outputs import Command, Json, give, one_model, refuse_unwritable
from multiticket.cli.ticket_tables import facts, facts_table, layers_table, show, table
from multiticket.runs.kept import ticket_file

if TYPE_CHECKING:
    from multiticket.ticket import Ticket
    from multiticket.ticket.checkpoint import Checkpoint

TicketPath = Annotated[
    Path, typer.Argument(help="A ticket file, a run folder that holds one, or owner/name on the hub.")
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="The base: a shipped one, a folder, or a hub name."),
]
TicketPaths = Annotated[
    list[Path], typer.Argument(help="Ticket files, run folders that hold one, or owner/name on the hub.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (inspect, overlap, merge, compose, diff):
        app.command(command.__name__, cls=Command)(command)


def inspect(
    ticket: TicketPath,
    model_argument: ModelArgument = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--base",
            help="The base, to show what changed. Default: the one that the ticket names.",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Show a ticket's rule, base, provenance, and how far it moves each layer."""
    from multiticket.ticket.describe import by_layer, changes

    refuse_unwritable(json)
    path = ticket_file(ticket)
    loaded = _load(ticket)
    checkpoint = _base_of(loaded, one_model(model_argument, model))
    layers = by_layer(changes(loaded, _reader(checkpoint, loaded) if checkpoint else None))
    found = {
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

    def print_found() -> None:
        show(facts_table(facts(path, loaded)), layers_table(layers, bool(checkpoint)))
        if checkpoint is None:
            show("The base was not found, so these are norms of the values; give --model to see the change.")

    give(found, json, print_found)


def overlap(
    tickets: TicketPaths,
    by_tensor: Annotated[
        bool, typer.Option("--by-tensor", help="Show the overlap of each tensor too.")
    ] = False,
    json: Json = None,
) -> None:
    """Compare the overlap of two or more tickets' masks with chance."""
    from multiticket.mask import overlap_matrix

    refuse_unwritable(json)
    if len(tickets) < 2:
        raise ValueError("Give at least two tickets.")
    matrix = overlap_matrix([_load(path).mask for path in tickets])
    pairs = [(i, j) for i in range(len(tickets)) for j in range(i + 1, len(tickets))]
    mean = sum(matrix[i][j].jaccard for i, j in pairs) / len(pairs)
    expected = sum(matrix[i][j].expected for i, j in pairs) / len(pairs)
    found: dict[str, Any] = {
        "tickets": [str(path) for path in tickets],
        "nnz": [matrix[i][i].first for i in range(len(tickets))],
        "jaccard": [[cell.jaccard for cell in row] for row in matrix],
        "intersection": [[cell.intersection for cell in row] for row in matrix],
        "expected": [[cell.expected for cell in row] for row in matrix],
        "z": [[cell.z for cell in row] for row in matrix],
        "mean_jaccard": mean,
        "mean_expected": expected,
    }
    if by_tensor:
        found["tensors"] = {
            name: [[cell.tensors[name].jaccard for cell in row] for row in matrix]
            for name in matrix[0][0].tensors
        }
    give(found, json, lambda: _print_overlap(tickets, matrix, pairs, found))


def _print_overlap(
    tickets: list[Path], matrix: Any, pairs: list[tuple[int, int]], found: dict[str, Any]
) -> None:
    labels = [chr(ord("A") + i) if len(tickets) <= 26 else str(i + 1) for i in range(len(tickets))]
    rows = []
    for i, path in enumerate(tickets):
        cells = [f"{matrix[i][j].jaccard:.5f}" if i != j else "" for j in range(len(tickets))]
        rows.append([labels[i], str(path), f"{matrix[i][i].first:,}", *cells])
    show(table("Jaccard index of each pair of masks", ["", "ticket", "positions", *labels], rows))
    spread = ", ".join(f"{matrix[i][j].z:+.1f}" for i, j in pairs[:12]) + (" ..." if len(pairs) > 12 else "")
    show(
        f"Mean {found['mean_jaccard']:.6f}; independent masks would share {found['mean_expected']:.6f}. "
        f"Standard deviations from that: {spread}"
    )
    if "tensors" in found:
        tensors = [
            [name, *(f"{matrix[i][j].tensors[name].jaccard:.5f}" for i, j in pairs)]
            for name in matrix[0][0].tensors
        ]
        show(table("By tensor", ["tensor", *(labels[i] + labels[j] for i, j in pairs)], tensors))


def merge(
    ticket: TicketPath,
    model_argument: ModelArgument = None,
    *,
    output: Annotated[Path, typer.Option(help="A new folder for the merged checkpoint.")],
    model: Annotated[
        str | None,
        typer.Option(help="The base: a shipped one, a folder, or a hub name. Default: the ticket's own."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="The dtype of all merged weights. Default: as the base stores them."),
    ] = None,
    json: Json = None,
) -> None:
    """Merge a ticket into its base and write a plain Hugging Face checkpoint."""
    import torch

    from multiticket.ticket import merge_checkpoint

    refuse_unwritable(json)
    loaded = _load(ticket)
    told = loaded.told
    named = one_model(model_argument, model) or told.get("model")
    if not isinstance(named, str):
        raise ValueError("The ticket does not name its base; give it with --model.")
    revision = told.get("revision") if named == told.get("model") else None
    as_dtype = None if dtype is None else getattr(torch, dtype)
    done = merge_checkpoint(_folder(named, revision), loaded, output, as_dtype)
    said = f"Wrote {done['values']:,} values of {done['tensors']} tensors into a copy of {named}: {output}"
    give(done, json, lambda: show(said, *_rounding_in_words(done, loaded)))


def _rounding_in_words(done: dict[str, Any], ticket: Ticket) -> list[str]:
    """What was lost of the values, and how to lose nothing."""
    if not done["rounding_error"]:
        return []
    trained = str(ticket.dtypes[0]).removeprefix("torch.")
    return [
        f"The weights are {' and '.join(done['dtypes'])}, the values {trained}: rounded, {done['changed']:,} of "
        f"{done['moved']:,} changes are left, and what was rounded off is {done['rounding_error']:.0%} of the update's "
        f"length. --dtype {trained} writes all weights as the values are.",
        *_scores_in_words(ticket),
    ]


def _scores_in_words(ticket: Ticket) -> list[str]:
    from multiticket.ticket.card import scores_of

    scores = scores_of(ticket)
    if "after" not in scores or "shipped" not in scores:
        return []
    return [
        f"Measured: pass@1 {scores['after']['pass@1']:.1%} as trained, {scores['shipped']['pass@1']:.1%} in "
        f"{scores['shipped'].get('dtype')}."
    ]


def compose(
    tickets: TicketPaths,
    output: Annotated[Path, typer.Option(help="The ticket file to write.")],
    collisions: Annotated[
        str, typer.Option(help="Where positions collide: refuse, last (the later ticket's value) or mean.")
    ] = "refuse",
    json: Json = None,
) -> None:
    """Combine several tickets of one base in one file."""
    from multiticket.ticket import compose as composed

    refuse_unwritable(json)
    _refuse_existing(output)
    whole = composed([_load(path) for path in tickets], collisions)
    whole.save(output)
    shared = whole.provenance["collisions"]["positions"]
    said = f"Wrote {whole.nnz:,} values of {len(tickets)} tickets to {output}; {shared:,} positions collided."
    give({**facts(output, whole), "collisions": shared}, json, lambda: show(said))


def diff(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] FINETUNED",
            help="A shipped base, a checkpoint folder or a hub name, and a checkpoint that was trained from it.",
        ),
    ],
    model: Annotated[str | None, typer.Option(help="The base, in the place of BASE.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The ticket file to write; without it, only the report is made.")
    ] = None,
    top: Annotated[
        float | None, typer.Option(help="Keep only this fraction of each tensor: its largest changes.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Keep only changes larger than this.")] = 0.0,
    json: Json = None,
) -> None:
    """Measure how sparse a fine-tuning's update was, and save it as a ticket."""
    from multiticket.ticket import changed_between
    from multiticket.ticket.changed import Update, by_group

    if len(models) != (2 if model is None else 1):
        raise ValueError("Give two models: multiticket diff BASE FINETUNED, or --model BASE FINETUNED.")
    base, finetuned = (model or models[0]), models[-1]
    refuse_unwritable(json)
    if output is not None:
        _refuse_existing(output)
    ticket, updates = changed_between(_folder(base), _folder(finetuned), tolerance, top)
    total = Update()
    for update in updates.values():
        total.add(update)
    if output is not None:
        ticket.save(output)
    found = {
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
    columns = ["", "entries", "changed", "sparsity at 1e-5", "norm", "in the ticket"]
    written = [f"Wrote {ticket.nnz:,} values to {output}."] if output is not None else []
    give(found, json, lambda: show(table("What changed", columns, rows), *written))


def _load(path: Path) -> Ticket:
    from multiticket.ticket import Ticket

    return Ticket.load(ticket_file(path))


def _folder(name: str, revision: str | None = None, local: bool = False) -> Path:
    """The folder of a model: a shipped base's, a path, a run's model, or what the hub's cache has or can get.

    Args:
        revision: of a model on the hub.
        local: look into the cache, and ask nobody.
    """
    from multiticket import bases
    from multiticket.errors import why_not_loaded

    folder = Path(bases.resolve(name))
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        wanted = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
        return Path(snapshot_download(name, allow_patterns=wanted, revision=revision, local_files_only=local))
    except (ImportError, OSError, ValueError) as error:
        shipped = ", ".join(bases.names())
        raise ValueError(
            f"{name} is neither a shipped base ({shipped}) nor a folder; {why_not_loaded(error)}."
        ) from error


def _base_of(ticket: Ticket, named: str | None) -> Checkpoint | None:
    """The named base, checked; or the one that the provenance names, where it is here and is the base."""
    from multiticket.ticket.checkpoint import Checkpoint
    from multiticket.ticket.merge import check_checkpoint

    if named is not None:
        checkpoint = Checkpoint(_folder(named))
        check_checkpoint(checkpoint, ticket)
        return checkpoint
    told, revision = ticket.told.get("model"), ticket.told.get("revision")
    if not isinstance(told, str):
        return None
    try:
        checkpoint = Checkpoint(_folder(told, revision, local=True))
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
        raise ValueError(f"{output} already exists; choose another output file.")
