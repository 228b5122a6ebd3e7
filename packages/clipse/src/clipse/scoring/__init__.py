"""From a model and a split to retrieval metrics with intervals, and from a run to its registry row."""
