"""Tables: of the paper, of the benchmark, and those of the README."""
