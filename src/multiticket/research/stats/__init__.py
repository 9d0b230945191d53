"""Statistics for studies: tests, intervals, corrections for several comparisons, and fits."""
