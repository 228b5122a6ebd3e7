"""Language models that read an image: decoders, recursion, and the sequences that they train on."""
