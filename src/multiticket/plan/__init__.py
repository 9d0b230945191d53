"""How much memory a run will need, before anything is loaded."""
