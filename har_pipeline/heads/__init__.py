"""Networks on cached features."""
