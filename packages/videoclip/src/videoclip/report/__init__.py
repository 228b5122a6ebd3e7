"""What a person looks at: plots of a run, and maps in colour over the frames."""
