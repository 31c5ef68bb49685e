"""``scaling-lab serve-report``: the page of a folder, live."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import tyro


def serve_report(
    folder: Annotated[Path, tyro.conf.Positional],
    port: int | None = None,
    host: str = "127.0.0.1",
) -> int:
    """Show the page about the records of a folder live, while a sweep runs.

    The page follows the records by itself; filters, sorting and open runs stay as they
    are. Start it before the sweep's first run has ended if you like. Ctrl-C ends it.

        scaling-lab serve-report runs/first --port 8000

    Args:
        folder: What a sweep writes to, or a records.jsonl.
        port: Where; without one, a port that is free.
        host: Address to listen at; any other than this machine's own loopback lets
            whoever reaches it read the records.
    """
    from scaling_lab.studies import live

    server = live.server_of(live.Records(folder), host, port)
    for each in (signal.SIGINT, signal.SIGTERM):
        # A shell's background jobs are started deaf to the first.
        signal.signal(each, signal.default_int_handler)
    with server:
        print(f"{live.url_of(server)}  (Ctrl-C ends it)", flush=True)
        if live.is_open(server):
            print("whoever reaches this address can read the records", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")
    return 0
