"""The clock of one computation: what runs, what runs behind it, what is waited for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

COMPUTE, COLLECTIVE, COPY = "compute", "collective", "copy"


@dataclasses.dataclass(frozen=True)
class Piece:
    """One instruction's share of a step; seconds and bytes are of one execution.

    Attributes:
      what: ``compute``, ``collective`` or ``copy`` (between memories, asynchronous).
      name, opcode: of the instruction. op_name: of its trace, or a neighbour's.
      source: "file:line". loop: body of the innermost enclosing loop.
      count: executions a step. known: whether no loop's trips were assumed.
      scheduled_seconds: the compiler's own estimate, where it has one.
      modelled_seconds: what we priced, as far as the step waits for it.
      hidden_seconds: what we priced and something else covers.
      flops: of one execution.
      kind, axes, bytes: of a collective, as `hlo.Collective` counts.
      overlapped: whether it was started before it was asked for.
      shares: (op_name, share) of each array, where several move together.
    """

    what: str
    name: str
    opcode: str
    op_name: str
    source: str | None
    loop: str | None
    count: int
    known: bool
    scheduled_seconds: float | None = None
    modelled_seconds: float = 0.0
    hidden_seconds: float = 0.0
    flops: float = 0.0
    kind: str = ""
    axes: tuple[str, ...] = ()
    bytes: int = 0
    overlapped: bool = False
    shares: tuple[tuple[str, float], ...] = ()

    @property
    def seconds(self) -> float:
        """What one execution adds to the step."""
        return (self.scheduled_seconds or 0.0) + self.modelled_seconds

    def divided(self) -> list[Piece]:
        """What moves together as one piece for each name."""
        if len({name for name, _ in self.shares}) < 2:
            return [self]
        parts: dict[str, float] = {}
        for name, share in self.shares:
            parts[name] = parts.get(name, 0.0) + share
        return [
            dataclasses.replace(
                self,
                op_name=name,
                modelled_seconds=self.modelled_seconds * share,
                hidden_seconds=self.hidden_seconds * share,
                bytes=round(self.bytes * share),
                shares=(),
            )
            for name, share in parts.items()
        ]


@dataclasses.dataclass
class _Flight:
    """Something under way: when it ends, how long it takes, what was waited for it."""

    piece: Piece
    end: float
    seconds: float
    waited: float = 0.0

    def landed(self) -> list[Piece]:
        hidden = max(0.0, self.seconds - self.waited)
        return dataclasses.replace(
            self.piece, modelled_seconds=self.waited, hidden_seconds=hidden
        ).divided()


class Clock:
    """Time inside one computation, and what is under way in it.

    Attributes:
      now: seconds since it began.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._busy: dict[object, float] = {}
        self._flights: dict[str, list[_Flight]] = {}

    def free_at(self, lane: object) -> float:
        """When a lane has done what it was given."""
        return self._busy.get(lane, 0.0)

    def run(self, piece: Piece, seconds: float, lanes: Iterable[object]) -> list[Piece]:
        """Something synchronous on some lanes: all of it is waited for."""
        flight = _Flight(piece, self._occupy(seconds, list(lanes)), seconds)
        self._wait(flight)
        return flight.landed()

    def start(
        self, key: str, piece: Piece, seconds: float, lanes: Iterable[object]
    ) -> None:
        """Something asynchronous on some lanes, under a key until it is asked for."""
        end = self._occupy(seconds, list(lanes))
        piece = dataclasses.replace(piece, overlapped=True)
        self._flights.setdefault(key, []).append(_Flight(piece, end, seconds))

    def finish(self, key: str) -> list[Piece]:
        """Waits for what was started under a key; the wait is exposed."""
        flights = self._flights.pop(key, [])
        for flight in flights:
            self._wait(flight)
        return [piece for flight in flights for piece in flight.landed()]

    def finish_all(self) -> list[Piece]:
        """Waits for everything that nobody asked for."""
        return [piece for key in list(self._flights) for piece in self.finish(key)]

    def _wait(self, flight: _Flight) -> None:
        """Waits for one; what it queued behind is exposed before it is."""
        wait = max(0.0, flight.end - self.now)
        self.now += wait
        queued = wait - min(wait, flight.seconds)
        for other in [each for flights in self._flights.values() for each in flights]:
            if other.end <= flight.end and other.piece.what == flight.piece.what:
                share = min(queued, other.seconds - other.waited)
                other.waited += share
                queued -= share
                wait -= share
        flight.waited += wait

    def _occupy(self, seconds: float, lanes: Sequence[object]) -> float:
        """The end of something that needs all of some lanes, one after another."""
        begin = max([self.now, *map(self.free_at, lanes)])
        self._busy |= dict.fromkeys(lanes, begin + seconds)
        return begin + seconds
