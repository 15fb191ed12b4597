"""What to prune and how: a config from a dict, a TOML file or AMCT text, and what it says of one layer."""

from __future__ import annotations

import fnmatch
import functools
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import attrs

from sparsekit.errors import ConfigError, SaveError, near_matches
from sparsekit.pattern import PATTERN_2_4, Pattern

UINT32_MAX = 2**32 - 1
"""The largest update_freq: AMCT's field is a uint32 (L1SelectivePruner in its documents)."""

Masking: TypeAlias = Literal["forward", "in-place", "project"]
"""How zeros are kept while a model trains."""

_T = TypeVar("_T")


# What a key may hold. A converter accepts the friendly spellings and passes anything else on unchanged, for
# the validator to refuse: only the validator knows the key's name.


def _to_tuple(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else value  # type: ignore[return-value]


def _to_pattern(value: Pattern | str) -> Pattern:
    return Pattern.parse(value) if isinstance(value, str) else value


def _must(test: Callable[[Any], bool], expected: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not test(value):
            found = f"{reprlib.repr(value)} ({type(value).__name__})"
            raise ConfigError(found, where=attribute.name, expected=expected)

    return validate


def _is_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)


_boolean = _must(lambda value: isinstance(value, bool), "true or false")
_text = _must(lambda value: isinstance(value, str) and bool(value), "a name")
_names = _must(_is_names, 'a list of names or patterns, such as ["conv1", "block*/dense"]')
_pattern = _must(lambda value: isinstance(value, Pattern), 'a pattern such as "2:4"')
_batches = _must(
    lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= UINT32_MAX,
    f"a whole number of batches from 0 to {UINT32_MAX} (0: choose the mask once)",
)
_count = _must(
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a whole number of weights"
)
_share = _must(
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1,
    "a share from 0 to 1, such as 0.01",
)
_effort = _must(lambda value: value in ("fast", "normal", "high"), "fast, normal or high")
_order = _must(lambda value: value in (None, "sequential", "one-pass"), "sequential or one-pass")
_target_path = _must(lambda value: value in ("pruned", "dense"), "pruned or dense")
_masking = _must(
    lambda value: value in ("auto", "forward", "in-place", "project"), "auto, forward, in-place or project"
)
_gradient = _must(lambda value: value in ("masked", "ste", "sr-ste"), "masked, ste or sr-ste")
_decay = _must(
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"),
    "a number from 0 on",
)
_steps = _must(
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a whole number of steps"
)
REPAIRS = ("auto", "least-squares", "scale-shift", "batch-norm")
"""What ``repair`` may name, in the order in which they are done."""
_OF_A_LAYER = REPAIRS[:-1]
_EITHER_OR = (("auto", "least-squares"), ("auto", "scale-shift"))
_repair_names = _must(_is_names, f"a list of repairs: {', '.join(REPAIRS)}")


def _repairs(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    _repair_names(instance, attribute, value)
    for name in value:
        if name not in REPAIRS:
            hint = near_matches(name, REPAIRS)
            raise ConfigError(f"unknown repair '{name}'", where="repair", expected=", ".join(REPAIRS), hint=hint)
        if value.count(name) > 1:
            raise ConfigError(f"'{name}' twice", where="repair", expected="every repair once")
    for one, other in _EITHER_OR:
        if one in value and other in value:
            hint = f"'auto' decides about the kept weights itself; say '{other}' alone to have that one always."
            raise ConfigError(f"'{one}' and '{other}'", where="repair", expected="one of them", hint=hint)


def _layer_repairs(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    _repairs(instance, attribute, value)
    if "batch-norm" in value:
        found, expected = "'batch-norm' for some layers", ", ".join(_OF_A_LAYER)
        hint = "It is for the whole network: say it in the config's own list."
        raise ConfigError(found, where="repair", expected=expected, hint=hint)


def _to_repairs(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _to_tuple(value)


_WITHOUT_CALIBRATION = "magnitude"
_WITH_CALIBRATION = "admm"
_KEPT_WITH_CALIBRATION = 0.01


@attrs.frozen
class LayerSettings:
    """What holds for one layer. Every field is a per-layer key: PruneConfig and Override have it too."""

    prune: bool
    pattern: Pattern
    criterion: str
    update_freq: int
    min_weights: int = 0
    repair: tuple[str, ...] = ("auto",)


@attrs.frozen
class SkippedBy:
    """The entry of a skip list that leaves a layer dense.

    Args:
        key: ``skip_layers`` or ``skip_types``.
        glob: the entry that matched.
    """

    key: str
    glob: str

    def __str__(self) -> str:
        return f"{self.key} '{self.glob}'"


@attrs.frozen
class Override:
    """Settings for some layers only; a key that is None is not said.

    Args:
        layers: shell-style patterns of layer names, case-sensitive.
        types: shell-style patterns of op types, case-sensitive.
        pattern: the sparsity pattern.
        criterion: the name of the criterion that chooses what to keep.
        update_freq: choose the mask again every so many batches; 0 chooses once.
        min_weights: leave weights with fewer elements dense.
        repair: with calibration: what is done to the kept weights.
        prune: false leaves the layers dense, true prunes them where the config otherwise does not.

    Raises:
        ConfigError: a value cannot be used, or the override names nothing or says nothing.
    """

    layers: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple, validator=_names)
    types: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple, validator=_names)
    pattern: Pattern | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(_to_pattern),
        validator=attrs.validators.optional(_pattern),
    )
    criterion: str | None = attrs.field(default=None, validator=attrs.validators.optional(_text))
    update_freq: int | None = attrs.field(default=None, validator=attrs.validators.optional(_batches))
    min_weights: int | None = attrs.field(default=None, validator=attrs.validators.optional(_count))
    repair: tuple[str, ...] | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(_to_repairs),
        validator=attrs.validators.optional(_layer_repairs),
    )
    prune: bool | None = attrs.field(default=None, validator=attrs.validators.optional(_boolean))

    def __attrs_post_init__(self) -> None:
        if not self.layers and not self.types:
            raise ConfigError("an override of nothing", expected="layers, types or both")
        if all(getattr(self, key) is None for key in _keys(LayerSettings)):
            expected = "at least one of " + ", ".join(_keys(LayerSettings))
            raise ConfigError("an override that changes nothing", expected=expected)


