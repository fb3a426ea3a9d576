"""A stranger's model: what its file and a few hundred clean images say about it.

checkpoint.py  a file of weights, compared with the architecture before it is loaded
model.py       the checkpoint, or any module -> a network that takes images in [0, 1] and answers with logits
images.py      a folder of class folders -> images and labels, and what was odd about them
accuracy.py    does the model know the images at all?
detector.py    MESA with nothing known: which patches are tried, and a limit for each way of stamping them
alarms.py      how often clean models are flagged
progress.py    the time left
options.py     what is looked for, and how a repair is trained
scanner.py     all classes screened, suspects modeled, a verdict, on request the repair
repair.py      what a repair stamps, and what is told about it
report.py      the result as a JSON file and as one HTML page
text.py        names from outside in messages
command.py     `python -m mesa_lib scan`
"""

from mesa_lib.scan.accuracy import NoVerdict
from mesa_lib.scan.options import Options
from mesa_lib.scan.reading.images import Images
from mesa_lib.scan.reading.images import read as read_images
from mesa_lib.scan.reading.model import prepare
from mesa_lib.scan.reading.model import read as read_model
from mesa_lib.scan.scanner import Scan, scan

__all__ = ["Images", "NoVerdict", "Options", "Scan", "read_images", "read_model", "scan", "understood"]
