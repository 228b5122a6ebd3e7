"""The trained detector: predict, calibrate, remember, save and load."""
