"""Completions by a model in this process: prompts as its chat template renders them, in batches, turn by turn."""
