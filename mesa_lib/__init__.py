"""mesa_lib: modelling the distribution of backdoor triggers (MESA), and repairing models with it.

The modules, in the order in which data flows:

    data -> triggers -> classifiers -> training -> attack
         -> generator, mine, staircase (MESA), point (the baseline)
         -> plots -> retrain -> metrics

and around them: params (the notebooks' parameters), stages (train or load each step of the series), store
(artifacts on disk), runner (the series through papermill), repeat (tables over seeds), device, paths, progress.
"""

__version__ = "0.1.0"
