"""Parameters: every value is checked by name, in cells, files and overrides; former names are answered with the new."""

import math
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesa_lib import settings as presets
from mesa_lib.experiments import params
from mesa_lib.experiments.params import Params
from mesa_lib.experiments.sweep import grid
from mesa_lib.settings import RepairSettings, Settings
from mesa_lib.store import paths

FILES = sorted((paths.root() / "params").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    """A builder of parameter files."""

    def build(text: str | bytes, name: str = "mine.yaml") -> Path:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return build


# --- values ----------------------------------------------------------------------------------------------


def test_every_default_passes_its_own_check():
    assert params.check(Params().model_dump()) == Params()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("poison_rate", 0), ("poison_rate", 1), ("poison_rate", 1.5), ("poison_rate", -0.1),
        ("repair_rate", 0), ("repair_rate", 1.0), ("ema_rate", 0), ("ema_rate", 1),
        ("alpha", math.nan), ("alpha", math.inf), ("alpha", -0.1), ("clean_lr", 0), ("repair_lr", -1),
        ("attack_lr", math.inf), ("modeling_lr", math.nan), ("trigger_noise", -1),
        ("target", -1), ("target", 1.5), ("target", True), ("seed", -1), ("seed", 2**31), ("split_seed", -3),
        ("steps", 0), ("steps", "many"), ("steps", 2.5), ("steps", None), ("batch_size", 1), ("batch_size", False),
        ("triggers_per_step", 1), ("images_per_trigger", 0), ("noise_dim", 6), ("noise_dim", 0), ("hidden", 0),
        ("width", 0), ("image_size", 8), ("image_size", 1000), ("clean_epochs", 0), ("inversion_repeats", 0),
        ("search_candidates", 0), ("search_generations", -1),
        ("inversion_restarts", 0), ("repair_loss", "teacher"), ("repair_statistics", True),
        ("cover", "none"), ("compare_attack", "magic"), ("cover_rate", 0), ("cover_rate", 1),
        ("more_triggers", "bw:97,bw:512"), ("more_triggers", "bw:97, "), ("more_triggers", "bw:97,file:t.png"),
        ("alpha", True), ("alpha", "much"), ("poison_rate", [0.1]),
        ("dataset", "mnist"), ("dataset", 3), ("network", "vgg"), ("device", "tpu"), ("precision", "half"),
        ("augment", "mixup"), ("retrain_augment", True), ("schedule", "cosine"), ("start", "warm"),
        ("generator", "gan"), ("noise", "cauchy"), ("critic", "relu"), ("hinge", "both"), ("placement", "corner"),
        ("gamma", "none"), ("data_dir", 3), ("checkpoint", None),
        ("betas", "0.9,2"), ("betas", "0.9,"), ("betas", ""), ("betas", "0.9;0.8"), ("betas", "0"), ("betas", "1.1"),
        ("betas", "nan"), ("betas", "-0.5"), ("betas", 1.5), ("betas", [0.9, 8]), ("betas", ()), ("betas", "high"),
        ("trigger", True), ("trigger", 170), ("trigger", "bw:512"), ("trigger", "bw"), ("trigger", "file:absent.png"),
        ("compare_triggers", "bw:97,bw:999"), ("compare_triggers", "97"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError) as error:
        params.check({name: value})
    message = str(error.value)
    assert f"{name} = {value!r}" in message and len(message.splitlines()) == 1
    assert Params.model_fields[name].description in message, "it says what was expected"


@pytest.mark.parametrize(
    ("name", "value"),
    [("poison_rate", 0.01), ("target", 51), ("alpha", 0.0), ("trigger", "color:3"), ("compare_triggers", ""),
     ("compare_triggers", "bw:1, color:2"), ("more_triggers", "bw:1, color:2"), ("cover", "near"),
     ("seed", 2**31 - 1), ("search_generations", 0)],
)  # fmt: skip
def test_a_possible_value_passes(name, value):
    assert getattr(params.check({name: value}), name) == value


@pytest.mark.parametrize(
    ("value", "levels", "text"),
    [("0.9", (0.9,), "0.9"), ("0.9, 0.8", (0.9, 0.8), "0.9,0.8"), ("1e-1", (0.1,), "0.1"), (0.5, (0.5,), "0.5"),
     ("0.5,0.9,0.5", (0.9, 0.5), "0.9,0.5"), ([0.8, 0.9], (0.9, 0.8), "0.9,0.8"), (1, (1.0,), "1.0")],
)  # fmt: skip
def test_success_levels_are_sorted_and_dumped_as_text(value, levels, text):
    p = params.check({"betas": value})
    assert p.betas == levels and p.model_dump()["betas"] == text
    assert params.check(p.model_dump()) == p


@pytest.mark.parametrize(("name", "value", "meant"), [("steps", 3.0, 3), ("alpha", 1, 1.0)])
def test_a_value_of_a_near_type_is_converted(name, value, meant):
    converted = getattr(params.check({name: value}), name)
    assert converted == meant and type(converted) is type(meant)


def test_all_bad_values_are_named_at_once():
    with pytest.raises(ValueError) as error:
        params.check({"alpha": -1, "target": "x", "stepz": 3, "width": 8})
    lines = str(error.value).splitlines()
    assert sorted(line.split(" = ")[0] for line in lines) == ["alpha", "stepz", "target"]


@pytest.mark.parametrize(("name", "value", "meant"), [("poison", 0.3, "poison_rate"), ("alphas", 7, "alpha")])
def test_an_unknown_name_is_refused_with_its_value_and_a_hint(name, value, meant):
    with pytest.raises(ValueError, match=rf"{name} = {value}: there is no such parameter; did you mean {meant}\?"):
        params.check({name: value})


@pytest.mark.parametrize(("old", "new"), sorted(params.RENAMED.items()))
def test_a_former_name_is_answered_with_the_new_one(write, old, new):
    said = f"^{old} = 3: this parameter was renamed; write {new}$"
    for refused in (
        lambda: params.read([write(f"{old}: 3")]),
        lambda: params.read([], [f"{old}=3"]),
        lambda: params.from_notebook({old: 3}),
    ):
        with pytest.raises(ValueError, match=said):
            refused()
    assert new in Params.model_fields and old not in Params.model_fields


@pytest.mark.parametrize(
    ("name", "value", "new"),
    [("trigger", "colour:3", "color:3"), ("more_triggers", "bw:1,colour:3", "color:3"),
     ("compare_triggers", "bw:1,colour:3", "color:3"),
     ("attack", "spot", "fixed-location")],
)  # fmt: skip
def test_a_former_value_is_answered_with_the_new_one(name, value, new):
    with pytest.raises(
        ValueError, match=f"^{name} = '{value}': this {name.split('_')[-1].rstrip('s')} was renamed; write {new} "
    ):
        params.check({name: value})


def test_checked_parameters_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Params().alpha = 3


# --- parameter files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1.0e-3", 0.001), ("1E-3", 0.001), ("2e+1", 20.0), (".5e-1", 0.05), ("3", 3.0)],
)
def test_numbers_in_files_are_numbers(write, text, value):
    assert params.read_yaml(write(f"alpha: {text}")) == {"alpha": value}
    assert params.read([write(f"alpha: {text}")]).alpha == value
    assert params.read([], [f"alpha={text}"]).alpha == value


