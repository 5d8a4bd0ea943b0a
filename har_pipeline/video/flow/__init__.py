"""Optical flow between successive frames: methods, their options, a cache, pictures."""
