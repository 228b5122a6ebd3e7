"""Losses, the two stages as LightningModules, and `experiment.train`."""
