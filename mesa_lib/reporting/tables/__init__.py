"""Tables: of the paper, of the benchmark, of docs/results.md and of the README."""
