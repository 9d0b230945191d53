"""The processes that share a run: the first one writes, and all of them fail, stop and end together.

A rank that raises while the others wait for it in a collective leaves them waiting. So what a rank does by itself lies
in a block (`Ranks.together`, `Ranks.by_first`) at whose end all ranks say whether it went well; where it did not, all
raise the same error. Which block a rank is in does not matter: one that fails early meets the others in theirs, and an
error that all ranks have passes outer blocks without another word. Inside a block, then, only these methods may talk.

They talk over a gloo group of their own, beside the one that the training uses. torch is imported by ranks alone.
"""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from multiticket.errors import StopNow, first_sentence, raised_by

T = TypeVar("T")
TRAINING_PATIENCE = datetime.timedelta(minutes=30)
"""How long a collective of the training waits for a rank; transformers' default."""
PATIENCE = datetime.timedelta(hours=6)
"""How long ranks wait for one that measures; one that died is noticed at once."""
LEAVING = datetime.timedelta(seconds=10)
"""How long a rank that has nothing more to do waits for the others to be as far."""
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class OtherRankFailed(RuntimeError):
    """Another process of the run failed in a way that it tells itself."""


class Ranks:
    """One process of several, or the only one, for which every method is what it would be without."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self.exchanging = False
        """Whether a method is talking to the other ranks: nothing may be raised in the midst of that."""
        self._group = group
        self._agreed: BaseException | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends well on all ranks, or on none. Collective; the training's own collectives stay outside."""
        if not self.several:
            yield
            return
        try:
            yield
        except (Exception, StopNow) as error:
            if error is not self._agreed:
                self.agree(error)
            raise
        self.agree()

    def by_first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, which alone does it; what it raises there, all raise. Collective."""
        if not self.several:
            return work()
        done: list[Any] = [None]
        error: Exception | None = None
        if self.first:
            try:
                done = [work()]
            except Exception as raised:
                error = raised
        self.agree(error)
        with self._talking():
            import torch.distributed as dist

            dist.broadcast_object_list(done, src=0, group=self._group)
        return done[0]

    def gather(self, value: T) -> list[T]:
        """Each rank's value, in the order of the ranks. Collective."""
        if not self.several:
            return [value]
        self.agree()
        return self._gather(value)

    def agree(self, error: BaseException | None = None) -> None:
        """Raise on all ranks what one of them raises: an error rather than a stop, of the lowest rank. Collective."""
        if not self.several:
            if error is not None:
                raise error
            return
        import torch
        import torch.distributed as dist

        failed = torch.tensor(error is not None, dtype=torch.int64)
        with self._talking():
            dist.all_reduce(failed, dist.ReduceOp.MAX, group=self._group)
        if not failed:
            return
        told = self._gather(_told(self.rank, error))
        chosen = min(
            (rank for rank, other in enumerate(told) if other is not None),
            key=lambda rank: (isinstance(told[rank], StopNow), rank),
        )
        self._agreed = error if chosen == self.rank else told[chosen]
        assert self._agreed is not None
        raise self._agreed

    def tells(self, error: BaseException) -> bool:
        """Whether it is this rank that tells a person of `error`: of one that all ranks have, the first."""
        seen: BaseException | None = error
        while seen is not None and not self.first:
            if seen is self._agreed or isinstance(seen, OtherRankFailed):
                return False
            seen = seen.__cause__ or seen.__context__
        return True

    def leave(self) -> None:
        """Wait a little for the other ranks to be done as well: a launcher kills those that are not."""
        if not self.several:
            return
        import torch.distributed as dist

        with suppress(RuntimeError):
            dist.monitored_barrier(self._group, timeout=LEAVING)
        with suppress(RuntimeError):
            dist.destroy_process_group()

    def _gather(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(found, value, group=self._group)
        return found

    @contextmanager
    def _talking(self) -> Iterator[None]:
        self.exchanging = True
        try:
            yield
        except RuntimeError as error:
            raise OtherRankFailed(
                f"Another process of this run is gone ({first_sentence(error)}); it has said why, if it could."
            ) from error
        finally:
            self.exchanging = False


ALONE = Ranks()
_joined: Ranks | None = None


def launched() -> int:
    """How many processes a launcher (``torchrun``, ``accelerate launch``) has started for this command."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def refuse_several(command: str) -> None:
    """Raises ValueError where a launcher has started several processes for what one does."""
    if launched() > 1:
        raise ValueError(
            f"multiticket {command} is one process, and this is one of {launched()}: leave the launcher out, or unset "
            "WORLD_SIZE; multiticket train takes several."
        )


def join() -> Ranks:
    """The ranks of this command, met on the first call. Collective.

    Raises:
        ValueError: there are to be several, and the environment does not say where they meet.
    """
    global _joined
    if launched() == 1:
        return ALONE
    if _joined is None:
        missing = [name for name in NEEDED if name not in os.environ]
        if missing:
            raise ValueError(
                f"WORLD_SIZE is {launched()}, but {', '.join(missing)} is not set: start the processes with torchrun "
                "or accelerate launch, or unset WORLD_SIZE."
            )
        _joined = _meet()
    return _joined


def here() -> Ranks:
    """The ranks that were joined, if any were."""
    return _joined or ALONE


def _meet() -> Ranks:
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState(
        cpu=not torch.cuda.is_available(), timeout=TRAINING_PATIENCE
    )  # takes the rank's own device, too
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), group)


def _told(rank: int, error: BaseException | None) -> BaseException | None:
    """An error as the other ranks raise it: a user's mistake and a disk's as they are."""
    if error is None or isinstance(error, StopNow):
        return error
    ours = isinstance(error, ValueError) and raised_by(error.__traceback__, "multiticket")
    if ours or isinstance(error, OSError):
        with suppress(Exception):
            copy: BaseException = pickle.loads(pickle.dumps(error))
            return copy
    return OtherRankFailed(f"Process {rank} failed: {type(error).__name__}: {first_sentence(error)}.")
