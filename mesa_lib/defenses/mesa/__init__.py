"""MESA as a defense: which classes are backdoored, and the repair.

- `screening`: all classes at once, at little cost
- `location_search`: where on the image a class responds to patches
- `detector`: the full staircase for the suspects, and the verdict
- `repair`: retraining on samples of the modeled distributions
- `trigger_search`: triggers by selection and mutation, with forward passes only
- `repair_rounds`: rounds of repair until a residual check finds nothing
"""
