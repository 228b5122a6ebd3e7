"""The trained classifier as a person holds it: load, predict, draw where it looked, save."""
