"""What a person looks at: the search page and the plots of runs, comparisons and searches."""
