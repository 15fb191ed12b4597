"""AMCT's text configs: what they mean here, and what is refused at which line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit._amct_messages import outline
from sparsekit.config import Override, PruneConfig
from sparsekit.config_amct import read_amct_config
from sparsekit.config_files import load_config
from sparsekit.errors import ConfigError, SparsekitError
from sparsekit.pattern import PATTERN_2_4

# The example of AMCT's documentation.
DOCUMENTED = """\
# global
prune_config{
  n_out_of_m_pruner{
    l1_selective_prune{
      n_out_of_m_type: M4N2
      update_freq: 0
    }
  }
}
regular_prune_skip_layers: "Opname"
regular_prune_skip_layers: "Opname2"
override_layer_configs{
  layer_name: "conv_4/BiasAdd"
  prune_config{
    n_out_of_m_pruner{
      l1_selective_prune{
        n_out_of_m_type: M4N2
        update_freq: 7
      }
    }
  }
}
"""
GLOBAL = "prune_config { n_out_of_m_pruner { l1_selective_prune { update_freq: 5 } } }\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "retrain.cfg"
    path.write_bytes(text.encode())
    return path


@pytest.fixture
def read(tmp_path):
    return lambda text: load_config(write(tmp_path, text))


@pytest.fixture
def refusal(tmp_path):
    """The message for a text, with the file's path cut to its name."""

    def of(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(write(tmp_path, text))
        return str(caught.value).replace(f"{tmp_path}/", "")

    return of


def test_the_documented_example_is_read(tmp_path):
    path = write(tmp_path, DOCUMENTED)
    config = read_amct_config(path)
    assert config == PruneConfig(
        pattern=PATTERN_2_4,
        update_freq=0,
        skip_layers=("Opname", "Opname2"),
        override=(Override(layers=("conv_4/BiasAdd",), pattern=PATTERN_2_4, update_freq=7, prune=True),),
    )
    assert config.source == str(path)
    assert load_config(str(path)) == config


@pytest.mark.parametrize(
    "text",
    [
        "prune_config: { n_out_of_m_pruner: { l1_selective_prune: { update_freq: 5 } } }",
        "prune_config < n_out_of_m_pruner < l1_selective_prune < update_freq: 5 > > >",
        "prune_config { n_out_of_m_pruner { l1_selective_prune { n_out_of_m_type: 0 update_freq: 0x5 } } }",
        "prune_config { # a comment {\n n_out_of_m_pruner { l1_selective_prune { update_freq: 5, } } };",
        GLOBAL.replace(" ", "\r\n"),
        "\ufeff" + GLOBAL,
    ],
)
def test_the_spellings_of_the_text_format_mean_the_same(read, text):
    assert read(text) == read(GLOBAL) == PruneConfig(update_freq=5)


@pytest.mark.parametrize("pruner", ["n_out_of_m_pruner { }", "n_out_of_m_pruner { l1_selective_prune { } }"])
def test_what_a_pruner_leaves_out_is_amcts_default(read, pruner):
    assert read(f"prune_config {{ {pruner} }}") == PruneConfig()


def test_an_override_replaces_the_global_block_whole(read):
    config = read(GLOBAL + 'override_layer_types { layer_type: "MatMul" prune_config { n_out_of_m_pruner { } } }')
    assert config.settings_for("fc", "MatMul")[0].update_freq == 0
    assert config.settings_for("conv1", "Conv2D")[0].update_freq == 5


def test_overrides_of_layers_win_over_those_of_types(read):
    block = "prune_config {{ n_out_of_m_pruner {{ l1_selective_prune {{ update_freq: {} }} }} }}"
    config = read(
        f'override_layer_configs {{ layer_name: "fc" {block.format(2)} }}\n'
        f'override_layer_types {{ layer_type: "MatMul" {block.format(3)} }}\n' + GLOBAL
    )
    assert config.settings_for("fc", "MatMul")[0].update_freq == 2
    assert config.settings_for("fc2", "MatMul")[0].update_freq == 3


def test_without_a_global_prune_config_only_overridden_layers_are_pruned(read, caplog):
    config = read('override_layer_configs { layer_name: "fc" prune_config { n_out_of_m_pruner { } } }')
    assert config.settings_for("fc", "MatMul")[0].prune
    assert not config.settings_for("fc2", "MatMul")[0].prune
    assert not caplog.records


def test_a_config_that_prunes_nothing_says_so(read, caplog):
    assert read('skip_layers: "a"').prune is False
    assert "no layer will be pruned" in caplog.text


def test_skip_lists_are_united(read):
    config = read(
        'regular_prune_skip_types: "A"\nskip_layers: ["a", "b"]\n'
        'skip_layer_types: "B" skip_layer_types: "A"\n'
        'regular_prune_skip_layers: "b"\nregular_prune_skip_layers: "c"\n' + GLOBAL
    )
    assert config.skip_layers == ("a", "b", "c")
    assert config.skip_types == ("B", "A")


def test_fields_without_effect_are_said_once_with_their_line(read, caplog):
    with caplog.at_level(logging.WARNING, logger="sparsekit"):
        config = read(GLOBAL + 'batch_num: 2\nquant_skip_layers: "a"\nquant_skip_layers: "b"\nquant_skip_types: "T"\n')
    assert config == PruneConfig(update_freq=5)
    said = [record.getMessage() for record in caplog.records if record.name == "sparsekit"]
    assert [message.split("retrain.cfg:")[1].split(" has")[0] for message in said] == [
        "2: batch_num",
        "3: quant_skip_layers",
        "5: quant_skip_types",
    ]


PRUNE = "prune_config { n_out_of_m_pruner { l1_selective_prune { %s } } }"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n" + PRUNE % "n_out_of_m_type: M8N4", "retrain.cfg:2: unknown value M8N4; expected M4N2"),
        (PRUNE % "n_out_of_m_type: 1", "retrain.cfg:1: unknown value 1; expected M4N2"),
        (
            PRUNE % "\nupdate_frequency: 1",
            "retrain.cfg:2: l1_selective_prune has no field 'update_frequency'. Did you mean 'update_freq'",
        ),
        ("prune_conf { }", "retrain.cfg:1: this file has no field 'prune_conf'. Did you mean 'prune_config'"),
        (PRUNE % "\n\nzzz { }", "retrain.cfg:3: l1_selective_prune has no field 'zzz'. The fields are n_out"),
        (PRUNE % "update_freq: -1", "retrain.cfg:1: not valid protobuf text: Value out of range: -1"),
        (PRUNE % "update_freq: 4294967296", "retrain.cfg:1: not valid protobuf text: Value out of range"),
        (PRUNE % "update_freq: true", "retrain.cfg:1: not valid protobuf text: Couldn't parse integer: true"),
        (PRUNE % "\nupdate_freq 1", 'retrain.cfg:2: not valid protobuf text: Expected ":" (column 13)'),
        ("prune_config {\n", 'retrain.cfg:1: not valid protobuf text: Expected "}"'),
        ("batch_num: 1\nbatch_num: 2", "retrain.cfg:2: not valid protobuf text: Message type"),
        ('skip_layers: "a', "retrain.cfg:1: not valid protobuf text: String missing ending quote"),
        ('skip_layers: "\\xff"', "retrain.cfg:1: not valid protobuf text: Couldn't parse string"),
        (
            "\n\nprune_config { }",
            "retrain.cfg:3: prune_config without a pruner; expected n_out_of_m_pruner {",
        ),
        (
            'skip_layers: "a"\noverride_layer_configs {\n}\n',
            'retrain.cfg:2: override_layer_configs without layer_name; expected layer_name: "..."',
        ),
        ("override_layer_types { }", "retrain.cfg:1: override_layer_types without layer_type"),
        (
            'override_layer_configs { layer_name: "a" }',
            "retrain.cfg:1: override_layer_configs for 'a' changes nothing; expected prune_config {",
        ),
        (
            'override_layer_configs { layer_name: "a"\n prune_config { } }',
            "retrain.cfg:2: prune_config without a pruner",
        ),
        (
            'skip_layers: "a"\nregular_prune_skip_layers: "b*"',
            "retrain.cfg:2: 'b*' is not the name of a layer",
        ),
        (
            'override_layer_types {\nlayer_type: "M?" }',
            "retrain.cfg:2: 'M?' is not the name of a layer or type",
        ),
        ('skip_layers: ["a",\n""]', "retrain.cfg:2: an empty name"),
    ],
)
def test_what_is_wrong_is_refused_at_its_line(refusal, text, message):
    assert refusal(text).startswith(message)


