"""Results of runs: run folders, measures, folds and repeats, fusion, comparison, pictures; imports no torch."""
