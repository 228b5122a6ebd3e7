"""From a detector and a labelled set to numbers and files."""
