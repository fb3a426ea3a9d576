"""The bench: any defence against any attack. `victim` runs them, `tables` and `plots` show what the sweeps found."""

from .victim import Bench, separation

__all__ = ["Bench", "separation"]