def test_a_syntax_error_tells_how_the_file_was_read(refusal):
    assert refusal("update_freq = 100").endswith("does not end in .toml is read as AMCT's protobuf text.")


@pytest.mark.parametrize("text", ["", "\n", "# prune_config { }\n"])
def test_an_empty_file_is_refused_with_a_minimal_one(read, refusal, text):
    message = refusal(text)
    assert message.startswith("retrain.cfg:1: the config is empty")
    assert read(message.split("config is ")[2]) == PruneConfig()


@pytest.mark.parametrize(
    "text",
    [
        "\nprune_config { filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.3 } } }",
        "\nprune_config { filter_pruner { what_we_do_not_know: 1",
        'override_layer_configs { layer_name: "a"\n prune_config { filter_pruner { } } }',
    ],
)
def test_channel_pruning_is_refused_with_what_to_use(refusal, text):
    message = refusal(text)
    assert message.startswith("retrain.cfg:2: channel pruning (filter_pruner) is not supported. ")
    assert "use n_out_of_m_pruner" in message


@pytest.mark.parametrize("field", ["retrain_data_quant_config", "retrain_weight_quant_config"])
@pytest.mark.parametrize(
    "text",
    [
        GLOBAL + "%s { }",
        GLOBAL + "%s: { ulq_quantize { unknown_to_us { a: 1 } } }",
        'override_layer_configs {\n%s { } layer_name: "a" }',
        'override_layer_types [ { layer_type: "a" },\n{ %s { } } ]',
    ],
)
def test_quantization_is_refused_wherever_it_stands(refusal, field, text):
    message = refusal(text % field)
    assert message.startswith(f"retrain.cfg:2: quantization ({field}) is not supported. ")


