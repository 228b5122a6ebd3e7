"""Losses, Lightning modules, cached features, and the recipe that makes a run folder of a configuration."""
