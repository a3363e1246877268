"""Losses that compare the overlap of two regions."""
