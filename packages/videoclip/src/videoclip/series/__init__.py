"""Many trainings compared: the ablation table and cross-validation by subject."""
