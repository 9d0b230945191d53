"""Measurements of why random sparse training works: KL of a step, gradient spectrum, what masks keep, what updates
do.

Every number is explained in docs/theory.md. Commands: ``multiticket theory kl | fisher | subspace | predict |
updates``.
"""
