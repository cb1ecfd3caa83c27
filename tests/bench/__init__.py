"""Measurements against floors and peers of the same run. `python -m tests.bench` runs all; one module measures one thing.

A module has `run(quick) -> list[Figure]`. What loads the service is always another process.
"""
