"""What the network costs, beside what people would use instead: `python -m experiments.bench`."""
