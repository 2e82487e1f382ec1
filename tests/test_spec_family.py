"""A family of specs: distinct, and the same after JSON."""

from __future__ import annotations

import json

import pytest

from wsl.spec import SpecError, mlp_spec
from wsl.spec.family import SpecFamily, specs_of

ONE, TWO = mlp_spec((2, 3, 1)), mlp_spec((2, 4, 4, 1), "tanh")


def test_json_round_trip() -> None:
    family = SpecFamily((ONE, TWO))
    again = SpecFamily.from_dict(json.loads(json.dumps(family.to_dict())))
    assert again == family and list(again) == [ONE, TWO] and len(again) == 2
    assert TWO in again and mlp_spec((2, 3, 2)) not in again


@pytest.mark.parametrize("specs", [(), (ONE, TWO, ONE)])
def test_specs_are_distinct(specs: tuple) -> None:
    with pytest.raises(SpecError, match="distinct"):
        SpecFamily(specs)


@pytest.mark.parametrize("data", [ONE.to_dict(), {"format": "spec-family"}, {"format": "spec-family", "specs": 3}])
def test_other_data_is_refused(data: dict) -> None:
    with pytest.raises(SpecError, match="not a family"):
        SpecFamily.from_dict(data)


def test_specs_of_one_or_many() -> None:
    assert specs_of(ONE) == (ONE,) and specs_of(SpecFamily((ONE, TWO))) == (ONE, TWO)
