"""The autograd functions by which a direct attachment reads its weights."""
