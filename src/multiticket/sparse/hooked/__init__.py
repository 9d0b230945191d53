"""The path of accelerators: layers run torch's own forward, and hooks gather k entries of each dense gradient."""
