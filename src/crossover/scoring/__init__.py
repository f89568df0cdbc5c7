"""How good a model is, under a declared procedure."""
