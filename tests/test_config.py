"""What a config accepts, refuses and says of one layer."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.config import (
    UINT32_MAX,
    LayerSettings,
    Override,
    PruneConfig,
    SkippedBy,
    names_in_use,
)
from sparsekit.config_files import load_config
from sparsekit.errors import ConfigError, MissingFileError, SparsekitError
from sparsekit.pattern import PATTERN_2_4, Pattern

TOML = """\
pattern = "2:4"
update_freq = 10
target = "Ascend910B"
skip_layers = ["stem/*"]
skip_types = ["Depthwise*"]

[[override]]
layers = ["head/fc"]
update_freq = 100

[[override]]
types = ["MatMul"]
pattern = "1:4"
prune = false
"""


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# Values


def test_nothing_said_means_the_defaults():
    config = load_config(None)
    assert config == PruneConfig() == load_config({})
    assert config.settings_for("conv1", "Conv2D") == (LayerSettings(True, PATTERN_2_4, "magnitude", 0), None)


def test_a_config_is_taken_as_it_is():
    config = PruneConfig(update_freq=3)
    assert load_config(config) is config


def test_friendly_spellings_are_converted():
    config = PruneConfig(pattern="1:4", skip_layers=["a"], override=[{"layers": ["b"], "pattern": "4:8"}])
    assert config.pattern == Pattern(1, 4)
    assert config.skip_layers == ("a",)
    assert config.override == (Override(layers=("b",), pattern=Pattern(4, 8)),)


def test_where_a_config_came_from_does_not_matter_to_equality():
    config = PruneConfig.from_dict({}, source="a.toml")
    assert config == PruneConfig() and hash(config) == hash(PruneConfig())
    assert config.source == "a.toml"


def test_every_per_layer_key_is_one_of_the_config_and_of_its_overrides():
    per_layer = {field.name for field in attrs.fields(LayerSettings)}
    assert per_layer <= {field.name for field in attrs.fields(PruneConfig)}
    assert per_layer <= {field.name for field in attrs.fields(Override)}
    assert {field.name for field in attrs.fields(Override)} == per_layer | {"layers", "types"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pattern", 24),
        ("pattern", "two of four"),
        ("pattern", None),
        ("criterion", ""),
        ("update_freq", -1),
        ("update_freq", True),
        ("update_freq", 1.0),
        ("update_freq", "10"),
        ("update_freq", UINT32_MAX + 1),
        ("prune", 1),
        ("target", 910),
        ("target", ""),
        ("skip_layers", "conv1"),
        ("skip_layers", ["conv1", 2]),
        ("skip_layers", [""]),
        ("skip_layers", {"conv1": True}),
        ("skip_types", None),
        ("override", {"layers": ["a"], "prune": True}),
        ("override", "a"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_key(key, value):
    message = refusal(PruneConfig.from_dict, {key: value}, source="a.toml")
    assert message.startswith(f"a.toml: {key}: ")
    assert "; expected " in message
    assert refusal(PruneConfig, **{key: value}).startswith(f"{key}: ")


def test_the_largest_update_freq_is_a_uint32():
    assert PruneConfig(update_freq=UINT32_MAX).update_freq == 2**32 - 1


def test_a_single_override_table_is_told_from_a_list_of_them():
    assert "[[override]]" in refusal(load_config, {"override": {"layers": ["a"], "prune": True}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"layers": ["a"]}, "an override that changes nothing; expected at least one of prune, pattern"),
        ({"update_freq": 1}, "an override of nothing; expected layers, types or both"),
        ({"layers": [], "types": [], "update_freq": 1}, "an override of nothing"),
        (
            {"layers": ["a"], "update_frequency": 1},
            "unknown key 'update_frequency'. Did you mean 'update_freq'",
        ),
        ("a", "'a' (str); expected a table"),
    ],
)
def test_a_bad_override_is_named_by_its_index(override, message):
    good = {"layers": ["a"], "prune": False}
    assert refusal(load_config, {"override": [good, good, override]}).startswith(f"config: override[2]: {message}")


def test_a_bad_value_in_an_override_is_named_by_index_and_key():
    message = refusal(load_config, {"override": [{"layers": "conv1", "prune": False}]})
    assert message.startswith("config: override[0].layers: 'conv1' (str); expected a list")


def test_an_unknown_key_is_refused_with_near_matches():
    assert "Did you mean 'update_freq'" in refusal(load_config, {"update_frequency": 1})
    assert "The keys are pattern, criterion" in refusal(load_config, {"zzz": 1})
    assert "unknown key 3" in refusal(load_config, {3: 1})
    assert "unknown key 'source'" in refusal(load_config, {"source": "me"})


@pytest.mark.parametrize("value", [3, b"a.toml", ["a"], PruneConfig])
def test_other_kinds_of_config_are_refused(value):
    assert "expected a PruneConfig, a dict, the path" in refusal(load_config, value)


# Precedence


def test_layer_beats_type_beats_global_key_by_key():
    config = PruneConfig(
        update_freq=1,
        criterion="global",
        override=[
            {"layers": ["conv1"], "update_freq": 3},
            {"types": ["Conv2D"], "update_freq": 2, "criterion": "by-type"},
        ],
    )
    assert config.settings_for("conv1", "Conv2D")[0] == LayerSettings(True, PATTERN_2_4, "by-type", 3)
    assert config.settings_for("conv2", "Conv2D")[0] == LayerSettings(True, PATTERN_2_4, "by-type", 2)
    assert config.settings_for("fc", "MatMul")[0] == LayerSettings(True, PATTERN_2_4, "global", 1)


def test_the_later_override_wins_at_the_same_level():
    config = PruneConfig(override=[{"layers": ["conv*"], "update_freq": 1}, {"layers": ["*1"], "update_freq": 2}])
    assert config.settings_for("conv1", "Conv2D")[0].update_freq == 2


def test_an_override_of_layers_and_types_counts_at_each_level():
    both = {"layers": ["fc"], "types": ["Conv2D"], "update_freq": 5}
    config = PruneConfig(override=[both, {"types": ["*"], "update_freq": 6}, {"layers": ["conv1"], "update_freq": 7}])
    assert config.settings_for("fc", "MatMul")[0].update_freq == 5
    assert config.settings_for("conv1", "Conv2D")[0].update_freq == 7
    assert config.settings_for("conv2", "Conv2D")[0].update_freq == 6


def test_a_skip_list_wins_over_everything():
    config = PruneConfig(
        skip_layers=["b", "a*"],
        skip_types=["MatMul"],
        override=[{"layers": ["*"], "prune": True, "update_freq": 9}],
    )
    settings, skipped_by = config.settings_for("a1", "Conv2D")
    assert settings == LayerSettings(False, PATTERN_2_4, "magnitude", 9)
    assert skipped_by == SkippedBy("skip_layers", "a*") and str(skipped_by) == "skip_layers 'a*'"
    assert config.settings_for("z", "MatMul")[1] == SkippedBy("skip_types", "MatMul")
    assert config.settings_for("z", "Conv2D")[1] is None


def test_names_are_case_sensitive():
    config = PruneConfig(skip_layers=["Conv*"])
    assert config.settings_for("conv1", "Conv2D")[1] is None


def test_only_overridden_layers_are_pruned_where_the_config_does_not_prune():
    config = PruneConfig(prune=False, override=[{"layers": ["fc"], "prune": True}])
    assert config.settings_for("fc", "MatMul")[0].prune
    assert config.settings_for("conv1", "Conv2D") == (LayerSettings(False, PATTERN_2_4, "magnitude", 0), None)


def test_every_name_in_use_is_listed_with_its_key():
    config = PruneConfig(
        skip_layers=["a", "b"], skip_types=["T"], override=[{"layers": ["c"], "types": ["U"], "prune": False}]
    )
    assert list(names_in_use(config)) == [
        ("config: skip_layers", "a", "layer"),
        ("config: skip_layers", "b", "layer"),
        ("config: skip_types", "T", "type"),
        ("config: override[0].layers", "c", "layer"),
        ("config: override[0].types", "U", "type"),
    ]


names = st.sampled_from(["a", "b", "ab"])
globs = st.lists(st.sampled_from(["a", "b", "a*", "*b", "?", "*", "[ab]b"]), max_size=2)
layer_values = {
    "pattern": st.sampled_from(["2:4", "1:4", "4:8"]),
    "criterion": st.sampled_from(["magnitude", "other"]),
    "update_freq": st.integers(0, UINT32_MAX),
    "min_weights": st.integers(0, 10**9),
    "prune": st.booleans(),
}
override_tables = st.fixed_dictionaries(
    {"layers": globs, "types": globs},
    optional={key: st.none() | values for key, values in layer_values.items()},
).filter(lambda table: (table["layers"] or table["types"]) and any(table.get(key) is not None for key in layer_values))
config_tables = st.fixed_dictionaries(
    {},
    optional={
        **layer_values,
        "skip_layers": globs,
        "skip_types": globs,
        "override": st.lists(override_tables, max_size=4),
    },
)


@given(table=config_tables, name=names, op_type=names)
def test_settings_agree_with_the_rules_read_slowly(table, name, op_type):
    def hit(patterns, subject):
        return any(fnmatch.fnmatchcase(subject, pattern) for pattern in patterns)

    expected = {}
    defaults = {"pattern": "2:4", "criterion": "magnitude", "update_freq": 0, "min_weights": 0, "prune": True}
    overrides = table.get("override", [])
    for key, default in defaults.items():
        candidates = [o[key] for o in overrides if o.get(key) is not None and hit(o["layers"], name)]
        if not candidates:
            candidates = [o[key] for o in overrides if o.get(key) is not None and hit(o["types"], op_type)]
        expected[key] = candidates[-1] if candidates else table.get(key, default)
    skipped = hit(table.get("skip_layers", []), name) or hit(table.get("skip_types", []), op_type)
    if skipped:
        expected["prune"] = False
    expected["pattern"] = Pattern.parse(expected["pattern"])

    settings, skipped_by = PruneConfig.from_dict(table).settings_for(name, op_type)
    assert settings == LayerSettings(**expected)
    assert (skipped_by is not None) == skipped


@given(table=config_tables)
def test_a_config_survives_the_way_through_plain_values(table):
    config = PruneConfig.from_dict(table)
    plain = attrs.asdict(config, filter=lambda field, _: field.name not in ("source", "places"), recurse=False)
    plain["pattern"] = str(plain["pattern"])
    plain["override"] = [attrs.asdict(override, recurse=False) for override in config.override]
    assert PruneConfig.from_dict(plain) == config


# TOML files


def write(folder: Path, content: str | bytes, name: str = "prune.toml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_toml_file_is_read(tmp_path):
    path = write(tmp_path, TOML)
    config = load_config(path)
    assert config == PruneConfig(
        update_freq=10,
        target="Ascend910B",
        skip_layers=["stem/*"],
        skip_types=["Depthwise*"],
        override=[
            {"layers": ["head/fc"], "update_freq": 100},
            {"types": ["MatMul"], "pattern": "1:4", "prune": False},
        ],
    )
    assert config.source == str(path)
    assert load_config(str(path)) == config


def test_a_toml_file_from_windows_is_read(tmp_path):
    text = b"\xef\xbb\xbf" + TOML.replace("\n", "\r\n").encode()
    assert load_config(write(tmp_path, text, "PRUNE.TOML")) == load_config(write(tmp_path, TOML))


@pytest.mark.parametrize(
    ("text", "line"), [("pattern = '2:4'\nupdate_freq =\n", 2), ("a = 1\na = 2\n", 2), ("a = 1\nb = [", 2)]
)
def test_a_toml_syntax_error_names_file_and_line(tmp_path, text, line):
    path = write(tmp_path, text)
    message = refusal(load_config, path)
    assert message.startswith(f"{path}:{line}: not valid TOML: ")
    assert "(at" not in message


@pytest.mark.parametrize("text", ["", "\n\n", "# pattern = '2:4'\n"])
def test_an_empty_toml_file_is_refused_with_a_minimal_one(tmp_path, text):
    path = write(tmp_path, text)
    message = refusal(load_config, path)
    assert message.startswith(f"{path}:1: the config is empty")
    assert load_config(write(tmp_path, message.split("one line: ")[1], "minimal.toml")) == PruneConfig()


def test_a_value_in_a_toml_file_is_refused_with_the_file(tmp_path):
    path = write(tmp_path, "[[override]]\nlayers = ['a']\nupdate_freq = -1\n")
    assert refusal(load_config, path).startswith(f"{path}: override[0].update_freq: -1 (int); expected")


@pytest.mark.parametrize("name", ["none.toml", "none.cfg", "none"])
def test_a_missing_file_is_one(tmp_path, name):
    with pytest.raises(MissingFileError, match="no such file") as caught:
        load_config(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)


def test_a_path_below_a_file_is_missing(tmp_path):
    write(tmp_path, TOML)
    with pytest.raises(MissingFileError):
        load_config(tmp_path / "prune.toml" / "more.toml")


def test_a_folder_is_refused(tmp_path):
    assert refusal(load_config, tmp_path) == f"{tmp_path}: this is a folder; expected a text file"


@pytest.mark.parametrize("name", ["bad.toml", "bad.cfg"])
def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path, name):
    path = write(tmp_path, b"# fine\n# \xff\n", name)
    assert refusal(load_config, path).startswith(f"{path}:2: the byte 0xff is not UTF-8")


@pytest.mark.parametrize("path", ["a\0b.toml", "x" * 5000 + ".cfg"])
def test_a_path_that_no_file_can_have_is_refused(path):
    assert "cannot be read" in refusal(load_config, path)


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000])
def test_toml_beyond_the_interpreter_is_refused(tmp_path, text):
    refusal(load_config, write(tmp_path, text))


@given(data=st.data())
def test_damaged_toml_raises_nothing_else(tmp_path_factory, data):
    raw = TOML.encode()
    cut = data.draw(st.integers(0, len(raw)))
    path = write(tmp_path_factory.mktemp("damaged"), raw[:cut] + data.draw(st.binary(max_size=8)))
    try:
        load_config(path)
    except SparsekitError as error:
        assert str(path) in str(error)


def test_importing_the_config_imports_neither_tensorflow_nor_protobuf():
    program = (
        "import sys, sparsekit.config\n"
        "print([name for name in ('tensorflow', 'google.protobuf') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
