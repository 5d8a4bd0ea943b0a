"""Nets that turn clips into features, one file each."""
