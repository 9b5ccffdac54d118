"""Calls of one network by several frames as one call, and its result as theirs.

    calls                  # two of {"sample": (2, 4, 8, 8), "timestep": ()}
    one = joined(calls)    # {"sample": (4, 4, 8, 8), "timestep": ()}
    parted(out, calls)     # two of (2, 4, 8, 8), where out is what one makes

A value with a row for each of a call's rows is concatenated. What has none must be equal in all.

A call has a row for each of its images in each pass of guidance. The rows of the first pass come
first, as in a stock call of several images: the first passes of all calls, then the second ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from torch import Generator, Tensor

from ttsnap.pipelines.calls.stops import PartCall
from ttsnap.pipelines.calls.values import shape_of, tensors_in

INPUTS = ("hidden_states", "sample", "x", "z")
"""What networks and decoders call the argument whose first axis is that of their rows."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a joined result may be from that of a call alone, as a share of the largest value."""


Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands among the arguments of a call: ("added_cond_kwargs", "time_ids")."""


class UnlikeError(ValueError):
    """Calls that cannot be one."""


class PartArguments(NamedTuple):
    """Those of a call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    width: int = 1
    """How many images its rows are of."""
    first: int = 0
    """The first of the images that are wanted."""
    images: int = 1
    """How many are wanted."""
    rowed: frozenset[Path] | None = None
    """Which of its values have a row for each; None: those that are as long as it has rows."""

    @property
    def rows(self) -> int:
        """How many rows it has. UnlikeError where that is not to be seen."""
        first = self.input
        if not isinstance(first, Tensor | list) or (isinstance(first, Tensor) and first.ndim == 0):
            raise UnlikeError(f"no rows are seen in {type(first).__name__}")
        if len(first) % self.width:
            raise UnlikeError(f"{len(first)} rows of {self.width} images")
        return len(first)

    @property
    def passes(self) -> int:
        """How many rows an image has."""
        return self.rows // self.width

    @property
    def input(self) -> Any:
        """The argument with a row for each: a tensor, or a list with one tensor a row."""
        named = [self.kwargs[name] for name in INPUTS if name in self.kwargs]
        return (*named, *self.args, None)[0]

    def alone(self, image: int) -> PartArguments:
        """The same, of which one image is wanted."""
        return self._replace(first=image, images=1)


def rows_of(call: PartCall) -> int:
    """How many rows a call has; 1 where that is not to be seen."""
    try:
        return PartArguments(call.args, call.kwargs).rows
    except UnlikeError:
        return 1


class _Piece(NamedTuple):
    """Rows of one call that lie together in the joined one."""

    call: int
    rows: slice

    @property
    def size(self) -> int:
        return int(self.rows.stop - self.rows.start)


def _pieces(calls: Sequence[PartArguments]) -> list[_Piece]:
    """Those of a joined call, in order."""
    found = []
    passes = [call.passes for call in calls]
    for number in range(max(passes)):
        for i, call in enumerate(calls):
            if number < passes[i]:
                start = number * call.width + call.first
                found.append(_Piece(i, slice(start, start + call.images)))
    return found


def joined(
    calls: Sequence[PartArguments],
    *,
    aligned: bool,
    equal: Callable[[Tensor, Tensor], bool] = torch.equal,
) -> PartArguments:
    """One call of the wanted images of several. aligned: whether all frames are at one index, and
    so at one timestep.

    UnlikeError where they differ in what has no rows.
    """
    first = calls[0]
    if len({(len(call.args), tuple(call.kwargs)) for call in calls}) > 1:
        raise UnlikeError("calls with other arguments")
    join = _Join.of(calls, aligned, equal)
    columns = zip(*(call.args for call in calls), strict=True)
    args = tuple(join(column, (i,)) for i, column in enumerate(columns))
    kwargs = {name: join([call.kwargs[name] for call in calls], (name,)) for name in first.kwargs}
    images = sum(call.images for call in calls)
    return PartArguments(args, kwargs, images, 0, images, first.rowed)


def stacked(values: Sequence[Any], call: PartArguments) -> Any:
    """What calls of single images made, as what one call of all of them makes.

    call: any of them.
    """
    numbers = range(call.passes)
    pieces = [
        _Piece(i, slice(number, number + 1)) for number in numbers for i in range(len(values))
    ]
    rows = [call.passes] * len(values)
    listed = isinstance(call.input, list)
    return _Join(rows, pieces, listed, None, aligned=True, equal=torch.equal)(values, ())


