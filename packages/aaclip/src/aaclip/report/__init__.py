"""What a person looks at: heatmaps over pictures, and pages."""
