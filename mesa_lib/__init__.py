"""mesa_lib: model the distribution of backdoor triggers (MESA), and repair models with it.

The paper's method is in the modules of this folder, in reading order:

    triggers      patterns, random families, stamping
    generator     G: noise -> trigger
    mine          I(G(z); z), the entropy term: MINE
    success       F: trigger -> success
    settings      settings of modeling and repair; the presets `paper` and `official`
    staircase     hinge loss, Algorithm 2 (one level), Algorithm 1 (the staircase)
    distribution  TriggerDistribution: sample, at(beta), save and restore; mixture weights
    inversion     the baseline: a single inverted trigger
    training      the one training loop
    retrain       the repair
    device        device, precision, seeds
    progress      progress bars

Around it, each package may use those above it:

    models        networks, folding and freezing, inference
    store         artifacts, locks, files written whole, checkpoints
    data          data sets: digits, CIFAR, class folders
    attacks       how backdoors are planted, one file an attack
    defenses      detectors, repairs and filters, one file each; `mesa` is ours
    evaluation    accuracy, attack success rates, confidence intervals
    experiments   parameters, the pipeline (train or load each stage), notebooks, sweeps, results
    scan          third-party models
    reporting     figures, tables, HTML reports
    cli           the command line
"""

from mesa_lib.distribution import TriggerDistribution
from mesa_lib.inversion import invert_trigger
from mesa_lib.retrain import repair, stamping
from mesa_lib.settings import PRESETS, RepairSettings, Settings
from mesa_lib.staircase import fit
from mesa_lib.success import asr_of_triggers
from mesa_lib.triggers import random_triggers, stamp

__version__ = "0.2.0"
__all__ = [
    "PRESETS",
    "RepairSettings",
    "Settings",
    "TriggerDistribution",
    "asr_of_triggers",
    "fit",
    "invert_trigger",
    "random_triggers",
    "repair",
    "stamp",
    "stamping",
]
