"""Encoders over frozen trunks, the pooling between them and the shared space, and the model that aligns them."""
