"""Losses made of several terms."""
