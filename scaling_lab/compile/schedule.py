"""Walks a scheduled module in its order and keeps the clock: what runs, what waits.

Compute advances the clock by the compiler's own estimate, or by our price where it has
none. A collective or copy that is started runs on its links while the clock goes on,
and what is left of it when its result is asked for is exposed; a synchronous one is
exposed whole. Links carry one collective at a time, so a later one queues. Of the
branches of a conditional the longest counts: in a program that every device runs, some
device takes it and the others wait.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from scaling_lab.compile import _names, _shapes, hlo, links
from scaling_lab.compile._clock import COLLECTIVE, COMPUTE, COPY, Clock, Piece
from scaling_lab.compile._module import Computation, Instruction, Module
from scaling_lab.compile._trips import trip_count
from scaling_lab.compile._work import Work, free
from scaling_lab.compile.price import Efficiencies, Physics

Facts = tuple[Physics, Efficiencies]
_ENDS = ("AsyncCollectiveStart", "AsyncCollectiveDone")
_CALLS = ("while", "conditional", "call")
_HOLDERS = ("fusion", "async-start", "call-start")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the walk is: how often that runs, inside what."""

    count: int = 1
    known: bool = True
    loop: str | None = None
    op_name: str = ""


class Schedule:
    """The pieces of a module's step, in order, and its seconds.

    Args:
      module: a scheduled one.
      meshes: axis -> size in the mesh's order, inside a slice and of all of them.
      links_of: axis -> `links.Link`. facts: of the chip; `None` prices nothing.
      names: of the module's instructions.
    """

    def __init__(
        self,
        module: Module,
        meshes: tuple[Mapping[str, int], Mapping[str, int]],
        links_of: Mapping[str, links.Link],
        facts: Facts | None,
        names: _names.Names,
    ):
        self._module = module
        self._mesh = meshes[0], hlo.crossing(*meshes)
        self._links = links_of
        self._facts = facts
        self._work = Work(module, facts)
        self._names = names
        self.pieces, self.seconds = self._walk(module.entry, _Place())

    def link(self, axes: tuple[str, ...]) -> links.Link:
        """The links of a collective's axes; all there are where these are unknown."""
        known = [axis for axis in axes if axis in self._links] or list(self._links)
        found = self._links[known[0]]
        for axis in known[1:]:
            found = found.joined(self._links[axis])
        return found

    def _walk(
        self, computation: Computation, place: _Place
    ) -> tuple[list[Piece], float]:
        """Every piece of one computation in its order, and its seconds."""
        clock, pieces = Clock(), []
        for name, op_name in self._names.of(computation).items():
            if _names.verb_of(place.op_name) and not _names.verb_of(op_name):
                op_name = place.op_name  # its caller's
            here = dataclasses.replace(place, op_name=op_name or place.op_name)
            pieces += self._step(computation, name, here, clock)
        return pieces + clock.finish_all(), clock.now

    def _step(
        self, computation: Computation, name: str, place: _Place, clock: Clock
    ) -> list[Piece]:
        """One instruction: what it ends, what it computes, what it moves."""
        instruction = computation[name]
        opcode = instruction.opcode
        if free(instruction) or opcode.endswith("-update"):
            return []
        if opcode in _CALLS:
            return self._inner(computation, instruction, place, clock)
        if opcode.endswith("-done"):
            return clock.finish(_origin(computation, instruction))
        if opcode == "recv":
            return []  # what is received was sent at the same time
        base = Piece(
            COMPUTE,
            name,
            opcode,
            place.op_name,
            self._module.source(instruction),
            place.loop,
            place.count,
            place.known,
        )
        inside = list(self._inside(computation, instruction))
        moves = [
            (found, each)
            for body, each in inside
            if (found := hlo.of_instruction(each, body, *self._mesh)) is not None
        ]
        pieces = []
        for body, each in inside:
            if each.target == "AsyncCollectiveDone":
                pieces += clock.finish(_channel(body, each))
        if opcode.endswith("-start"):
            if not moves:
                self._copy(base, instruction, clock)
        elif opcode not in (*hlo.KINDS, "send"):
            moving = any(each.target in _ENDS for _, each in inside)
            pieces += self._compute(base, computation, moving, clock)
        for (kind, axes, size), each in moves:
            move = dataclasses.replace(
                base, what=COLLECTIVE, kind=kind, axes=axes, bytes=size
            )
            if each is instruction:
                shares = self._shares(computation, instruction)
                move = dataclasses.replace(move, shares=shares)
            pieces += self._move(move, each, _key(instruction, name, each), clock)
        return pieces

    def _inner(
        self,
        computation: Computation,
        instruction: Instruction,
        place: _Place,
        clock: Clock,
    ) -> list[Piece]:
        """A loop's body as often as it runs, the longest branch, or what is called."""
        bodies = self._module.computations
        if instruction.opcode == "while":
            trips, known = trip_count(self._module, computation, instruction)
            body = instruction.attribute(r"\bbody=%?([\w.\-]+)")
            inner = dataclasses.replace(
                place, count=place.count * trips, known=place.known and known, loop=body
            )
            pieces, once = self._walk(bodies[body], inner)
            clock.now += once * trips
            return pieces
        every = [self._walk(bodies[each], place) for each in instruction.callees]
        pieces, once = max(every, key=lambda branch: branch[1], default=([], 0.0))
        clock.now += once
        return pieces

    def _inside(
        self, computation: Computation, instruction: Instruction
    ) -> Iterator[tuple[Computation, Instruction]]:
        """An instruction, and all that is fused in it or called asynchronously."""
        yield computation, instruction
        if instruction.opcode in _HOLDERS:
            for name in instruction.callees:
                body = self._module.computations[name]
                for each in body.values():
                    yield from self._inside(body, each)

    def _shares(
        self, computation: Computation, instruction: Instruction
    ) -> tuple[tuple[str, float], ...]:
        """The name and the share of bytes of each array of a collective."""
        operands = instruction.operands
        if len(operands) < 2 or instruction.opcode.startswith("ragged"):
            return ()  # what else a ragged one takes says where its one array goes
        names = self._names.of(computation)
        merged = _names.alternatives(instruction.op_name)
        if len(merged) != len(operands):
            merged = tuple(names[operand] for operand in operands)
        sizes = [_shapes.total_bytes(computation[each].shape) for each in operands]
        whole = sum(sizes) or 1
        return tuple((n, s / whole) for n, s in zip(merged, sizes, strict=True))

    # What takes time.

    def _compute(
        self, piece: Piece, computation: Computation, moving: bool, clock: Clock
    ) -> list[Piece]:
        """Runs it: by the compiler's estimate, or by ours where it has none.

        What only starts or ends a collective (`moving`) costs nothing itself.
        """
        instruction = computation[piece.name]
        scheduled = self._work.scheduled_seconds(instruction)
        modelled = 0.0
        if scheduled is None and not moving:
            modelled = self._work.modelled_seconds(computation, instruction)
        done = dataclasses.replace(
            piece,
            scheduled_seconds=scheduled,
            modelled_seconds=modelled,
            flops=self._work.flops.of(computation, instruction),
        )
        clock.now += done.seconds
        return [done] if done.seconds or done.flops else []

    def _move(
        self, piece: Piece, instruction: Instruction, key: str, clock: Clock
    ) -> list[Piece]:
        """Starts a collective, or waits for all of it."""
        link, alone = self.link(piece.axes), 0.0
        if self._facts:
            moved = (piece.kind, piece.bytes, link)
            alone = links.seconds(*moved, self._facts, instruction.config) or 0.0
        lanes = _lanes(piece.kind, link, clock)
        if not key:
            return clock.run(piece, alone, lanes)
        clock.start(key, piece, alone, lanes)
        return []

    def _copy(self, piece: Piece, instruction: Instruction, clock: Clock) -> None:
        """Starts a copy between memories; those of one kind share one channel."""
        arrays = _shapes.arrays(instruction.shape)
        size = min((array.bytes for array in arrays if array.dims), default=0)
        host = any(array.space == _shapes.HOST for array in arrays)
        rate = None
        if self._facts:
            physics, reached = self._facts
            hbm = (physics.hbm_bytes_per_second or 0.0) * reached.memory
            rate = reached.host_bytes_per_second if host else hbm
        piece = dataclasses.replace(piece, what=COPY, bytes=size)
        clock.start(piece.name, piece, size / rate if rate else 0.0, [(COPY, host)])


