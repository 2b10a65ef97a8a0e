"""Proofs of the promises that are too long for the test suite. `python -m reliability --help` lists them."""
