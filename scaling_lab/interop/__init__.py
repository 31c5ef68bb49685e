"""In and out: what others write, as records of this lab.

`tables` reads tables of runs: a W&B export, a trainer's log, published runs.
"""

from scaling_lab.interop.tables import Imported, read_table

__all__ = ["Imported", "read_table"]
