"""Repeat: grids of runs from one file, done by any number of processes, and gathered in one table."""
