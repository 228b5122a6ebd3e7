"""Many trainings compared: losses × seeds (`compare`), and a weighting's parameters searched (`tune`)."""
