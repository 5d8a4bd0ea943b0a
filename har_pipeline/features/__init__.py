"""Features of videos: the store, extraction into it, reduction, packs, tables for training."""
