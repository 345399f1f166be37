"""How much an explanation costs, as a multiple of a bare forward pass."""
