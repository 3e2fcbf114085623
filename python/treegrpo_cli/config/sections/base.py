"""What the sections of the settings share: numbers with limits, and a table that refuses unknown keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_INTEGER = 2**63 - 1
PositiveInt = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Count = Annotated[int, Field(ge=1, le=10**6)]
"""Things that are all there at once."""
CountOrNone = Annotated[int, Field(ge=0, le=10**6)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokensOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(gt=0, le=10**7, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def one_or_many(schema: dict[str, Any]) -> None:
    """Let the JSON schema of a list take a single entry too, where a validator makes a list of it."""
    many = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems") if key in schema}
    schema["anyOf"] = [many["items"], many]


class Section(BaseModel):
    """A table of the config file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