@dataclass(frozen=True)
class _Join:
    """Makes one argument of those of several calls."""

    rows: Sequence[int]
    """Of each call."""
    pieces: Sequence[_Piece]
    listed: bool
    """Whether they are entries of lists."""
    rowed: frozenset[Path] | None
    """Which values have rows; None: those that are as long."""
    aligned: bool
    equal: Callable[[Tensor, Tensor], bool]

    @classmethod
    def of(
        cls,
        calls: Sequence[PartArguments],
        aligned: bool,
        equal: Callable[[Tensor, Tensor], bool],
    ) -> Self:
        """Of the wanted images of calls."""
        listed = isinstance(calls[0].input, list)
        rows = [call.rows for call in calls]
        return cls(rows, _pieces(calls), listed, calls[0].rowed, aligned, equal)

    def __call__(self, values: Sequence[Any], path: Path) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return self._tensors(values, path)
        if (generator := generator_in(first)) is not None:
            # Most decoders take one and draw nothing. Of others a trial differs.
            return generator.clone_state()
        if isinstance(first, dict):
            return self._dicts(values, path)
        alike = all(type(each) is type(first) for each in values)
        if isinstance(first, list | tuple) and first and alike:
            return self._lists(values, path)
        if any(each is not first and each != first for each in values):
            raise UnlikeError(f"values without rows that differ, as {first!r:.40}")
        return first

    def _tensors(self, values: Sequence[Tensor], path: Path) -> Tensor:
        first = values[0]
        if any(not isinstance(each, Tensor) for each in values):
            raise UnlikeError("tensors and others")
        if any(shape_of(each) != shape_of(first) for each in values):
            raise UnlikeError("tensors of other shapes")
        if first.ndim and self._have_rows(values, path):
            return torch.cat([values[piece.call][piece.rows] for piece in self.pieces])
        if first.numel() == 1 and first.ndim < 2 and not self.aligned:
            # A timestep for all rows of a call.
            return torch.cat([values[piece.call].expand(piece.size) for piece in self.pieces])
        if any(each is not first and not self.equal(each, first) for each in values):
            raise UnlikeError("tensors without rows that differ")
        return first

    def _dicts(self, values: Sequence[Any], path: Path) -> Any:
        first = values[0]
        if any(not isinstance(each, dict) or each.keys() != first.keys() for each in values):
            raise UnlikeError("dicts with other names")
        made = {name: self([each[name] for each in values], (*path, name)) for name in first}
        return made if type(first) is dict else type(first)(**made)  # as an output class

    def _lists(self, values: Sequence[Any], path: Path) -> Any:
        """Rows are joined in order, other entries with those in their place."""
        first = values[0]
        if (self.listed or self.rowed is not None) and self._have_rows(values, path):
            return type(first)(
                one for piece in self.pieces for one in values[piece.call][piece.rows]
            )
        if any(len(each) != len(first) for each in values):
            raise UnlikeError("lists of other lengths")
        columns = zip(*values, strict=True)
        return type(first)(self(column, (*path, i)) for i, column in enumerate(columns))

    def _have_rows(self, values: Sequence[Any], path: Path) -> bool:
        """Whether each value has the rows of its call."""
        if self.rowed is not None and path not in self.rowed:
            return False
        return all(len(value) == n for value, n in zip(values, self.rows, strict=True))


def parted(made: Any, calls: Sequence[PartArguments]) -> list[Any]:
    """The result of a joined call as those of the calls, for each image that these have.

    An image that was not wanted has the result of the last one that was. UnlikeError where the
    result has no rows.
    """
    pieces = _pieces(calls)
    rows: list[list[slice]] = [[] for _ in calls]
    end = 0
    for piece in pieces:
        end += piece.size
        call = calls[piece.call]
        rows[piece.call].append(slice(end - piece.size, end))
        rows[piece.call] += [slice(end - 1, end)] * (call.width - call.images)
    listed = isinstance(calls[0].input, list)
    return [_picked(made, own, end, listed=listed) for own in rows]


def image_of(made: Any, call: PartArguments, image: int) -> Any:
    """The result for one image, of that of a call."""
    starts = [number * call.width + image for number in range(call.passes)]
    rows = [slice(start, start + 1) for start in starts]
    return _picked(made, rows, call.rows, listed=isinstance(call.input, list))


def rowed_in(several: Any, one: Any, path: Path = ()) -> Iterator[Path]:
    """Which values have more entries in a call of several images than in a call of one."""
    if isinstance(several, Mapping):
        for name in several:
            yield from rowed_in(several[name], one[name], (*path, name))
        return
    listed = isinstance(several, list | tuple)
    tensor = isinstance(several, Tensor) and several.ndim > 0
    if generator_in(several) is not None or not (listed or tensor):
        return
    if len(several) != len(one):
        yield path
    elif listed:
        for i, (more, own) in enumerate(zip(several, one, strict=True)):
            yield from rowed_in(more, own, (*path, i))


def generator_in(value: Any) -> Generator | None:
    """A generator, or the first of a list of them."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, Generator) else None


def _picked(made: Any, rows: Sequence[slice], count: int, *, listed: bool) -> Any:
    """Some rows of a result. count: how many it has. listed: whether they are entries of lists."""
    if isinstance(made, Tensor):
        if made.ndim == 0 or len(made) != count:
            raise UnlikeError(f"a result of {tuple(made.shape)} for {count} rows")
        # Not by `split`, whose views must not be written into where they have a graph.
        chunks = [made[each] for each in rows]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)
    if listed and isinstance(made, list) and len(made) == count:
        return [row for each in rows for row in made[each]]
    if isinstance(made, Mapping):
        inside = {name: _picked(each, rows, count, listed=listed) for name, each in made.items()}
        return inside if type(made) is dict else type(made)(**inside)
    if isinstance(made, tuple | list):
        return type(made)(_picked(each, rows, count, listed=listed) for each in made)
    if made is None or isinstance(made, bool | int | float | str):
        return made
    raise UnlikeError(f"a result of type {type(made).__name__}")


def close(made: Any, alone: Any) -> bool:
    """Whether two results are equal but for rounding."""
    some = tensors_in(made)
    others = tensors_in(alone)
    if len(some) != len(others):
        return False
    return all(_near(*pair) for pair in zip(some, others, strict=True))


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    share = TOLERANCE.get(one.dtype, 5e-2)
    largest = float(other.detach().abs().nan_to_num().max()) if other.numel() else 0.0
    atol = share * max(1.0, largest)
    return torch.allclose(one, other, atol=atol, rtol=share, equal_nan=True)
