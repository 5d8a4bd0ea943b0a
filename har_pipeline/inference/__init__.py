"""Trained runs in use: loading, prediction from files and cameras, and what that costs in time and accuracy."""
