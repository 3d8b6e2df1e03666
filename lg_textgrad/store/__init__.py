"""What was paid for, content-addressed; candidates, lineage, decisions and events.

One SQLite file a run directory, or one schema a run in a PostgreSQL database. Everything is written
the moment it is known and under a key that is made from its content, so writing it again changes
nothing: a run that was killed is started again from the top and finds all that it had paid for.
"""

from lg_textgrad.store.file import FILE_NAME
from lg_textgrad.store.postgres import is_url, run_name, without_password
from lg_textgrad.store.records import decode_run, encode_run
from lg_textgrad.store.salvage import Salvaged
from lg_textgrad.store.store import Store
from lg_textgrad.store.tables import TOOL

__all__ = [
    "FILE_NAME",
    "TOOL",
    "Salvaged",
    "Store",
    "decode_run",
    "encode_run",
    "is_url",
    "run_name",
    "without_password",
]
