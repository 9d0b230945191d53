"""How k entries of a weight gradient are computed, on a CPU or anywhere."""
