"""Where a run lies: its folder, its files, its checkpoints, and what it says while it works."""
