"""The trained model in use: open it, encode, index a folder, search."""
