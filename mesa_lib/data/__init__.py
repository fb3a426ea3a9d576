"""Data sets, each as training, modeling and evaluation images, and the reading of files from outside.

splits.py        images and labels as two tensors, and how test images are divided
datasets.py      a data set by name
digits.py        scikit-learn's digits
cifar.py         CIFAR-10 and CIFAR-100
folder.py        trees of class folders
class_folders.py the files of a tree of class folders
images.py        the one reader of class folders, used by `run` and `scan`
decoding.py      one image file from outside -> one RGB picture
trigger_spec.py  triggers by name or from a file
"""

from mesa_lib.data.datasets import class_names, load
from mesa_lib.data.splits import Dataset, Split

__all__ = ["Dataset", "Split", "class_names", "load"]
