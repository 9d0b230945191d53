"""Every setting is an option, whose help, bounds and default are those of its declaration."""

from __future__ import annotations

import pytest

from multiticket import config
from multiticket.config import CollapseConfig, EvalConfig, RunConfig
from multiticket.config.options import options, settings_of


def test_every_setting_is_one_option_with_the_words_of_its_declaration() -> None:
    paths = [option.path for option in options()]
    nested = {"eval": EvalConfig, "collapse": CollapseConfig}
    assert sorted(paths) == sorted(
        path
        for name in RunConfig.model_fields
        for path in ([(name, inner) for inner in nested[name].model_fields] if name in nested else [(name,)])
    )
    names = [name for option in options() for name in option.names]
    assert len(set(names)) == len(names)
    for option in options():
        field = (nested.get(option.path[0], RunConfig)).model_fields[option.path[-1]]
        assert field.description, option.path
        assert option.help.split(" ")[0] in field.description


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("--density", "above 0; at most 1; default 0.01"),
        ("--dtype", "float32 or bfloat16; default float32"),
        ("--stop-on-collapse", "default yes"),
        ("--split", "train, validation or test; default test"),
        ("--part", "at least 0; default 0"),
    ],
)
def test_help_says_bounds_choices_and_defaults(name: str, facts: str) -> None:
    (option,) = (option for option in options() if name in option.names)
    assert option.help.endswith(f"({facts})")


def test_nought_problems_are_all_of_them_everywhere() -> None:
    assert config.build({"eval": {"problems": 0}}).eval.problems is None
    assert config.build(settings_of({"eval_problems": 0})).eval.problems is None
    with pytest.raises(ValueError, match=r"eval\.problems should be greater than or equal to 0"):
        config.build({"eval": {"problems": -1}})


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"learning_rate": "3e-4"}, {"learning_rate": 3e-4}),
        ({"learning_rate": "auto", "seed": None}, {"learning_rate": "auto"}),
        ({"examples": "4"}, {"examples": 4}),
        ({"examples": "solved.jsonl"}, {"examples": "solved.jsonl"}),
        ({"mask_options": "layers: last"}, {"mask_options": {"layers": "last"}}),
        ({"grpo": ["top_p=0.9", "optim=sgd"]}, {"grpo": {"top_p": 0.9, "optim": "sgd"}}),
        ({"grpo": [], "steps": 3}, {"steps": 3}),
        (
            {"eval_split": "validation", "collapse_kl_per_token": 0.5},
            {"eval": {"split": "validation"}, "collapse": {"kl_per_token": 0.5}},
        ),
    ],
)
def test_what_a_command_line_says_is_read_as_settings(
    given: dict[str, object], settings: dict[str, object]
) -> None:
    assert settings_of(given) == settings


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"learning_rate": "fast"}, "--learning-rate takes a number or auto, not 'fast'."),
        ({"mask_options": "layers"}, "--mask-options takes 'name: value' pairs"),
        ({"mask_options": "a: ["}, "--mask-options takes 'name: value' pairs"),
    ],
)
def test_what_cannot_be_read_names_its_option(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        settings_of(given)
