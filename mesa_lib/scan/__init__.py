"""Third-party models: what a file of weights and a few hundred clean images say about a backdoor.

    reading/          a checkpoint and the name of its architecture, or any module -> images in [0, 1] to logits
    hold_out          the images that are kept for the accuracy of a repaired model
    accuracy          does the model classify the images at all?
    detector          MESA with nothing known: which patches are tried, and a limit for each way of stamping
    observer          every step of the search stored, the time left told
    false_positives   how often clean models are flagged
    p_values          how rarely a clean network stands out as much as a scanned one
    options           what is looked for, and how a repair is trained
    scanner           all classes screened, suspects modeled, a verdict, on request the repair
    repair            what a repair stamps, and what is reported about it
    writing           the repaired model as a file, in the form in which the scanned one came
    migration         results of earlier versions

The reports are written by `reporting.html.scan`, the command `python -m mesa_lib scan` is `cli.scan`.
"""

from mesa_lib.data.images import Images, read_images
from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.options import Options
from mesa_lib.scan.reading.model import read_model
from mesa_lib.scan.reading.prepare import prepare
from mesa_lib.scan.scanner import Scan, scan

__all__ = ["Images", "NoVerdict", "Options", "Scan", "prepare", "read_images", "read_model", "scan"]
