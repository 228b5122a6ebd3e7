"""The released AA-CLIP code: its flags and its checkpoints."""
