"""Choose positions: the rule, the random permutation, other selectors, overlap."""

from __future__ import annotations

from multiticket.mask.algebra import complement_count, difference, intersection, union
from multiticket.mask.fingerprint import fingerprint
from multiticket.mask.mask import Mask
from multiticket.mask.names import VALUES_SUFFIX, canonical_name, masked_candidates
from multiticket.mask.overlap import Overlap, overlap, overlap_matrix
from multiticket.mask.rule import MaskRule
from multiticket.mask.scores import squared_gradients

__all__ = [
    "VALUES_SUFFIX",
    "Mask",
    "MaskRule",
    "Overlap",
    "canonical_name",
    "complement_count",
    "difference",
    "fingerprint",
    "intersection",
    "masked_candidates",
    "overlap",
    "overlap_matrix",
    "squared_gradients",
    "union",
]
