"""Defenses: detectors, repairers, filters and reformers, each in a file of its own; `base` has what they share."""
