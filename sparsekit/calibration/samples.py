"""Calibration samples: whatever the user has, as batches that can be read as often as needed.

Calibrated pruning runs the model several times over the same data, layer after layer. So samples are read once from
where they come, checked against the model's inputs, and kept.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.calibration.files import FileBatch, npz_paths, read_npz, shapes
from sparsekit.errors import CalibrationError, near_matches

Array: TypeAlias = npt.NDArray[Any]

_FORMS = (
    "an iterable of batches (dicts of input name to array, arrays, or tuples of arrays), a tf.data.Dataset, a dict of "
    "input name to array, or the path of an .npz file, or several"
)
_BATCH_SIZE = 32
_FIRST_AXIS = "The first axis of every array holds the samples."
# What numpy.savez calls an array that it was given without a name.
_UNNAMED = "arr_0"
# What an input of a kind of dtype takes: with bool, integers and floats numpy's letters, "V" bfloat16 and the like.
_TAKES = {"b": "b", "i": "biu", "u": "biu", "f": "biufV", "V": "biufV", "c": "biufcV", "O": "SUO"}


@attrs.frozen
class ModelInput:
    """An input of the model that samples are for.

    Attributes:
        name: of its placeholder, without ":0".
        dtype: what is fed has, or is converted to; ``object`` for strings.
        shape: None for lengths that are not fixed, and None as a whole for an unknown rank. The first axis holds the
            samples, but see :class:`Split`.
        required: whether it must be fed; an input with a default need not be.
    """

    name: str
    dtype: np.dtype[Any] = attrs.field(converter=np.dtype)
    shape: tuple[int | None, ...] | None = None
    required: bool = True

    def __str__(self) -> str:
        dtype = "string" if self.dtype.kind == "O" else self.dtype.name
        if self.shape is None:
            return f"'{self.name}' ({dtype} of any shape)"
        return f"'{self.name}' ({dtype}[{', '.join('?' if n is None else str(n) for n in self.shape)}])"


@attrs.frozen
class Split:
    """Where the arrays of a feed hold its samples: along their first axis, but for those that are the same for all.

    Attributes:
        samples: how many there are.
        same: the inputs whose arrays are the same for all of them: scalars (a switch, say) and, where not all arrays
            are as long and another input is open there, what fills an input of fully known shape (a mean image, say).
        fixed: how many samples a run takes, None where that is free.
    """

    samples: int
    same: frozenset[str]
    fixed: int | None

    @classmethod
    def of(cls, arrays: Mapping[str, Array], inputs: Sequence[ModelInput], where: str) -> Split:
        """That of a batch, or of all the samples in one.

        Raises:
            CalibrationError: the arrays hold different numbers of samples.
        """
        declared = {known.name: known.shape for known in inputs}
        lengths = per_sample = {name: len(array) for name, array in arrays.items() if array.ndim}
        is_open = any(not shape or shape[0] is None for shape in map(declared.get, lengths))
        if len(set(lengths.values())) > 1 and is_open:
            per_sample = {name: length for name, length in lengths.items() if declared[name] != arrays[name].shape}
        if len(set(per_sample.values())) > 1:
            each = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise CalibrationError(
                f"its arrays hold different numbers of samples: {each}",
                where=where,
                expected="as many",
                hint=f"{_FIRST_AXIS} What is the same for all has the whole shape that its input has in the model.",
            )
        same = frozenset(arrays.keys() - per_sample.keys())
        # An input that is not fed has a default, which may be for samples or the same for all: those that are fed know.
        fed_first = sorted(inputs, key=lambda known: known.name not in arrays)
        fixed = (known.shape[0] for known in fed_first if known.shape and known.name not in same)
        return cls(next(iter(per_sample.values()), 1), same, next((length for length in fixed if length), None))

    def cut(self, arrays: Mapping[str, Array], part: slice) -> dict[str, Array]:
        """The arrays of some of the samples."""
        return {name: array if name in self.same else array[part] for name, array in arrays.items()}


@attrs.frozen(eq=False)
class Batch:
    """What the model is fed at once.

    Attributes:
        feeds: by input name, without ":0".
        fold: 0 or 1: the half of the samples that it belongs to, see :attr:`Samples.halves`.
        split: where the samples are in ``feeds``.
    """

    feeds: Mapping[str, Array]
    fold: int
    split: Split

    @property
    def samples(self) -> int:
        """How many there are in it."""
        return self.split.samples

    def part(self, part: slice) -> Batch:
        """Some of its samples. Only where a run takes any number of them."""
        samples = len(range(*part.indices(self.samples)))
        return Batch(self.split.cut(self.feeds, part), self.fold, attrs.evolve(self.split, samples=samples))


class Samples:
    """Batches for the inputs of a model; iterating gives the same :class:`Batch` objects every time.

    Args:
        source: one of

            - an iterable of batches. A batch is a dict of input name (with or without ":0", or a placeholder) to array,
              or one array for a model with one input, or a tuple of arrays in the order of the inputs. A generator is
              read once, here, to its end, which it must have; what it yields is copied, and kept in memory up to
              ``memory_limit``, then in a temporary file. Arrays in a list or tuple are not copied: do not change them.
            - a ``tf.data.Dataset`` of such batches, finite; read once too, since it may shuffle.
            - a dict of input name to array (for one input also an array or tensor) with all the samples, or the path of
              an .npz file with such arrays (for one input also a single one without a name), which is read whole, or a
              pattern or list of several. They are cut into batches, every file apart.

            In each of them arrays hold the samples along their first axis, or are the same for all, see :class:`Split`;
            what is the same for all samples of a batch or file need not be so for those of another one.
        inputs: the model's, in the order that tuples have.
        batch_size: how many samples a batch has where arrays are cut; the last one may have fewer. Where an input's
            first axis has a fixed length, every batch has that length.
        memory_limit: bytes.

    Arrays are converted to an input's dtype where that loses nothing but digits of floats.

    Raises:
        CalibrationError: it is none of these, is empty, or a batch does not fit the inputs: unknown or missing names, a
            dtype, rank or length that does not fit, arrays of one batch that hold different numbers of samples, NaN.
            The error names the batch, counted from 0, and the input.
            What is kept finds no room in the folder for temporary files. A dataset fails. (What a generator of the
            user's raises passes as it is.)
        MissingFileError: there is no such file.
    """

    def __init__(
        self, source: Any, inputs: Sequence[ModelInput], *, batch_size: int = _BATCH_SIZE, memory_limit: int = 1 << 30
    ) -> None:
        if type(batch_size) is not int or batch_size < 1:
            raise CalibrationError(repr(batch_size), where="batch_size", expected="a positive integer")
        self.inputs = tuple(inputs)
        self._store = _Store(memory_limit)
        where, batches = _open(source, self.inputs, batch_size)
        # A generator may fill the same arrays again and again; many files need not fit into memory.
        paths = npz_paths(source) or ()
        held = len(paths) == 1 or (not paths and (isinstance(source, (Mapping, list, tuple)) or _is_array(source)))
        splits = []
        for number, batch in enumerate(batches):
            feeds, split = _checked(batch, self.inputs, f"{where}batch {number}")
            splits.append(split)
            self._store.append(feeds, copy=not held)
        if not splits:
            raise CalibrationError("is empty", where=f"{where}samples", expected="at least one batch")
        self._splits = splits
        self._parts = _parts(splits)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._parts)

    def __getitem__(self, index: int) -> Batch:
        part = self._parts[index]
        batch = Batch(self._store[part.stored], part.fold, self._splits[part.stored])
        return batch if part.cut is None else batch.part(part.cut)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    @property
    def count(self) -> int:
        """The number of samples in all batches."""
        return sum(part.samples for part in self._parts)

    @property
    def halves(self) -> npt.NDArray[np.int8]:
        """For two-fold cross-validation: the fold, 0 or 1, of every sample, in their order.

        Whole batches belong to a fold, each to the one with fewer samples so far: batches of one size alternate. So
        nothing need be known about where a layer keeps the samples apart. A single batch is cut into two; where it
        cannot be, since it holds one sample or the model fixes the number, all belong to fold 0.
        """
        folds = [part.fold for part in self._parts]
        return np.repeat(np.array(folds, np.int8), [part.samples for part in self._parts])

    def close(self) -> None:
        """Let go of the arrays; a temporary file is deleted (which also happens when nobody holds the samples)."""
        self._store.close()

    def __enter__(self) -> Samples:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# --- batches in two halves -------------------------------------------------------------------------------


@attrs.frozen
class _Part:
    """A batch: a stored one, or a cut of it."""

    stored: int
    cut: slice | None
    samples: int
    fold: int


def _parts(splits: Sequence[Split]) -> list[_Part]:
    if len(splits) == 1 and splits[0].samples > 1 and splits[0].fixed is None:
        whole = splits[0].samples
        half = whole - whole // 2
        return [_Part(0, slice(0, half), half, 0), _Part(0, slice(half, whole), whole - half, 1)]
    parts, sums = [], [0, 0]
    for index, split in enumerate(splits):
        fold = int(sums[1] < sums[0])
        sums[fold] += split.samples
        parts.append(_Part(index, None, split.samples, fold))
    return parts


def file_batches(paths: Sequence[str], inputs: Sequence[ModelInput]) -> list[FileBatch]:
    """The batches that :class:`Samples` would have of these files, without reading them.

    Raises:
        MissingFileError, CalibrationError: a file cannot be read, or there are no samples.
    """
    found = []
    for path in paths:
        stand_ins = {name: np.broadcast_to(np.int8(0), shape) for name, shape in shapes(path).items()}
        _, split = _whole(stand_ins, inputs, f"{path}, ")
        found += [(path, part, split) for part in _slices(split, _BATCH_SIZE)]
    if not found:
        raise CalibrationError("is empty", where=f"{', '.join(paths)}, samples", expected="at least one batch")
    batches = []
    for part in _parts([attrs.evolve(split, samples=cut.stop - cut.start) for _, cut, split in found]):
        path, cut, _ = found[part.stored]
        start = cut.start + (part.cut.start if part.cut else 0)
        batches.append(FileBatch(path, start, start + part.samples, part.fold))
    return batches


def read_batch(batch: FileBatch, arrays: Mapping[str, Array], inputs: Sequence[ModelInput]) -> Batch:
    """A batch of a file whose arrays are read.

    Raises:
        CalibrationError: it does not fit the inputs.
    """
    named, split = _whole(arrays, inputs, f"{batch.path}, ")
    where = f"{batch.path}, samples {batch.start} to {batch.stop - 1}"
    feeds, split = _checked(split.cut(named, slice(batch.start, batch.stop)), inputs, where)
    return Batch(feeds, batch.fold, split)


# --- where batches come from -----------------------------------------------------------------------------


def _open(source: Any, inputs: Sequence[ModelInput], batch_size: int) -> tuple[str, Iterable[Any]]:
    """The batches that ``source`` stands for, and the file that they come from, for messages."""
    paths = npz_paths(source)
    if paths is not None:
        batches = (batch for path in paths for batch in _cut(read_npz(path), inputs, batch_size, f"{path}, "))
        return f"{paths[0]}, " if len(paths) == 1 else f"{paths[0]} to {paths[-1]}, ", batches
    if isinstance(source, Mapping):
        return "", _cut(dict(source), inputs, batch_size, "")
    if _is_array(source):
        only = [known for known in inputs if known.required] or inputs
        if len(only) != 1:
            raise CalibrationError("is one array", where="samples", expected=f"a dict of arrays: {_listed(inputs)}")
        return "", _cut({only[0].name: source}, inputs, batch_size, "")
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and isinstance(source, tensorflow.data.Dataset):
        return "", _of_dataset(source, tensorflow)
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise CalibrationError(f"got {type(source).__name__}", where="samples", expected=_FORMS)
    return "", source


def _cut(arrays: Mapping[Any, Any], inputs: Sequence[ModelInput], size: int, where: str) -> Iterator[dict[str, Array]]:
    """Arrays that hold all the samples, cut into batches."""
    named, split = _whole(arrays, inputs, where)
    return (split.cut(named, part) for part in _slices(split, size))


def _whole(arrays: Mapping[Any, Any], inputs: Sequence[ModelInput], where: str) -> tuple[dict[str, Array], Split]:
    """Arrays that hold all the samples, by input name."""
    if not arrays:
        raise CalibrationError("holds no arrays", where=f"{where}samples", expected=_listed(inputs))
    named = {
        known.name: _array(value, f"{where}input '{known.name}'")
        for known, value in _by_input(arrays, inputs, f"{where}samples")
    }
    return named, Split.of(named, inputs, f"{where}samples")


def _slices(split: Split, size: int) -> list[slice]:
    """The batches of arrays that hold all the samples."""
    size = split.fixed or size
    return [slice(start, min(start + size, split.samples)) for start in range(0, split.samples, size)]


def _of_dataset(dataset: Any, tensorflow: Any) -> Iterator[Any]:
    if not tensorflow.executing_eagerly():
        raise CalibrationError(
            "is a tf.data.Dataset, which cannot be read where eager execution is off",
            where="samples",
            hint="Make the samples outside of `with graph.as_default()`, or give arrays.",
        )
    if dataset.cardinality() == tensorflow.data.INFINITE_CARDINALITY:
        raise CalibrationError(
            "is a tf.data.Dataset without end", where="samples", hint="Take some of its batches: dataset.take(8)."
        )
    batches = dataset.as_numpy_iterator()
    for number in itertools.count():
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tensorflow.errors.OpError as error:
            cause = re.sub(r"{{.*?}} *", "", error.message).strip().partition("\n")[0]
            raise CalibrationError(
                f"the tf.data.Dataset fails ({cause[:400]})",
                where=f"batch {number}",
                hint="Look for it with `for batch in dataset`; dataset.ignore_errors() leaves out what fails.",
            ) from error
        yield batch


# --- checks ----------------------------------------------------------------------------------------------


def _checked(batch: Any, inputs: Sequence[ModelInput], where: str) -> tuple[dict[str, Array], Split]:
    """The arrays of a batch as the model takes them, by input name, and where they hold samples."""
    feeds = {
        known.name: _fitting(_array(value, f"{where}, input '{known.name}'"), known, f"{where}, input '{known.name}'")
        for known, value in _by_input(batch, inputs, where)
    }
    split = Split.of(feeds, inputs, where)
    if split.samples == 0:
        raise CalibrationError("holds no samples", where=where, expected="at least one")
    return feeds, split


def _by_input(batch: Any, inputs: Sequence[ModelInput], where: str) -> list[tuple[ModelInput, Any]]:
    """Every array of a batch with the input that it is for."""
    required = [known for known in inputs if known.required]
    if isinstance(batch, Mapping) and set(batch) == {_UNNAMED} and all(known.name != _UNNAMED for known in inputs):
        batch = batch[_UNNAMED]
    if not isinstance(batch, Mapping):
        several = isinstance(batch, tuple) or (isinstance(batch, list) and len(required) > 1)
        values = list(batch) if several else [batch]
        order = required if len(values) == len(required) else list(inputs)
        if len(values) != len(order):
            raise CalibrationError(
                f"holds {len(values)} array{'s' * (len(values) != 1)}",
                where=where,
                expected=f"one for each of {len(order)} inputs: {_listed(order)}",
                hint="Labels are not needed: leave them out." if len(values) > len(order) else "",
            )
        return list(zip(order, values, strict=True))
    by_name = {known.name: known for known in inputs}
    found: dict[str, Any] = {}
    for key, value in batch.items():
        name = str(getattr(key, "name", key)).removesuffix(":0")
        if name not in by_name:
            raise CalibrationError(
                f"has an array for '{name}', which is no input of the model",
                where=where,
                expected=f"names of {_listed(inputs)}",
                hint=near_matches(name, by_name),
            )
        if name in found:
            raise CalibrationError(f"has two arrays for '{name}'", where=where)
        found[name] = value
    missing = [known for known in required if known.name not in found]
    if missing:
        raise CalibrationError(f"has no array for {_listed(missing)}", where=where)
    return [(by_name[name], value) for name, value in found.items()]


def _is_array(value: Any) -> bool:
    """Whether it is one, of numpy or of somebody else: tensors can be iterated too, but hold no batches."""
    return hasattr(value, "__array__")


def _array(value: Any, where: str) -> Array:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, NotImplementedError) as error:  # the last is for tensors of a graph
        raise CalibrationError(
            f"{type(value).__name__} is no array ({error})", where=where, expected="arrays of numbers"
        ) from error


def _fitting(array: Array, known: ModelInput, where: str) -> Array:
    """The array in the input's dtype, if it fits the input."""
    expected = str(known)
    # Of kind "V" are bfloat16 and the like, but also raw bytes: what numpy reads of bfloat16 in a file.
    if array.dtype.kind not in _TAKES.get(known.dtype.kind, "") or array.dtype.type is np.void:
        raise CalibrationError(f"dtype {array.dtype}", where=where, expected=expected)
    shape = known.shape
    if shape is not None and len(shape) != array.ndim:
        raise CalibrationError(
            f"rank {array.ndim}, shape {list(array.shape)}", where=where, expected=expected, hint=_FIRST_AXIS
        )
    if shape is not None and any(n not in (None, length) for n, length in zip(shape, array.shape, strict=True)):
        whole = f"A run takes {shape[0]} samples: give a multiple of that." if shape and shape[0] is not None else ""
        hint = whole if list(array.shape[1:]) == list(shape[1:]) else ""
        raise CalibrationError(f"shape {list(array.shape)}", where=where, expected=expected, hint=hint)
    if known.dtype.kind == "O":
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(known.dtype, copy=False)
    if known.dtype.kind in "iu" and (converted != array).any():
        raise CalibrationError(f"values that {known.dtype} cannot hold", where=where, expected=expected)
    if known.dtype.kind in "fcV":
        _refuse_nan(converted, array, where)
    return converted


def _refuse_nan(converted: Array, array: Array, where: str) -> None:
    nan = np.isnan(converted)
    if nan.any():
        at = [int(i) for i in np.argwhere(nan)[0]]
        raise CalibrationError(
            f"NaN in {np.count_nonzero(nan)} of {nan.size} elements, the first at {at}",
            where=where,
            expected="numbers",
        )
    if converted.dtype != array.dtype and (np.isinf(converted) & np.isfinite(array)).any():
        raise CalibrationError(f"values too large for {converted.dtype}", where=where, expected="finite numbers")


def _listed(inputs: Sequence[ModelInput]) -> str:
    return ", ".join(map(str, inputs))


# --- what is kept ----------------------------------------------------------------------------------------


class _Store:
    """Batches in memory, and those past the limit in a temporary file without a name."""

    def __init__(self, memory_limit: int) -> None:
        self._room = memory_limit
        self._kept: list[dict[str, Array | int]] = []
        self._file: Any = None

    def append(self, feeds: Mapping[str, Array], *, copy: bool) -> None:
        """Keep a batch; one that is not to be copied needs no room, whoever holds its arrays."""
        size = sum(array.nbytes for array in feeds.values()) if copy else 0
        self._room -= size
        if self._room >= 0:
            self._kept.append({name: array.copy() if copy else array for name, array in feeds.items()})
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="sparsekit-samples-")  # noqa: SIM115
        try:
            self._kept.append({name: self._write(array) for name, array in feeds.items()})
        except OSError as error:
            raise CalibrationError(
                f"cannot be kept in a temporary file after {len(self._kept)} batches ({error})",
                where="samples",
                expected=f"batches that end, and room for them in {tempfile.gettempdir()}",
                hint="Give fewer, with itertools.islice(batches, 8) or dataset.take(8) where there is no end.",
            ) from error

    def _write(self, array: Array) -> int:
        """Where in the file it begins."""
        offset: int = self._file.seek(0, os.SEEK_END)
        np.save(self._file, array, allow_pickle=True)
        self._file.flush()
        return offset

    def __getitem__(self, index: int) -> dict[str, Array]:
        return {name: self._read(kept) for name, kept in self._kept[index].items()}

    def _read(self, kept: Array | int) -> Array:
        if not isinstance(kept, int):
            return kept
        self._file.seek(kept)
        array: Array = np.load(self._file, allow_pickle=True)
        return array

    def close(self) -> None:
        self._kept.clear()
        if self._file is not None:
            self._file.close()
