"""Losses, Lightning modules, and the recipe from a configuration to a trained run."""
