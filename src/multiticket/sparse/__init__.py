"""Train only the values at a mask's positions, on any trainer."""

from multiticket.sparse.attachment import Attachment
from multiticket.sparse.choose_path import attach

__all__ = ["Attachment", "attach"]
