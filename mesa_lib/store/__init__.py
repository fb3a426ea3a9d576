"""Files on disk: artifacts by the key of their configuration, locks, atomic writes, checkpoints."""

from mesa_lib.store.artifacts import Artifact, artifact_folder, canonical, config_key, load, save, train_or_load
from mesa_lib.store.checkpoints import load_checkpoint, refuse_pickle, tensors_key
from mesa_lib.store.files import digest, sync, write_atomic
from mesa_lib.store.locks import lock

__all__ = [
    "Artifact",
    "artifact_folder",
    "canonical",
    "config_key",
    "digest",
    "load",
    "load_checkpoint",
    "lock",
    "refuse_pickle",
    "save",
    "sync",
    "tensors_key",
    "train_or_load",
    "write_atomic",
]
