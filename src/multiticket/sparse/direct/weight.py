"""One masked weight: where its values live, and how they reach the dense weight."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from multiticket.mask.names import VALUES_SUFFIX
from multiticket.mask.put import put
from multiticket.sparse.autograd.functions import ConnectedView
from multiticket.sparse.direct.reads import connected_weight
from multiticket.sparse.gradient import native
from multiticket.sparse.gradient.choice import choose_method
from multiticket.sparse.gradient.crop import Crop, crop, row_starts
from multiticket.sparse.planned import device_of, planning
from multiticket.sparse.sharded import is_sharded, local, own_entries, own_share, whole
from multiticket.sparse.surgery import DETACH_FIRST, MOST_KEPT


class MaskedWeight:
    """Binds the fp32 values of one masked tensor to the dense weight they belong to.

    Both are parameters of ``owner`` and are looked up there each time: wrappers (accelerate, ``fully_shard``,
    ``to_empty``) replace parameter objects, so a held one would train nothing.
    """

    name: str
    """The dense weight's name in the model, without wrappers' prefixes."""
    owner: nn.Module
    """The module that holds the dense weight and its values; of tied modules, the first."""
    original: Tensor
    """The base's values at the positions (k,), in the dense weight's dtype."""
    written: Tensor
    """What the dense weight holds at the positions (k,), in the dense weight's dtype."""
    sharded: bool
    """Whether FSDP2 manages the weight. Then no read writes it, for a read is not known to happen on every rank."""

    def __init__(
        self, name: str, owner: nn.Module, attribute: str, positions: Tensor, gradient: str = "auto"
    ) -> None:
        self.name = name
        self.owner = owner
        self.attribute = attribute
        self.values_attribute = attribute + VALUES_SUFFIX
        dense = self.dense
        self.shape = dense.shape
        positions = positions.to(torch.int32 if dense.numel() < 2**31 else torch.int64)
        self._positions = positions if dense.is_meta else positions.to(dense.device)
        self.gradient = gradient
        self._starts = row_starts(self._positions, *dense.shape) if dense.dim() == 2 else None
        self._crop = None if self._starts is None else crop(self._positions, self._starts, *dense.shape)
        self._host_starts: Tensor | None = None
        self._route: tuple[Tensor, Tensor, Tensor | None, Tensor | None, str] | None = None
        self._route_of: tuple[torch.device, torch.dtype] | None = None
        self.original = dense.detach().take(self.positions.long())
        self.written = self.original.clone()
        self.showing_base = False
        self.sharded = False
        self._own: tuple[slice, int] | None = None
        self._mark = object()
        """On the parameter that was written last. A weak reference to it would keep torch from swapping its content, as
        moving a sharded model does."""
        self._view: weakref.ref[Tensor] | None = None
        self._view_of: tuple[int, ...] = ()
        values = nn.Parameter(self.original.to(torch.promote_types(torch.float32, dense.dtype), copy=True))
        owner.register_parameter(self.values_attribute, values)
        self._note_written()
        self.whole_original: Tensor | None = None
        """All of a small weight as it was before somebody got hold of its memory to write."""
        self.tell_frozen: Callable[[], None] = lambda: None
        """Called where a read finds gradients recorded, and the values frozen."""
        self.first_values = weakref.ref(values)
        if dense.dim() == 2:
            self.route()  # before a compiler sees it made, and compiles again for it

    @property
    def attributes(self) -> tuple[str, str]:
        """What its owner calls the dense weight, and the values."""
        return self.attribute, self.values_attribute

    @property
    def dense(self) -> Tensor:
        """The frozen dense weight."""
        dense = self.owner._parameters.get(self.attribute)
        if dense is None:
            raise RuntimeError(
                f"{self.name} is no parameter of its layer any more (pruned? weight-normed?); {DETACH_FIRST}"
            )
        return dense

    @property
    def values(self) -> nn.Parameter:
        """The trained values (k,), fp32 (fp64 under a fp64 weight)."""
        values = self.owner._parameters[self.values_attribute]
        assert values is not None
        return values

    @property
    def positions(self) -> Tensor:
        """Sorted flat positions (k,), int32 where they fit, on the weight's device."""
        if self._positions.device != self.dense.device:
            self._positions = self._positions.to(self.dense.device)
        return self._positions

    @property
    def starts(self) -> Tensor:
        """``row_starts`` of the positions, for a 2-D weight."""
        if self._starts is None or self._starts.device != self.positions.device:
            self._starts = row_starts(self.positions, *self.shape)
        return self._starts

    @property
    def host_starts(self) -> Tensor:
        """``starts`` in the host's memory."""
        if self._host_starts is None:
            self._host_starts = self.starts.cpu()
        return self._host_starts

    @property
    def crop(self) -> Crop:
        """The positions within the rows and columns that they touch, for a 2-D weight."""
        assert self._crop is not None
        if self._crop.positions.device != self.positions.device:
            self._crop = self._crop.along(self.positions, self.starts)
        return self._crop

    @property
    def method(self) -> str:
        """How the gradient of the values is computed in a linear layer."""
        if self.gradient != "auto":
            return self.gradient
        dense = self.dense
        return choose_method(device_of(dense), *self.crop.shape, self._positions.numel(), dense.dtype)

    def route(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, str]:
        """What a linear layer's backward pass goes by: positions and starts within the crop, its rows and columns, and
        the method. Made once for a device and a dtype: a layer asks in every forward pass."""
        dense = self.dense
        of = (dense.device, dense.dtype)
        if self._route is None or self._route_of != of:
            crop, method = self.crop, self.method
            starts = crop.host_starts if method == "blocks" else crop.starts
            self._route, self._route_of = (crop.positions, starts, crop.rows, crop.columns, method), of
        return self._route

    @property
    def trains(self) -> bool:
        """Whether a read of the weight now must be connected to the values."""
        if self.showing_base or not torch.is_grad_enabled():
            return False
        if self.values.requires_grad:
            return True
        self.tell_frozen()
        return False

    def fresh_dense(self) -> Tensor:
        """The dense weight, written first if the values have changed since it was last written."""
        dense = self.dense
        if self.showing_base or torch.compiler.is_compiling():
            return dense
        if self.sharded or dense.is_meta or is_sharded(dense):
            return dense
        if self._was_touched(dense):
            self.follow()
        if self.is_stale():
            self.write()
        return dense

    def connected(self) -> Tensor:
        """The weight for any reader: connected to the values where gradients are recorded.

        While a view is in use, the next reader gets the same one: tied weights are recognised by ``is``. Outside its
        layer's forward, a weight that FSDP2 shards is the parameter itself, which FSDP2 asks for by this very way.
        """
        dense = self.fresh_dense()
        if not self.trains or (dense.is_meta and not planning()) or is_sharded(dense):
            return dense
        if torch.compiler.is_compiling():
            return ConnectedView.apply(self.values, dense, self.positions)
        view = None if self._view is None else self._view()
        source = (id(dense), id(self.values))
        if view is None or self._view_of != source or view.data_ptr() != dense.data_ptr():
            view = connected_weight(self, self.values, dense, self.positions)
            self._view, self._view_of = weakref.ref(view), source
        return view

    def is_stale(self) -> bool:
        """Whether the dense weight is not what the values say it should be.

        Fused optimisers and writes through ``.data`` leave the version counter alone, so the content is compared.
        On an accelerator that would wait for the device at each read: there the counter alone is asked here, and
        ``Attachment`` compares the content of all values at once, before each forward pass of the model.
        """
        values, dense, written = self.values, self.dense, self.written
        if written.dtype != dense.dtype or written.device != dense.device or values._version != self._version:
            return True
        return written.device.type == "cpu" and not self.matches_values()

    def matches_values(self) -> bool:
        """Whether ``written`` is the values, rounded."""
        values: Tensor = self.values
        if values.dtype != self.written.dtype:
            values = values.detach().to(self.written.dtype)
        return torch.equal(values, self.written)

    def changed(self) -> Tensor:
        """Whether what this rank holds of the values is not what was written last, as a tensor: nobody waits."""
        values = local(self.values)
        written = own_share(self.values, self.written)
        if (
            values.dtype.itemsize < 4
        ):  # whole for a forward pass, under a policy that casts: too coarse to tell
            return torch.zeros((), dtype=torch.bool, device=values.device)
        rounded = values.to(written.dtype)
        return ((rounded != written) & ~rounded.isnan()).any()

    @torch.no_grad()
    def write(self) -> None:
        """Write the values into the dense weight, rounded to its dtype. Collective where they are sharded."""
        self.write_whole(*whole([self.values]))

    @torch.no_grad()
    def write_whole(self, values: Tensor) -> None:
        """Write ``values`` (k,), which are the weight's own; of a sharded weight, what lies in this rank's rows."""
        dense = self.dense
        self.accept(values.to(device=dense.device, dtype=dense.dtype, copy=True))

    @torch.no_grad()
    def accept(self, written: Tensor, in_place: bool = False) -> None:
        """Take ``written`` (k,) for the weight's content, and put it there unless it is ``in_place``."""
        self.written = written
        if not in_place:
            self._put(self.dense, written)
        self._note_written()

    def _note_written(self) -> None:
        """Remember how weight and values look now, so that a later write by others shows."""
        dense = self.dense
        self._version = self.values._version
        dense._ticket_mark = self._mark  # type: ignore[attr-defined]
        self._dense_version = -1 if dense.is_inference() else dense._version
        self._address = 0 if dense.is_meta or is_sharded(dense) else dense.data_ptr()

    def is_known(self) -> bool:
        """Whether the parameter is the one that was written last, and not another in its place, for a call perhaps."""
        return getattr(self.dense, "_ticket_mark", None) is self._mark

    def _was_touched(self, dense: Tensor) -> bool:
        """Whether others wrote to the weight in a way that shows without looking at its content."""
        if getattr(dense, "_ticket_mark", None) is not self._mark:
            return False
        return dense._version != self._dense_version or dense.data_ptr() != self._address

    @torch.no_grad()
    def follow(self) -> None:
        """Where others wrote to the dense weight at the mask's positions, the values become what they wrote.

        Where somebody changed the values as well since they were last written, those are what counts.
        """
        dense = self.dense
        if self.sharded or self.showing_base or dense.is_meta or is_sharded(dense):
            return
        if dense.shape != self.shape:
            raise RuntimeError(
                f"{self.name} had shape {tuple(self.shape)} when the mask was attached, and has {tuple(dense.shape)} "
                f"now; {DETACH_FIRST}"
            )
        dense.requires_grad_(False)
        held = dense.take(self.positions.long())
        written = self.written.to(held.device, held.dtype)
        values = self.values.to(held.device)
        changed = (held != written) & (values.to(held.dtype) == written)
        self.values.copy_(torch.where(changed, held.to(values.dtype), values))
        stale = not torch.equal(self.values.to(held), held)
        self.written = held
        self._note_written()
        if stale:
            self.write()

    def given_away(self) -> Tensor:
        """The weight's memory for somebody who may write to it past autograd: a small weight is copied before."""
        dense = self.dense
        if self.whole_original is None and dense.numel() <= MOST_KEPT and not is_sharded(dense):
            self.whole_original = dense.detach().clone()
        return dense.data

    def replace_content(self, content: Tensor) -> None:
        """``weight.data = content``, by somebody who has what readers of the weight get."""
        self.given_away()
        if content.shape != self.shape:
            raise RuntimeError(
                f"{self.name} has shape {tuple(self.shape)}, the new content {tuple(content.shape)}; {DETACH_FIRST}"
            )
        self.dense.data = content
        self.follow()

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the base back, of a small weight also where others wrote outside the mask."""
        if self.whole_original is not None:
            self.dense.data.copy_(self.whole_original)
        self.show(base=True)

    @torch.no_grad()
    def take_values_from_dense(self) -> None:
        """The other way: after a plain checkpoint was loaded into the dense weight, the values follow it."""
        assert not is_sharded(self.dense)
        self.values.copy_(self.dense.take(self.positions.long()))
        self.write()

    @torch.no_grad()
    def show(self, base: bool) -> None:
        """Put the base's values, or the trained ones, into the dense weight for a while.

        Written past the version counter: the content is back before any backward pass that could miss it.
        """
        dense = self.dense
        shown = self.original.to(dense.device, dense.dtype) if base else self.written
        self._put(dense.data, shown)
        self.showing_base = base

    def _put(self, dense: Tensor, content: Tensor) -> None:
        if not is_sharded(dense):
            write_at(dense, self.positions, content)
            return
        if self._own is None:
            self._own = own_entries(dense, self.positions)
        entries, begin = self._own
        write_at(local(dense), self.positions[entries] - begin, content[entries])


def write_at(dense: Tensor, positions: Tensor, content: Tensor) -> None:
    """``dense.put_(positions, content)``, at a fraction of its time for a weight that lies in one piece."""
    if native.can_write(dense, positions, content):
        native.write(dense, positions, content)
    else:
        put(dense, positions, content)