def test_the_words_of_quantization_in_a_comment_or_a_name_are_nothing(read):
    config = read(GLOBAL + '# retrain_data_quant_config { }\nskip_layers: "filter_pruner"\n')
    assert config.skip_layers == ("filter_pruner",)


def test_text_beyond_the_interpreter_is_refused(refusal):
    assert "recursion" in refusal("a { " * 5000)
    assert len(refusal("batch_num: " + "9" * 5000)) < 500


def test_strings_in_a_row_are_one_name(read, refusal):
    text = "skip_layers: [\"a\" 'b',\n'c']\nskip_layers: 'd'\n 'e'\n"
    assert read(GLOBAL + text).skip_layers == ("ab", "c", "de")
    assert refusal(text + "skip_layers: 'f*'").startswith("retrain.cfg:5: 'f*'")


def test_an_outline_gives_each_value_its_line():
    root = outline("a: 1\nb { c: 'x'\n 'y' d: [1,\n2] }\ne: [{ f: 1 },\n < >] # g: 1\nh\n: 2")
    assert [(field.name, field.line) for field in root.walk()] == [
        ("a", 1),
        ("b", 2),
        ("c", 2),
        ("d", 3),
        ("d", 4),
        ("e", 5),
        ("f", 5),
        ("e", 6),
        ("h", 7),
    ]


names = st.text(st.characters(exclude_characters="*?[", exclude_categories=["Cs"]), min_size=1, max_size=5)
frequencies = st.integers(0, 2**32 - 1)


def quoted(name: str) -> str:
    return '"' + "".join(f"\\{byte:03o}" for byte in name.encode()) + '"'


@given(
    update_freq=st.none() | frequencies,
    skip=st.lists(names, unique=True, max_size=3),
    overrides=st.lists(st.tuples(names, frequencies), max_size=3),
)
def test_any_config_in_amct_text_means_what_it_says(tmp_path_factory, update_freq, skip, overrides):
    lines = [PRUNE % f"update_freq: {update_freq}"] if update_freq is not None else []
    lines += [f"skip_layers: {quoted(name)}" for name in skip]
    for name, frequency in overrides:
        block = PRUNE % f"update_freq: {frequency}"
        lines.append(f"override_layer_configs {{ layer_name: {quoted(name)} {block} }}")
    path = write(tmp_path_factory.mktemp("amct"), "\n".join([*lines, "batch_num: 1"]))
    assert load_config(path) == PruneConfig(
        prune=update_freq is not None,
        update_freq=update_freq or 0,
        skip_layers=skip,
        override=[
            Override(layers=(name,), pattern="2:4", update_freq=frequency, prune=True) for name, frequency in overrides
        ],
    )


@given(
    cut=st.integers(0, len(DOCUMENTED)),
    junk=st.text(max_size=8) | st.sampled_from(["}", "{", '"', ": 1", "[", "]"]),
)
def test_damaged_text_raises_nothing_else(tmp_path_factory, cut, junk):
    for text in (DOCUMENTED[:cut] + junk, DOCUMENTED[:cut] + junk + DOCUMENTED[cut:]):
        path = tmp_path_factory.mktemp("damaged") / "retrain.cfg"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            load_config(path)
        except SparsekitError as error:
            assert str(path) in str(error)
