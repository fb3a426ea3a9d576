"""Batch runs: a grid of parameters, each cell taken through the notebooks by papermill, on Dask workers.

sweep (what is wanted) -> task (one cell of the grid) -> cluster (who works) -> run (until all are done) -> report
"""