def _key(instruction: Instruction, name: str, each: Instruction) -> str:
    """The key by which the end of a collective will know it; "" if synchronous."""
    if instruction.opcode == "send":
        return _meeting(instruction)
    if instruction.opcode.endswith("-start"):
        return "" if '"is_sync":true' in each.config else name
    if "chain_id=" in each.attributes:
        return each.attribute(r"\bchannel_id=(\d+)")
    return ""


def _origin(computation: Computation, done: Instruction) -> str:
    """The start that a done ends, through updates and tuple elements."""
    name = done.operands[0]
    if done.opcode == "recv-done" and name in computation:
        return _meeting(computation[name])
    while name in computation and not computation[name].opcode.endswith("-start"):
        operands = computation[name].operands
        if not operands:
            break
        name = operands[0]
    return name


def _meeting(transfer: Instruction) -> str:
    """What a send and its receive between slices call each other."""
    return transfer.attribute(r'_xla_host_transfer_rendezvous="([^"]*)"')


def _channel(computation: Computation, done: Instruction) -> str:
    """The channel of the collective that an ``AsyncCollectiveDone`` ends."""
    made = [computation[name] for name in done.operands if name in computation]
    found = (each.attribute(r"\bchannel_id=(\d+)") for each in made)
    return next((channel for channel in found if channel), "")


def _lanes(kind: str, link: links.Link, clock: Clock) -> list[object]:
    """The links it occupies: all along its axes, a permute's one direction of them."""
    dims: list[object] = [dim for dim, _, _ in link.rings] or [link.kind]
    if link.nodes > 1:
        dims = [*dims, links.DCN]
    if kind != "collective-permute":
        return [(dim, way) for dim in dims for way in (0, 1)]
    way = min((0, 1), key=lambda way: clock.free_at((dims[0], way)))
    return [(dim, way) for dim in dims]
