"""The search page and the plots."""
