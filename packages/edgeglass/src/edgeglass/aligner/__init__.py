"""The trained model as a person uses it: embed, index, search, calibrate, export."""
