"""Trained runs at work: loaded with their weights, on files, on a camera, and what that costs."""
