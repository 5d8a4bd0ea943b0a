"""Decoding, preprocessing and writing of video files."""
