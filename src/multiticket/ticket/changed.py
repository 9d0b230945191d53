"""What a finished fine-tuning changed, as a ticket, and how sparse its update was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from multiticket.mask import Mask, MaskRule, fingerprint
from multiticket.mask.positions import Positions, stored
from multiticket.mask.rule import check_density
from multiticket.mask.selectors import module_kind
from multiticket.ticket.checkpoint import HEAD, Checkpoint
from multiticket.ticket.dense import gather
from multiticket.ticket.describe import group_of, in_order
from multiticket.ticket.ticket import Ticket

PUBLISHED_TOLERANCE = 1e-5
"""arXiv 2505.11711 counts a parameter as unchanged where its values differ by at most this."""
_CHUNK = 2**22


@dataclass
class Update:
    """How many entries of a tensor, or of all, a fine-tuning changed."""

    numel: int = 0
    changed: int = 0
    """Entries with another value."""
    beyond_published: int = 0
    """Entries that differ by more than 1e-5."""
    kept: int = 0
    """Entries that the ticket takes."""
    squared: float = 0.0
    """Squared L2 norm of the change."""

    def add(self, other: Update) -> None:
        self.numel += other.numel
        self.changed += other.changed
        self.beyond_published += other.beyond_published
        self.kept += other.kept
        self.squared += other.squared

    @property
    def sparsity(self) -> float:
        """1 - ||change||_0 / n, with the published tolerance."""
        return 1 - self.beyond_published / self.numel if self.numel else 1.0


def changed_between(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    tolerance: float = 0.0,
    top: float | None = None,
) -> tuple[Ticket, dict[str, Update]]:
    """The ticket that turns the checkpoint ``base`` into ``tuned``, and the update's size by tensor.

    Takes the entries that differ by more than ``tolerance`` (0: all that differ, so the ticket reproduces
    ``tuned``); with ``top``, of these the int(n * top) largest changes of each tensor. Values are those of ``tuned``,
    in its dtype. Works in chunks: memory is O(changed entries).

    Raises ValueError for checkpoints of different models, or where nothing is left.
    """
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"The tolerance must be a number of at least 0, not {tolerance!r}.")
    top = None if top is None else check_density(top)
    before, after = Checkpoint(base), Checkpoint(tuned)
    shapes = before.model_shapes()
    sources = _sources(before, after, shapes)
    updates: dict[str, Update] = {}
    chosen: dict[str, Positions] = {}
    for name, shape in shapes.items():
        old, new = before.find(name, shape)[0].mapped(), after.find(sources[name], shape)[0].mapped()
        update, flat = _tensor(old.reshape(-1), new.reshape(-1), tolerance, top)
        updates[name] = update
        if len(flat):
            chosen[name] = stored(flat)
    if not chosen:
        raise ValueError(f"{tuned} does not differ from {base} by more than {tolerance}.")
    options = {"tolerance": tolerance} | ({} if top is None else {"top": top})
    mask = Mask(MaskRule("changed", options=options), shapes, chosen)

    def values_of(checkpoint: Checkpoint, name: str, source: str) -> Tensor:
        return gather(checkpoint.find(source, shapes[name])[0].mapped(), mask.indices(name))

    total = Update()
    for update in updates.values():
        total.add(update)
    return Ticket(
        mask,
        {name: values_of(after, name, sources[name]) for name in mask.names},
        fingerprint(mask, lambda name: values_of(before, name, name)),
        {
            "arm": "changed",
            "update": {"numel": total.numel, "changed": total.changed, "sparsity": total.sparsity},
        },
    ), updates


def _sources(before: Checkpoint, after: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Under which name ``after`` holds each of the base's tensors: its own, but for a head that was tied on the way.

    Raises ValueError where ``after`` has a tensor that the base lacks, or a head where the base uses its embeddings.
    """
    sources = {name: name for name in shapes}
    theirs = after.model_shapes()
    if HEAD in shapes and HEAD not in theirs:
        sources[HEAD] = _embeddings(theirs, shapes[HEAD]) or HEAD
    for name, shape in theirs.items():
        if name != HEAD or HEAD in shapes:
            before.find(name, shape)
        elif not _is_tied(after, theirs):
            raise ValueError(
                f"{after.folder} has an output head of its own where the base {before.folder} uses its embeddings: no "
                "ticket of that base can hold both."
            )
    return sources


def _embeddings(shapes: dict[str, tuple[int, ...]], shape: tuple[int, ...]) -> str | None:
    """The one table of a head's ``shape``, if there is one."""
    tables = [n for n, s in shapes.items() if n != HEAD and s == shape and module_kind(n) == "embeddings"]
    return tables[0] if len(tables) == 1 else None


def _is_tied(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a head that is held by itself is its embeddings all the same, bit for bit."""
    table = _embeddings(shapes, shapes[HEAD])
    if table is None:
        return False
    head, table_held = (checkpoint.find(name, shapes[HEAD])[0].mapped() for name in (HEAD, table))
    return head.dtype == table_held.dtype and torch.equal(
        head.view(torch.uint8), table_held.view(torch.uint8)
    )


def by_group(updates: dict[str, Update]) -> dict[str, Update]:
    """The updates summed over layers ("layer 0", ...), and over kinds of what lies outside layers."""
    groups: dict[str, Update] = {}
    for name, update in updates.items():
        groups.setdefault(group_of(name), Update()).add(update)
    return in_order(groups)


def _tensor(old: Tensor, new: Tensor, tolerance: float, top: float | None) -> tuple[Update, Tensor]:
    """``old`` and ``new``: (n,). Returns the counts, and the sorted flat positions to take."""
    update = Update(numel=len(new))
    flats, sizes = [], []
    for start, difference in _differences(old, new):
        update.changed += int((difference != 0).sum())
        update.beyond_published += int((difference > PUBLISHED_TOLERANCE).sum())
        update.squared += float(difference.double().square().sum())
        here = (difference > tolerance).nonzero().squeeze(1)
        flats.append(here + start)
        sizes.append(difference[here])
    flat, size = torch.cat(flats), torch.cat(sizes)
    if top is not None:
        most = int(len(new) * top)
        flat = flat[size.argsort(descending=True, stable=True)[:most]].sort().values
    update.kept = len(flat)
    return update, flat


def _differences(old: Tensor, new: Tensor) -> Iterator[tuple[int, Tensor]]:
    """|new - old| in fp32 (fp64 for fp64), chunk by chunk with its first position; NaN beside a number is infinite."""
    dtype = torch.float64 if torch.float64 in (old.dtype, new.dtype) else torch.float32
    for start in range(0, len(new), _CHUNK):
        a, b = old[start : start + _CHUNK].to(dtype), new[start : start + _CHUNK].to(dtype)
        same = (a == b) | (a.isnan() & b.isnan())
        yield start, (b - a).abs().nan_to_num(nan=float("inf"), posinf=float("inf")).masked_fill(same, 0)
