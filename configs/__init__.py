"""Floor 0: what models are made of, as values. Standard library only."""
