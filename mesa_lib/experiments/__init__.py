"""Experiments: parameters, the pipeline (train or load each stage), notebooks, sweeps, results."""
