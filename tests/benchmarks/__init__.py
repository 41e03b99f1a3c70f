"""Benchmarks: the whole path measured side by side with its peers. `make bench` runs them."""