@pytest.mark.parametrize("word", ["on", "yes", "no", "off", "007", "2024-01-05", "1:30", "0x1F"])
def test_texts_in_files_are_texts_without_quotes(write, word):
    assert params.read([write(f"data_dir: {word}")]).data_dir == word


@pytest.mark.parametrize(
    "text", ["010", "1:30", "no", "/x/a: b", "/data/my #1 set", "2024-01-05", "", "[a", "'quoted'"]
)
def test_a_text_after_p_is_taken_as_it_stands(text):
    assert params.read([], [f"data_dir={text}"]).data_dir == text
    assert params.parse("trigger", text) == params.parse("attack", text) == text


@pytest.mark.parametrize(("name", "text", "value"), [("seed", "010", 10), ("target", "011", 11), ("steps", "007", 7)])
def test_numbers_with_leading_zeros_are_decimal(write, name, text, value):
    assert getattr(params.read([], [f"{name}={text}"]), name) == value
    assert getattr(params.read([write(f"{name}: {text}")]), name) == value


@pytest.mark.parametrize("text", ["1:30", "0x1F", "0o17", "12h"])
def test_a_number_of_another_kind_is_refused_as_it_was_written(write, text):
    for read in (lambda: params.read([], [f"steps={text}"]), lambda: params.read([write(f"steps: {text}")])):
        with pytest.raises(ValueError, match=f"steps = '{text}': "):
            read()


