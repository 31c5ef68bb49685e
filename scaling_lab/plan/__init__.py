"""Search for the best layout: enumerate, prune by law, rank by prediction, confirm."""
