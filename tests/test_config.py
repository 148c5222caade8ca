"""Configuration: what wins when sources are merged, and how mistakes are told."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from hyena_blt_savanna.config import Config, ConfigError, merge


class Wheel(Config):
    radius: float = Field(default=0.3, gt=0.0)


class Bicycle(Config):
    kind: Literal["bicycle"] = "bicycle"
    wheels: list[Wheel] = Field(default_factory=lambda: [Wheel(), Wheel()])
    num_gears: int = 7


class Boat(Config):
    kind: Literal["boat"]
    sail_area: float


class Trip(Config):
    vehicle: Bicycle | Boat = Field(default=Bicycle(), discriminator="kind")
    folder: Path = Path("trips")
    speed: float
    note: str | None = None

    @model_validator(mode="after")
    def _is_possible(self):
        if self.speed > 100.0:
            raise ValueError("speed must be at most 100")
        return self


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_files_from_left_to_right_then_overrides(write):
    first = write("first.yaml", "speed: 1\nvehicle: {kind: bicycle, num_gears: 3}\nnote: one")
    second = write("second.yaml", "speed: 2\nvehicle: {num_gears: 5}")
    trip = Trip.load(["speed=3e-4", first, second])
    assert trip == Trip(speed=3e-4, vehicle=Bicycle(num_gears=5), note="one")
    assert Trip.load([second, first]).speed == 1.0
    assert Trip.load([first, "note=null", "vehicle.num_gears=9"]).vehicle.num_gears == 9


def test_overrides_reach_into_lists(write):
    path = write("a.yaml", "speed: 3\nlegs: [{from: a, to: {x: 1}}, {from: b}]")
    changed = merge([path, "legs.1.from=${speed}", "legs.0.to.y=[1, 2e0]", "new.deep=null"])
    wanted = [{"from": "a", "to": {"x": 1, "y": [1, 2.0]}}, {"from": 3}]
    assert changed == {"speed": 3, "legs": wanted, "new": {"deep": None}}
    assert merge([path, "legs=[]", "speed={a: 1}", "speed.b=2"]) == {"speed": {"a": 1, "b": 2}, "legs": []}
    assert merge([path, "legs.0={at: c}"])["legs"][0] == {"from": "a", "to": {"x": 1}, "at": "c"}


def test_numbers_in_files_are_numbers(write):
    assert Trip.load([write("a.yaml", "speed: 3e-4")]).speed == 3e-4


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError):
        Trip(speed=1.0).speed = 2.0


def test_saved_and_loaded_again(tmp_path):
    trip = Trip(speed=1.5, vehicle=Boat(kind="boat", sail_area=12.0), folder=Path("a") / "b")
    trip.save(tmp_path / "trip.yaml")
    assert Trip.load([tmp_path / "trip.yaml"]) == trip
    assert [path.name for path in tmp_path.iterdir()] == ["trip.yaml"]
    assert trip.to_dict()["folder"] == "a/b"


def complaints(cls, tree) -> str:
    with pytest.raises(ConfigError) as caught:
        cls.parse(tree, "trip.yaml")
    return str(caught.value)


def test_all_mistakes_are_told_at_once():
    message = complaints(Trip, {"sped": 3, "folder": 7, "vehicle": {"kind": "bicycle", "num_gears": "many"}})
    lines = message.splitlines()
    assert lines[0] == "trip.yaml: 4 mistake(s)"
    assert "  sped: unknown key; did you mean 'speed'?" in lines
    assert "  speed: missing; add this key" in lines
    assert any(line.startswith("  folder: ") and "(given: 7)" in line for line in lines)
    assert any(line.startswith("  vehicle.num_gears: ") and "'many'" in line for line in lines)


def test_nearest_key_in_unions_and_lists():
    message = complaints(Trip, {"speed": 1, "vehicle": {"kind": "bicycle", "gears": 3, "wheels": [{"radus": 1}]}})
    assert "vehicle.gears: unknown key; did you mean 'num_gears'?" in message
    assert "vehicle.wheels.0.radus: unknown key; did you mean 'radius'?" in message


def test_known_keys_where_none_is_near():
    message = complaints(Trip, {"speed": 1, "zzz": 1})
    assert "zzz: unknown key; known keys: folder, note, speed, vehicle" in message


def test_own_checks_and_long_values():
    assert "(top level): speed must be at most 100" in complaints(Trip, {"speed": 200})
    message = complaints(Trip, {"speed": "x" * 500})
    assert "..." in message
    assert max(map(len, message.splitlines())) < 250


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b", "must hold a mapping"),
        ("a: [", "not a YAML file"),
        ("a: 1\na: 2", "not a YAML file"),
        ("a: ${nowhere}", "cannot merge"),
    ],
)
def test_files_that_cannot_be_read(write, text, says):
    path = write("bad.yaml", text)
    with pytest.raises(ConfigError, match=says) as caught:
        merge([path])
    assert "bad.yaml" in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\xfa\x00")
    with pytest.raises(ConfigError, match="not a YAML file"):
        merge([tmp_path / "bad.yaml"])


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        merge([tmp_path / "none.yaml"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("a=[1", r"a=\[1: a value that is not YAML"),
        ("stages.first.steps=3", r"key=\[a, b\], or by its places, counted from 0, as in key\.0=a"),
        ("stages.1.steps=3", r"cannot merge .*: list index out of range"),
    ],
)
def test_overrides_that_cannot_be_merged(write, override, says):
    with pytest.raises(ConfigError, match=says):
        merge([write("good.yaml", "stages: [{steps: 1}]"), override])


def test_nothing_is_left_of_a_configuration_that_cannot_be_saved(tmp_path):
    (tmp_path / "folder.yaml" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"folder\.yaml"):
        Trip(speed=1).save(tmp_path / "folder.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.yaml"]


def test_an_empty_file_changes_nothing(write):
    assert merge([write("empty.yaml", ""), "a=1"]) == {"a": 1}


def test_a_file_may_have_an_equals_sign_in_its_name(write):
    path = write("lr=3.yaml", "a: 1")
    assert merge([path]) == merge([str(path)]) == {"a": 1}
    with pytest.raises(ConfigError, match=r"lr=4\.yaml: no such file"):
        merge([path.with_name("lr=4.yaml")])