def test_a_target_is_a_label_or_the_name_of_a_class(class_folder, write):
    tree = class_folder()
    named = [f"dataset: folder\ndata_dir: {tree}\ntarget: {target}" for target in ("class2", "2")]
    assert [params.read([write(text)]).target for text in named] == [2, 2]
    assert params.read([], ["target=7"]).target == params.check({"target": "7"}).target == 7
    with pytest.raises(ValueError, match="target = .class9.: expected a label from 0 to 2, or one of class0, class1"):
        params.read([], ["dataset=folder", f"data_dir={tree}", "target=class9"])
    with pytest.raises(ValueError, match="target = 'seven': expected a label from 0 to 9, or one of 0, 1, 2"):
        params.read([], ["target=seven"])


def test_what_was_there_before_the_first_cell_is_no_parameter():
    """Variables of IPython's startup files; one that the notebook sets anew is its own."""
    shell = types.SimpleNamespace(user_ns_hidden={"DATA": "/mnt/data", "sead": 3, "seed": 5})
    namespace = {"get_ipython": lambda: shell, "DATA": "/mnt/data", "seed": 7}
    assert params.from_notebook(namespace).seed == 7
    with pytest.raises(ValueError, match="sead = 4: there is no such parameter; did you mean seed"):
        params.from_notebook(namespace | {"sead": 4})


def test_a_truth_value_is_no_trigger(write):
    with pytest.raises(ValueError, match="trigger = True"):
        params.read([write("trigger: true")])


def test_an_empty_file_changes_nothing(write):
    assert params.read([write("# only a comment\n")]) == Params()


def test_later_files_and_overrides_win(write):
    first, second = write("alpha: 1\nsteps: 7\nseed: 5", "a.yaml"), write("alpha: 2\nsteps: 8", "b.yaml")
    p = params.read([first, second], ["alpha=3", "data_dir=", "trigger=bw:7", "betas=0.7,0.6"])
    assert (p.seed, p.steps, p.alpha, p.data_dir, p.trigger, p.betas) == (5, 8, 3, "", "bw:7", (0.7, 0.6))


@pytest.mark.parametrize("text", ["alpha", "alpha:3", ""])
def test_an_override_without_equals_sign_is_refused(text):
    with pytest.raises(ValueError, match=f"{text!r}: expected name=value"):
        params.read([], [text])


@pytest.mark.parametrize("text", ["stepz=3", "steps=many", "steps="])
def test_a_bad_override_is_refused_by_name(text):
    with pytest.raises(ValueError, match=text.split("=")[0]):
        params.read([], [text])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("- alpha\n- steps", id="list"),
        pytest.param("alpha", id="word"),
        pytest.param("3: 4", id="number as name"),
        pytest.param("alpha: 1\nalpha: 2", id="twice"),
        pytest.param("alpha: [1", id="no yaml"),
        pytest.param(b"alpha: \xff\xfe", id="no text"),
        pytest.param("alpha: !!python/object/apply:os.getcwd []", id="code"),
    ],
)
def test_a_bad_file_is_refused_by_name_in_one_line(write, text):
    with pytest.raises(ValueError, match="parameter file 'mine.yaml'") as error:
        params.read([write(text)])
    assert len(str(error.value).splitlines()) == 1


