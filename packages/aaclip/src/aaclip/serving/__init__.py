"""A server: a page on which a person inspects photos, and the same as JSON. Needs the extra `serve`."""
