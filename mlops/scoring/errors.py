"""What goes wrong: the codes, and the errors that carry them.

Everything else here refuses rows with `refuse`; the model turns that into `scoring_error`, whose
text a server answers word for word. The package's docstring says what each code means.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

STATUS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("wrong_shape", "ragged", "empty", "not_a_number", "out_of_range"), 400),
    **dict.fromkeys(("missing_key", "unknown_key", "not_base64", "not_an_image"), 400),
    **dict.fromkeys(("too_many_rows", "wrong_type", "not_finite"), 400),
    "model_failed": 500,
    "overloaded": 503,
}
"""The status of each code that an error has; the package's docstring says what each means."""


def scoring_error(code: str, message: str, field: str | None = None) -> Exception:
    """Returns an MlflowException that a scoring server answers word for word.

    It has `code`, `field`, `http_status` and `to_json()`, the text of the answer.

    Args:
        code: One of `STATUS`.
        message: One sentence, without the caller's data.
        field: Where, as the package's docstring says.

    Example:
        >>> scoring_error("empty", "The input cannot be scored: it has no rows.").to_json()
        '{"code": "empty", "message": "The input cannot be scored: it has no rows.", "field": null}'
    """
    return _error_type()(code, message, field)


@functools.cache
def _error_type() -> type[Exception]:
    """Returns the class of `scoring_error`.

    MLflow's server writes the request into the `message` of an MlflowException, and answers any
    other exception with its stack trace. Made on first use, because mlflow takes seconds to import.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2 as codes

    error_codes = {
        400: codes.INVALID_PARAMETER_VALUE,
        500: codes.INTERNAL_ERROR,
        503: codes.TEMPORARILY_UNAVAILABLE,
    }

    class ScoringError(MlflowException):  # type: ignore[misc, unused-ignore]
        def __init__(self, code: str, message: str, field: str | None) -> None:
            self.code, self.field, self.http_status = code, field, STATUS[code]
            self._sentence = message
            super().__init__(message, error_code=error_codes[self.http_status])

        @property
        def message(self) -> str:
            return self._sentence

        @message.setter
        def message(self, _: str) -> None:
            """Drops what the server would put in: it holds the request."""

        def to_json(self) -> str:
            return json.dumps({"code": self.code, "message": self._sentence, "field": self.field})

        def serialize_as_json(self) -> str:
            return self.to_json()

        def get_http_status_code(self) -> int:
            return self.http_status

    return ScoringError


class BadInputError(ValueError):
    """What is wrong with the rows; `Model.predict` adds what was expected."""

    def __init__(self, code: str, wrong: str, row: int | None, column: Any, field: str | None):
        where = "" if column is None else f" in column {column!r}"
        super().__init__(wrong + where if row is None else f"row {row} {wrong}{where}")
        self.code, self.wrong, self.row = code, wrong, row
        if field is None and row is not None:
            field = f"rows[{row}]" if column is None else f"rows[{row}].{column}"
        self.field = field


def refuse(
    code: str,
    wrong: str,
    row: int | None = None,
    column: Any = None,
    *,
    field: str | None = None,
    err: BaseException | None = None,
) -> NoReturn:
    raise BadInputError(code, wrong, None if row is None else int(row), column, field) from err
