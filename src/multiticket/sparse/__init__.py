"""Step 2 of 4: train only the values at a mask's positions, on any trainer."""

from multiticket.sparse.attachment import Attachment, attach

__all__ = ["Attachment", "attach"]
