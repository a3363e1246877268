"""Benchmarks of the network, its losses and its input pipeline."""