def test_a_name_given_twice_is_named(write):
    with pytest.raises(ValueError, match="alpha is given twice"):
        params.read([write("alpha: 1\nsteps: 3\nalpha: 1")])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="parameter file 'absent.yaml'"):
        params.read([tmp_path / "absent.yaml"])


# --- the files of the repository -------------------------------------------------------------------------


def test_the_published_files_are_there():
    assert {"digits.yaml", "cifar10.yaml", "cifar100.yaml", "official.yaml", "paper.yaml"} <= {f.name for f in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_file_passes(file):
    p, values = params.read([file]), params.read_yaml(file)
    written = p.model_dump()
    assert values and all(written[name] == value for name, value in values.items())
    assert type(p.modeling_settings()) is Settings and type(p.repair_settings()) is RepairSettings


def test_digits_yaml_holds_the_defaults():
    assert params.read([paths.root() / "params" / "digits.yaml"]) == Params()


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_a_preset_file_is_the_preset(name):
    file, preset = paths.root() / "params" / f"{name}.yaml", presets.PRESETS[name]
    assert params.read_yaml(file) == preset.model_dump()
    assert params.read([file]).modeling_settings() == preset


# --- settings of modeling and repair ---------------------------------------------------------------------


def test_settings_follow_the_parameters():
    p = params.check({"betas": "0.5,0.9,0.5", "triggers_per_step": 9, "modeling_lr": 0.5, "repair_rate": 0.4})
    s = p.modeling_settings()
    assert (s.betas, s.triggers_per_step, s.modeling_lr) == ((0.9, 0.5), 9, 0.5)
    assert p.repair_settings().repair_rate == 0.4
    assert p.modeling_settings(alpha=10).alpha == 10 and p.modeling_settings().alpha == p.alpha


@pytest.mark.parametrize("name", sorted({*Settings.model_fields, *RepairSettings.model_fields}))
def test_no_setting_is_left_behind(name):
    """A parameter that is a setting of modeling or repair reaches it, and changes no other."""
    words = {"betas": "0.6", "generator": "plain", "noise": "uniform", "critic": "leaky", "hinge": "image",
             "placement": "batch", "gamma": "entropy", "hinge_scale": "probability", "schedule": "constant",
             "retrain_augment": "none", "repair_loss": "labels", "repair_statistics": "frozen"}  # fmt: skip
    other = words[name] if name in words else getattr(Params(), name) * 2 or 3
    before, after = (
        p.modeling_settings().model_dump() | p.repair_settings().model_dump()
        for p in (Params(), params.check({name: other}))
    )
    assert {setting for setting in before if before[setting] != after[setting]} == {name}


# --- notebooks -------------------------------------------------------------------------------------------


def test_a_notebook_gives_its_plain_values():
    namespace = {
        "alpha": 0.5, "trigger": "bw:7", "params": params, "np": types, "Path": Path, "show": print, "Params": Params,
        "_": 3, "_i1": "alpha = 3", "__name__": "__main__", "In": ["", "x"], "Out": {}, "cache": {}, "p": Params(),
    }  # fmt: skip
    before = dict(namespace)
    p = params.from_notebook(namespace)
    assert p == params.check({"alpha": 0.5, "trigger": "bw:7"})
    assert namespace == before, "nothing is written into the notebook"


def test_a_notebook_that_is_run_again_has_variables_of_its_own():
    """Those that are no parameters do not count; a parameter may have been added to the cell."""
    namespace = {"alpha": 0.5, "trigger": "bw:7"}
    namespace["p"] = params.from_notebook(namespace)
    namespace |= {"alpha": 2, "rows": [1], "best": 0.5, "other": params.check({"steps": 3}), "seed": 4}
    assert params.from_notebook(namespace) == params.check({"alpha": 2, "trigger": "bw:7", "seed": 4})
    with pytest.raises(ValueError, match="trigger = <object"):
        params.from_notebook(namespace | {"trigger": object()})


def test_a_first_call_that_failed_is_followed_by_a_first_call():
    namespace = {"alpha": 0.5, "alhpa": 3}
    for _ in range(2):
        with pytest.raises(ValueError, match="alhpa = 3"):
            params.from_notebook(namespace)


@pytest.mark.parametrize("value", ["x", 3, 0.5, True, None, [1], (1,)])
def test_a_notebook_with_an_unknown_plain_value_is_refused(value):
    with pytest.raises(ValueError, match="alhpa = "):
        params.from_notebook({"alpha": 0.5, "alhpa": value})


def test_a_notebook_with_an_impossible_value_is_refused():
    with pytest.raises(ValueError, match="poison_rate = 2"):
        params.from_notebook({"poison_rate": 2})


@pytest.mark.parametrize("kinds", ["", "filter", "filters,filters", "filters, reformers"])
def test_kinds_of_defenses_are_known_and_named_once(kinds):
    assert params.check({"defense_kinds": "filters,reformers"}).defense_kinds == "filters,reformers"
    with pytest.raises(ValueError, match="expected some of detectors, repairers, filters, reformers"):
        params.check({"defense_kinds": kinds})


# --- files that are none ---------------------------------------------------------------------------------


def refused_or_read(file: Path) -> None:
    """Parameters, a sweep, or one message of bounded length; nothing else."""
    for read in (lambda: params.read([file]), lambda: grid.read(str(file))):
        try:
            read()
        except ValueError as error:
            assert 0 < len(str(error)) < 5000


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.sampled_from([*Params.model_fields, "grid", "cells", "set", "params", "minutes", "stpes"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from([
        "1e400", "0x1F", "1:30", "2020-13-45", "!!binary |x", "&a [*a]", "*b", "!!python/object/apply:os.getcwd []",
        "[[1], {}]", "color:1", "file:.", "bw:-1", "'0.9,,'", "{seed: [1, x]}", "[{seed: {a: 1}}]", "[digits, [1]]",
    ]),
)  # fmt: skip


@fuzz
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4))
def test_no_values_end_in_a_traceback(write, values):
    text = "".join(f"{name}: {value}\n" for name, value in values.items())
    refused_or_read(write(text.encode(errors="surrogatepass")))