def _to_overrides(value: Iterable[Override | Mapping[str, Any]]) -> tuple[Override, ...]:
    if not isinstance(value, (list, tuple)):
        return value  # type: ignore[return-value]
    overrides = []
    for index, item in enumerate(value):
        with _within(f"override[{index}]"):
            overrides.append(item if isinstance(item, Override) else _build(Override, item))
    return tuple(overrides)


_overrides = _must(
    lambda value: isinstance(value, tuple), "a list of tables (each one starts with [[override]] in TOML)"
)


@attrs.frozen
class PruneConfig:
    """What to prune and how. Lists become tuples, ``"2:4"`` a Pattern, and dicts in ``override`` Overrides.

    Args:
        pattern: the sparsity pattern, default 2:4.
        criterion: the name of the criterion that chooses what to keep; None: ``admm`` where there are calibration
            samples, ``magnitude`` where there are none.
        update_freq: choose the mask again every so many batches; 0, the default, chooses once.
        min_weights: leave weights with fewer elements dense; 0, the default, leaves none.
        effort: with calibration: how long a criterion may search: fast, normal or high.
        repair: with calibration: what is done to the weights that a criterion keeps. ``auto``: ``least-squares`` where
            the criterion has not fitted them itself. Or a list, done in this order: ``least-squares`` (the kept weights
            are fitted so that outputs stay, and a bias takes what their means lose), ``scale-shift`` (mean and standard
            deviation of every output are restored; cheap), ``batch-norm`` (the statistics of batch normalizations are
            measured anew in the pruned network).
        guard: with calibration: keep a repair only where it does better than the mask alone on samples that it was not
            fitted to. That takes two more fits, each to half of the samples.
        keep_dense: with calibration of a model at rest: the share of the multiply-adds of all layers to be pruned that
            may stay dense, spent where pruning costs most at the model's outputs; 0 leaves none, None, the default,
            is 0.01. Without calibration nothing tells these layers, and none stays; nor does one of a live graph,
            which is retrained.
        target_path: with calibration: whose outputs a layer is to match: ``pruned``, its own on the inputs that the
            pruned layers before it leave it, or ``dense``, those of the dense network.
        masking: while a model trains, how zeros are kept: ``forward`` (the variable stays dense and is masked where it
            is read), ``in-place`` (zeros in the variable, gradients masked), ``project`` (zeros written again after
            every step) or ``auto``.
        gradient: of dropped weights: ``masked`` (none), ``ste`` (that of the masked weight, straight through) or
            ``sr-ste`` (the same and a decay of dropped weights, arXiv 2102.04010). All but ``masked`` need dense
            variables: masking ``forward``, which ``auto`` then chooses.
        sr_ste_decay: with ``sr-ste``, what is added to a dropped weight's gradient, in parts of the weight.
        start_step: of a model that trains eagerly (Keras 3, ``tf.Module``), how many steps it trains dense before masks
            are chosen.
        freeze_step: of such a model, after how many steps masks are not chosen any more; None: never.
        order: with calibration: ``sequential``, the layers one after the other, each on what the pruned ones before
            it leave it; or ``one-pass``, all of them on what flows through the dense network. None: sequential, unless
            the call asks for Apache Beam. In one pass both values of ``target_path`` mean the same.
        skip_outputs: leave the layers dense behind which no other layer comes (needs the model's outputs).
        prune: false prunes only the layers for which an override says ``prune=True``.
        target: the name of the product or chip to prune for; None for any.
        skip_layers: shell-style patterns of layer names to leave dense, case-sensitive.
        skip_types: shell-style patterns of op types to leave dense, case-sensitive.
        override: settings for some layers only.
        source: where the config came from, for messages; not compared.
        places: where names stand in it, where a reader knows: by (``layer`` or ``type``, name); not compared.

    Raises:
        ConfigError: a value cannot be used.
    """

    pattern: Pattern = attrs.field(default=PATTERN_2_4, converter=_to_pattern, validator=_pattern)
    criterion: str | None = attrs.field(default=None, validator=attrs.validators.optional(_text))
    update_freq: int = attrs.field(default=0, validator=_batches)
    min_weights: int = attrs.field(default=0, validator=_count)
    skip_outputs: bool = attrs.field(default=False, validator=_boolean)
    effort: Literal["fast", "normal", "high"] = attrs.field(default="normal", validator=_effort)
    repair: tuple[str, ...] = attrs.field(default=("auto",), converter=_to_repairs, validator=_repairs)
    masking: Masking | Literal["auto"] = attrs.field(default="auto", validator=_masking)
    gradient: Literal["masked", "ste", "sr-ste"] = attrs.field(default="masked", validator=_gradient)
    sr_ste_decay: float = attrs.field(default=2e-4, validator=_decay)
    start_step: int = attrs.field(default=0, validator=_steps)
    freeze_step: int | None = attrs.field(default=None, validator=attrs.validators.optional(_steps))
    keep_dense: float | None = attrs.field(default=None, validator=attrs.validators.optional(_share))
    guard: bool = attrs.field(default=False, validator=_boolean)
    target_path: Literal["pruned", "dense"] = attrs.field(default="pruned", validator=_target_path)
    order: Literal["sequential", "one-pass"] | None = attrs.field(default=None, validator=_order)
    prune: bool = attrs.field(default=True, validator=_boolean)
    target: str | None = attrs.field(default=None, validator=attrs.validators.optional(_text))
    skip_layers: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple, validator=_names)
    skip_types: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple, validator=_names)
    override: tuple[Override, ...] = attrs.field(default=(), converter=_to_overrides, validator=_overrides)
    source: str = attrs.field(default="config", eq=False, kw_only=True)
    places: Mapping[tuple[str, str], str] = attrs.field(factory=dict, eq=False, repr=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.gradient != "masked" and self.masking not in ("auto", "forward"):
            raise ConfigError(
                f"{self.masking} with gradient {self.gradient}, which trains dropped weights",
                where="masking",
                expected="forward (or auto)",
            )
        if self.freeze_step is not None and self.freeze_step < self.start_step:
            raise ConfigError(
                f"{self.freeze_step}, before start_step ({self.start_step}): masks would never be chosen",
                where="freeze_step",
                expected="start_step or more",
            )

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], source: str = "config") -> PruneConfig:
        """A config from plain values: what ``load_config`` makes of a dict or a TOML file.

        Args:
            mapping: keys are the names of this class's arguments, except ``source``.
            source: where the mapping came from, for messages.

        Raises:
            ConfigError: an unknown key (with near matches) or a value that cannot be used.
        """
        with _within(source):
            return _build(cls, mapping, source=source)

    def calibrated(self, in_one_pass: bool = False) -> PruneConfig:
        """The config for a call with calibration samples: what it leaves open is decided for them.

        Args:
            in_one_pass: the call asks for what goes in one pass only.

        Raises:
            ConfigError: that, and the config says otherwise.
        """
        if in_one_pass and self.order == "sequential":
            raise ConfigError(
                '"sequential", but a pipeline calibrates all layers at once',
                where=f"{self.source}: order",
                expected='"one-pass", or nothing',
            )
        order = self.order or ("one-pass" if in_one_pass else "sequential")
        return attrs.evolve(
            self,
            criterion=self.criterion or _WITH_CALIBRATION,
            keep_dense=_KEPT_WITH_CALIBRATION if self.keep_dense is None else self.keep_dense,
            order=order,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as a TOML file, whole or not at all: what ``load_config`` reads back is equal.

        Args:
            path: ends in ``.toml``, as any other name is read as AMCT's text format.

        Returns:
            Where it lies.

        Raises:
            SaveError: it cannot be written there, or has another name.
        """
        from sparsekit.config_writing import to_toml
        from sparsekit.writing import write_whole

        if Path(path).suffix.lower() != ".toml":
            raise SaveError("a config in TOML would be read as AMCT's text format", where=str(path), expected="*.toml")
        return write_whole(path, to_toml(self).encode())

    def settings_for(self, name: str, op_type: str) -> tuple[LayerSettings, SkippedBy | None]:
        """What holds for one layer, and the skip list entry that leaves it dense if there is one.

        A skip list wins over everything. Then, for each key apart, an override that names the layer wins over
        one that names its type, which wins over the config's own value; among several, the later one wins.
        This is AMCT's precedence.

        Args:
            name: the op's name.
            op_type: the op's type, for example ``Conv2D``.

        Returns:
            The settings, with ``prune`` false for a skipped layer, and the entry or None.
        """
        values = {key: getattr(self, key) for key in _keys(LayerSettings)}
        values["criterion"] = self.criterion or _WITHOUT_CALIBRATION
        for kind, subject in (("types", op_type), ("layers", name)):
            for override in self.override:
                if _first_match(getattr(override, kind), subject):
                    said = {key: getattr(override, key) for key in values}
                    values.update({key: value for key, value in said.items() if value is not None})
        for key, subject in (("skip_layers", name), ("skip_types", op_type)):
            if glob := _first_match(getattr(self, key), subject):
                return LayerSettings(**{**values, "prune": False}), SkippedBy(key, glob)
        return LayerSettings(**values), None


def names_in_use(config: PruneConfig) -> Iterator[tuple[str, str, str]]:
    """Every layer name and op type that a config mentions, so that unknown ones can be found.

    Yields:
        Where it stands (``config: override[0].types``), the name or pattern, and ``layer`` or ``type``.
    """
    lists = [("skip_layers", config.skip_layers, "layer"), ("skip_types", config.skip_types, "type")]
    for index, override in enumerate(config.override):
        lists.append((f"override[{index}].layers", override.layers, "layer"))
        lists.append((f"override[{index}].types", override.types, "type"))
    for key, globs, kind in lists:
        for glob in globs:
            yield config.places.get((kind, glob), f"{config.source}: {key}"), glob, kind


@functools.cache
def _keys(cls: type) -> list[str]:
    return [field.name for field in attrs.fields(cls) if field.name not in ("source", "places")]


def _build(cls: Callable[..., _T], mapping: Any, **more: str) -> _T:
    """``cls`` from a mapping of its keys; unknown keys are refused. The keys are those of ``_keys(cls)``."""
    keys = _keys(cls)
    if not isinstance(mapping, Mapping):
        found = f"{reprlib.repr(mapping)} ({type(mapping).__name__})"
        raise ConfigError(found, expected="a table with some of the keys " + ", ".join(keys))
    for key in mapping:
        if key not in keys:
            hint = near_matches(str(key), keys) or f"The keys are {', '.join(keys)}."
            raise ConfigError(f"unknown key {reprlib.repr(key)}", hint=hint)
    return cls(**mapping, **more)


def _first_match(globs: Sequence[str], name: str) -> str:
    for glob in globs:
        if fnmatch.fnmatchcase(name, glob):
            return glob
    return ""


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Says in an error from inside where it happened: ``config: override[2].update_freq``."""
    try:
        yield
    except ConfigError as error:
        joint = "." if place.startswith("override[") else ": "
        where = f"{place}{joint}{error.where}" if error.where else place
        raise ConfigError(error.found, where=where, expected=error.expected, hint=error.hint) from None
