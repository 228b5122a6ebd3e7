"""The command `aaclip`."""
