"""Losses that compare each pixel's probability with its label."""
