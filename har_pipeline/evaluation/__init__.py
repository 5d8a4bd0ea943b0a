"""What runs scored: run folders, measures, folds and repeats, fusion, comparison, pictures; imports no torch."""
