"""``build(REGISTRY, "name(key=value)")``."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from registry import DIFFICULTY_SCHEDULERS, LOSSES, Registry, Setup, Shapes, UserError, build, options_of, parse

SETUP = Setup(Shapes(3, 4), Shapes(3, 4))


@pytest.fixture
def shapes() -> Registry:
    """A registry of factories."""
    registry = Registry("SHAPES")

    @registry.register
    def box(setup: str, *, width: float = 1.0, height: float = 2.0, label: str = "") -> tuple[Any, ...]:
        return setup, width, height, label

    @registry.register
    def bag(setup: str, **options: Any) -> dict[str, Any]:
        return options

    @registry.register
    def strict(setup: str, *, size: int) -> int:
        return size

    @registry.register
    def family(member: str, setup: str, *, size: int = 1) -> tuple[str, str, int]:
        return member, setup, size

    return registry


@pytest.fixture
def rules() -> Registry:
    """A registry of functions."""
    registry = Registry("RULES", kind="function")

    @registry.register
    def power(base: float, *, exponent: float = 2.0) -> float:
        return base**exponent

    return registry


def test_a_name_alone() -> None:
    for spec in ("kd", "  kd ( ) "):
        assert parse(spec) == ("kd", {})
    assert parse("torchvision:resnet18") == ("torchvision:resnet18", {})


def test_values_are_literals() -> None:
    options = {"i": -1, "f": 1e-3, "s": "x, (y)", "t": (1, 2), "l": [True, None], "d": {"k": 1}}
    assert parse("a(i=-1, f=1e-3, s='x, (y)', t=(1, 2), l=[True, None], d={'k': 1},)") == ("a", options)


@pytest.mark.parametrize(
    "value",
    [
        "__import__('os')",
        "open('/etc/passwd')",
        "os",
        "lambda: 1",
        "[i for i in (1, 2)]",
        "f'{1}'",
        "1 if True else 2",
        "2 ** 9",
        "(yield)",
        "[1][0]",
    ],
)
def test_nothing_but_literals_is_read(value: str) -> None:
    with pytest.raises(UserError, match=r"literal"):
        parse(f"kd(temperature={value})")


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "kd(",
        "kd)",
        "kd(temperature)",
        "kd(2)",
        "kd(*[1])",
        "kd(**{'temperature': 1})",
        "kd(temperature=)",
        "kd(temperature=1, temperature=2)",
        "kd(temperature=1)(2)",
        "kd(temperature=1) + kd(temperature=1)",
        "3kd",
        "kd temperature=2",
        "kd(temperature='\0')",
        "kd(temperature=1)\nkd()",
    ],
)
def test_malformed_text_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="cannot read"):
        parse(spec)


@pytest.mark.parametrize(
    "value", ["[" * 5000 + "]" * 5000, "(" * 100_000, "-" * 100_000 + "1", "1+" * 50_000 + "1j", "9" * 10_000]
)
def test_deep_nesting_is_refused_in_one_short_line(value: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(f"kd(temperature={value})")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("spec", "options", "made"),
    [
        ("box(width=3)", {}, ("setup", 3, 2.0, "")),
        ("box", {"label": "l"}, ("setup", 1.0, 2.0, "l")),
        # Options of the text win.
        ("box(width=3)", {"width": 4, "height": 5}, ("setup", 3, 5, "")),
        ("bag(a=1, b='x')", {}, {"a": 1, "b": "x"}),
        ("family:leaf(size=2)", {}, ("leaf", "setup", 2)),
        ("strict(size=3)", {}, 3),
    ],
)
def test_a_factory_is_called(shapes: Registry, spec: str, options: dict[str, Any], made: object) -> None:
    assert build(shapes, spec, "setup", **options) == made


def test_a_function_gets_its_options_bound(rules: Registry) -> None:
    assert build(rules, "power")(3) == 9
    assert build(rules, "power(exponent=3)")(2) == 8
    assert build(rules, "power", exponent=1)(7) == 7
    with pytest.raises(TypeError, match="holds functions"):
        build(rules, "power", 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("box(widht=3)", "SHAPES: box has no option 'widht'; did you mean 'width'? Options: width, height, label"),
        ("strict", "SHAPES: strict: missing a required"),
        ("bxo(width=1)", "did you mean 'box'"),
        # What the caller gives is no option.
        *((f"{name}(setup=1)", "no option 'setup'") for name in ("box", "bag", "strict")),
    ],
)
def test_what_no_factory_takes_is_refused(shapes: Registry, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build(shapes, spec, "setup")


def test_what_no_function_takes_is_refused(rules: Registry) -> None:
    for spec, message in (("power(zzz=3)", "'zzz'\\. Options: exponent$"), ("power(base=1)", "'base'")):
        with pytest.raises(UserError, match=f"^RULES: power has no option {message}"):
            build(rules, spec)


def test_options_of(shapes: Registry) -> None:
    empty = inspect.Parameter.empty
    assert options_of(shapes.get("box")) == {"setup": empty, "width": 1.0, "height": 2.0, "label": ""}
    assert options_of(shapes.get("bag")) == {"setup": empty}
    assert options_of(shapes.get("family:leaf")) == {"setup": empty, "size": 1}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kd(temperature='hot')", "option 'temperature' must be float, not 'hot'"),
        ("kd(temperature=True)", "must be float, not True"),
        ("kd(temperature=None)", "must be float, not None"),
        ("feature_alignment(expansion=1.5)", "option 'expansion' must be int, not 1.5"),
    ],
)
def test_value_of_the_wrong_type_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build(LOSSES, spec, SETUP)


def test_int_is_a_float_and_none_fits_an_optional() -> None:
    assert build(LOSSES, "kd(temperature=2)", SETUP).options == {"temperature": 2}
    assert build(DIFFICULTY_SCHEDULERS, "preview(reference_epochs=None)").keywords == {"reference_epochs": None}
