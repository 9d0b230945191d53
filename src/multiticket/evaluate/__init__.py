"""Measure a model on a task: generate, score, and compare two evaluations problem by problem."""