@fuzz
@given(st.sampled_from(FILES), st.integers(0, 1500), st.binary(min_size=1, max_size=10))
def test_no_overwritten_file_ends_in_a_traceback(write, file, at, junk):
    whole = file.read_bytes()
    at = min(at, len(whole) - 1)
    refused_or_read(write(whole[:at] + junk + whole[at + len(junk) :]))


@fuzz
@given(st.text("[]{}:,-?&*!|>'\"%@#a1\n\t .~", max_size=40))
def test_no_text_ends_in_a_traceback(write, text):
    refused_or_read(write(text))


ALIASES = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 3000, "nested too deeply"),
        ("- " * 3000, "nested too deeply"),
        (f"a: &a [x]\n{ALIASES}\nseed: *i", "seed = "),
        ("seed: " + "9" * 6000, "'mine.yaml': Exceeds the limit"),
        ("seed: 0x" + "F" * 6000, "seed = '0xFFF"),
        ("trigger: " + "x" * 10**6, r"trigger = 'xxx.*\.\.\."),
        ("? " + "x" * 10**5 + "\n: 1", "there is no such parameter"),
        ("seed: 2020-13-45", "seed = '2020-13-45': "),
    ],
)  # fmt: skip
def test_a_file_that_is_made_to_hurt_is_one_message(write, text, said):
    file = write(text)
    with pytest.raises(ValueError, match=said) as error:
        params.read([file])
    assert len(str(error.value)) < 5000
    refused_or_read(file)
