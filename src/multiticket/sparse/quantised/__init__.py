"""Quantised bases: the k values are put into the copy of a weight that is made for each product."""
