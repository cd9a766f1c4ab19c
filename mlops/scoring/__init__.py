"""The runtime that travels inside every packaged model: parse, check, compiled forward, answer.

A byte-for-byte copy of this folder lies in the model folder as `code/podium_scoring_<sha12>/` and
is what `mlflow models serve` runs, so it imports nothing of the rest of Podium. The name holds the
content, so that two versions of it live in one process side by side.

A request is rows, in any of these forms; each gives the same answer:

- nested lists `(n, *shape)`, or flattened `(n, prod(shape))` in C order;
- base64: one string a row, the row's raw little-endian bytes in the model's dtype, C order;
- a DataFrame (`dataframe_split`, `dataframe_records`, CSV, Parquet): one column of base64 strings,
  of raw bytes or of nested lists, or else one column a number;
- in Python also numpy arrays.

What one row is depends on the model:

- Images of uint8: base64 or bytes may be a PNG or JPEG file of any size, up to `MAX_PIXELS`.
- Sequences of unequal length: a row is `(time, features)`, not padded; a padded row with its last
  feature, which says what is padding, does too. MLflow itself refuses `inputs` and `instances` of
  unequal length: send `dataframe_records` with one key, as `{"steps": [[...], ...]}`, or base64.
- Tables with columns: cells, as numbers, text or null, in a DataFrame, in records or in a
  dictionary of lists, all by name and in any order; or in lists by position. Lists and arrays as
  wide as the features that the network sees, and base64, are taken as these features: numbers
  scaled no further, one feature a category. Where the columns are as many, lists are cells.

`params` may hold `labels` and `explain`, each true or false. Requests that come at the same time
share a forward pass; `_load_pyfunc` says what can be set.

What cannot be answered gets JSON with three keys. `code` is one of the words below. `field` says
where, as far as that is known: `rows[3]`, `rows[3].age`, `columns.age`, `params.labels`, or null.
`message` is one sentence with what was expected. It never holds the caller's data, and never a
stack trace. The status is 400 but where a word says otherwise:

- wrong_shape: a row, or the whole input, of another shape or size; one row without a batch axis.
- ragged: rows, or parts of one row, of unequal length.
- empty: no rows.
- not_a_number: text, true or false, null, or an object where a number belongs. In a column of
  numbers of a table true and false are 1 and 0, as in training.
- out_of_range: NaN, infinity, a number too large; for uint8 what is not a whole number to 255.
- missing_key, unknown_key: a column that is not there, is not one of the model's, or is there
  twice; a parameter that there is not.
- not_base64, not_an_image: text that is no base64; a file that is damaged, or too large.
- too_many_rows: more than the server takes, or than can be explained at a time.
- wrong_type: input that holds no rows at all; a cell that is not the name of a category; a file
  where raw values belong; a parameter that is neither true nor false.
- not_finite: the network's answer to these numbers is NaN or infinite.
- model_failed (500): the network failed.
- overloaded (503): the server has too much to do; it did not look at the request, or had no time
  left to explain it.
"""

# All of it at once: nothing is read from a model folder later than this.
from .compiled import compile_forward
from .errors import STATUS, scoring_error
from .features import category_name, encode_table
from .model import load_pyfunc
from .pictures import MAX_PIXELS, decode_picture
from .scores import gaussian_kl, reconstruction_error

__all__ = [
    "MAX_PIXELS",
    "STATUS",
    "category_name",
    "compile_forward",
    "decode_picture",
    "encode_table",
    "gaussian_kl",
    "reconstruction_error",
    "scoring_error",
]

_load_pyfunc = load_pyfunc  # as MLflow calls it
