"""Networks, their weights, a classifier as a fixed function, and inference in batches."""
