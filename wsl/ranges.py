"""Types with a range, for constructor signatures: the signature is the config schema, so it says what is allowed.

``wsl.build`` derives the schema of a config group from the constructor that the group's name stands for; a value
outside its range is refused before any work, with the key, the value and the range in the message.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Interval

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
#: a share of a whole, in [0, 1]
Fraction = Annotated[float, Interval(ge=0, le=1)]
#: a share that is not nothing, in (0, 1]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]
#: a dropout rate or a momentum, in [0, 1)
Rate = Annotated[float, Interval(ge=0, lt=1)]
