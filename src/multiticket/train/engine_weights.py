"""What a generation engine beside the trainer is given: a plain checkpoint's names and current values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from multiticket.mask.names import VALUES_SUFFIX, canonical_name
from multiticket.sparse import Attachment
from multiticket.train.trl_compat import push_instead, pushed_weights


def push_plain_weights(generation: Any, attachment: Attachment) -> None:
    """Have TRL's vLLM bridge leave out the values that an attachment adds to its model.

    TRL pushes every entry of ``named_parameters()``, under its own name, to a server or an engine in the process;
    an engine knows no tensor ``...weight__values``. What is left is what ``save_pretrained`` would write: the dense
    weights, tied ones once. They are brought up to date first (``flush``), which every rank does together, as every
    rank walks the parameters.

    Args:
        generation: the trainer's ``VLLMGeneration``.

    Raises:
        ValueError: TRL pushes weights in another way than it did in version 1.16.
    """
    every = pushed_weights(generation)
    if every is None:
        raise ValueError(
            "The installed TRL pushes weights to vLLM in a way that is not known to leave a ticket's values out: "
            "install TRL 1.16, or train without use_vllm."
        )

    def plain() -> Iterator[tuple[str, Tensor]]:
        attachment.flush()
        names = {canonical_name(name) for name, _ in attachment.model.named_parameters()}
        for name, tensor in every():
            # under FSDP2, TRL 1.14 gives buffers and a tied weight's other name as well
            if name in names and not name.endswith(VALUES_SUFFIX):
                yield name, tensor

    push_instead(generation, plain)
