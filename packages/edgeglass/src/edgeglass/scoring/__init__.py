"""From a model and a split to retrieval metrics, and from a run to its registry row."""
