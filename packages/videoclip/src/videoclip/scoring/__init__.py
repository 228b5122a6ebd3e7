"""Predictions to numbers, and a run scored on subjects that it never saw."""
