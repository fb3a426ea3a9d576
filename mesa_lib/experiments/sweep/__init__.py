"""Sweeps: a grid of parameters, each cell taken through the notebooks by papermill, on Dask workers.

`grid` (the sweep file, checked) -> `task` (one cell) -> `cluster` (the workers) -> `runner` (until all tasks ended)
-> `publish` (results that are committed); the report is in `reporting.html.sweep`.
"""
