"""Studies: records to tables and one self-contained report page. No jax.

Opens on a laptop: it needs the record file, pandas and nothing of the machine that
ran the runs. Scaling laws are fitted in `scaling_lab.studies.fitting`, which needs
scipy too and is not imported here.
"""

from scaling_lab.studies.columns import COLUMNS, Column, column
from scaling_lab.studies.filters import select
from scaling_lab.studies.report import report
from scaling_lab.studies.rows import frame
from scaling_lab.studies.table import table, write_table

__all__ = [
    "COLUMNS",
    "Column",
    "column",
    "frame",
    "report",
    "select",
    "table",
    "write_table",
]
