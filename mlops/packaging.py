"""A Keras model in an MLflow model folder, and the check of what may be inside one.

    MLmodel                             the flavor python_function, the signature, the spec
    python_env.yaml, requirements.txt   exact pins of what trained it
    data/model.keras                    one Functional network of stock Keras layers
    code/podium_scoring_<sha12>.py      a copy of mlops/scoring.py, named after its content

`check_model_folder` decides before anything is loaded: no Keras, no MLflow, no import of what is in
the folder. It allows what Podium writes and nothing else, because no list of bad things is ever
complete: Keras' safe mode has been passed about nine times, and MLflow imports whatever module a
folder names. Sizes are derived from the network's configuration, layer by layer, and compared with
the stored weights: what loads needs no more memory than the file shows.

This layout is format 1. Models of it are stored and signed: change it only beside a format 2.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn, TypeAlias

import numpy as np

from mlops.data import InputSpec
from mlops.errors import DataError, StructureError

if TYPE_CHECKING:
    import keras

FORMAT: Final = 1
PACKAGES: Final = ("mlflow", "keras", "tensorflow", "numpy", "pandas")
"""What a packaged model needs installed to answer."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NETWORK: Final = "data/model.keras"
_SCORING: Final = Path(__file__).with_name("scoring.py")
_HISTORY: Final = Path(__file__).with_name("scoring_history.txt")
_SIGNATURE: Final = {
    "inputs": None,
    "outputs": None,
    "params": '[{"name": "labels", "default": false, "shape": null, "type": "boolean"}]',
}
_VERSION: Final = r"\d{1,6}(\.\d{1,6}){0,4}((a|b|rc|\.dev|\.post)\d{1,6}){0,3}(\+[a-z0-9.]{1,32})?"

_MAX_TEXT: Final = 1 << 20  # bytes of a text file; the MLmodel of 10,000 classes fits
_MAX_CONFIG: Final = 16 << 20  # bytes of config.json
_MAX_WEIGHTS: Final = 2 << 30  # bytes of all weights together
_MAX_ROW: Final = 1 << 26  # elements of one layer's output for one row


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a packaged model is: the one source of truth, in MLmodel under `metadata.podium`.

    Attributes:
        task: "classifier" (one output: probabilities (n, classes)) or "vae" (four outputs: the
            preprocessed input, its reconstruction as logits or means, z_mean and z_log_var).
        architecture: Name of the architecture that built it.
        input: What one row is.
        class_names: Names of the classes, in the order of the probabilities; a VAE may have none.
        dataset_name: Name of the dataset that trained it.
        dataset_fingerprint: Fingerprint of that dataset.
        likelihood: "bernoulli" or "gaussian" for a VAE, None for a classifier.
    """

    task: str
    architecture: str
    input: InputSpec
    class_names: tuple[str, ...]
    dataset_name: str
    dataset_fingerprint: str
    likelihood: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values that JSON and YAML keep exactly."""
        return {
            "format": FORMAT,
            "task": self.task,
            "architecture": self.architecture,
            "input": self.input.to_json(),
            "class_names": list(self.class_names),
            "dataset": {"name": self.dataset_name, "fingerprint": self.dataset_fingerprint},
            "likelihood": self.likelihood,
        }

    @classmethod
    def from_json(cls, value: Any) -> ModelSpec:
        """Reads what `to_json` gave.

        Raises:
            StructureError: It is anything else; it may come from a stranger's model.
        """
        try:
            if value["format"] != FORMAT:
                raise StructureError(
                    f"MLmodel is not of a format this Podium reads; expected {FORMAT}. "
                    "Upgrade Podium, or package the model again."
                )
            spec = cls(
                task=value["task"],
                architecture=value["architecture"],
                input=InputSpec.from_json(value["input"]),
                class_names=tuple(value["class_names"]),
                dataset_name=value["dataset"]["name"],
                dataset_fingerprint=value["dataset"]["fingerprint"],
                likelihood=value["likelihood"],
            )
            words = (spec.architecture, spec.dataset_name, spec.dataset_fingerprint)
            names = spec.class_names
            sound = (
                all(isinstance(word, str) and 0 < len(word) <= 256 for word in (*words, *names))
                and len(set(names)) == len(names)
                and (
                    (spec.task == "classifier" and len(names) > 1 and spec.likelihood is None)
                    or (spec.task == "vae" and spec.likelihood in ("bernoulli", "gaussian"))
                )
                and spec.to_json() == value
            )
        except (KeyError, TypeError, DataError) as err:
            _bad("MLmodel", f"holds no model specification ({type(err).__name__})", err)
        if not sound:
            _bad("MLmodel", "holds a model specification whose values do not fit one another")
        return spec


def save_network(model: keras.Model, path: Path) -> None:
    """Saves `model` as the `.keras` file that `build_model_folder` takes.

    Args:
        model: A Functional model of stock layers, not compiled.
        path: Where to; replaced whole, or left as it was.

    Raises:
        StructureError: The check would refuse it; names the layer.
    """
    partial = path.with_name(f".{uuid.uuid4().hex[:8]}.keras")
    try:
        model.save(partial)
        _check_network(partial, path.name)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def build_model_folder(network: Path, spec: ModelSpec, folder: Path) -> None:
    """Packages a saved network. The same network and spec give the same bytes.

    Made beside `folder` and renamed, so that a crash leaves no half folder under that name, only a
    hidden one beside it.

    Args:
        network: A file that `save_network` wrote.
        spec: What the network is.
        folder: Must not exist.

    Raises:
        StructureError: The folder exists, or what would stand in it does not pass the check.
    """
    import yaml

    if folder.exists():
        raise StructureError(f"{folder} exists; expected a new name for a model folder.")
    scoring = _SCORING.read_bytes()
    loader = _loader(scoring)
    with network.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(spec.to_json()).encode())
    python = platform.python_version()
    mlmodel = _mlmodel(spec, loader, python, version("mlflow"), digest.hexdigest()[:32])
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        (partial / "data").mkdir(parents=True)
        (partial / "code").mkdir()
        shutil.copyfile(network, partial / _NETWORK)
        (partial / "code" / f"{loader}.py").write_bytes(scoring)
        (partial / "MLmodel").write_text(yaml.safe_dump(mlmodel, allow_unicode=True), "utf-8")
        (partial / "python_env.yaml").write_text(yaml.safe_dump(_python_env(python)), "utf-8")
        pins = "".join(f"{name}=={version(name)}\n" for name in PACKAGES)
        (partial / "requirements.txt").write_text(pins, "utf-8")
        check_model_folder(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_model(folder: Path) -> Any:
    """Checks the folder, then returns it as an `mlflow.pyfunc.PyFuncModel`, warm.

    Raises:
        StructureError: The check refuses it, or Keras cannot load what the check lets through.
    """
    check_model_folder(folder)
    import mlflow.pyfunc

    try:
        return mlflow.pyfunc.load_model(str(folder))
    except Exception as err:
        _bad(_NETWORK, f"could not be loaded ({type(err).__name__})", err)


def check_model_folder(folder: Path) -> ModelSpec:
    """Returns what the model is, having found in `folder` only what Podium writes.

    Imports and loads nothing from the folder. Besides the files of format 1 there may be
    `registered_model_meta` (MLflow writes it when it downloads a version), `release.json` and
    `model.sig`, which only the check of a release judges.

    Raises:
        StructureError: One sentence: the file, and what is wrong with it.
    """
    code = _check_files(folder)
    _check_code(code)
    spec = _check_mlmodel(folder, code.stem)
    meta = folder / "registered_model_meta"
    if meta.exists():
        values = _read_yaml(meta)
        if not isinstance(values, dict) or set(values) != {"model_name", "model_version"}:
            _bad(meta.name, "holds something else than model_name and model_version")
        if not all(isinstance(value, (str, int)) for value in values.values()):
            _bad(meta.name, "holds something else than a name and a version")
    network = _check_network(folder / _NETWORK, _NETWORK)
    _check_fit(network, spec)
    return spec


def _bad(file: str, wrong: str, err: BaseException | None = None) -> NoReturn:
    raise StructureError(f"{file} {wrong}. The model is not loaded.") from err


# The folder.


def _check_files(folder: Path) -> Path:
    """Exactly our files, none of them a link; returns the code file."""
    expected = {"MLmodel", "python_env.yaml", "requirements.txt"}
    optional = {"registered_model_meta", "release.json", "model.sig"}
    if not folder.is_dir():
        _bad(str(folder), "is not a folder")
    files = _entries(folder, "", {"data", "code"})
    for name in sorted(files - expected - optional):
        _bad(repr(name[:80]), "is not a file of a Podium model")
    for name in sorted(expected - files):
        _bad(name, "is missing")
    if _entries(folder / "data", "data/", set()) != {"model.keras"}:
        _bad("data", "holds something else than model.keras")
    code = _entries(folder / "code", "code/", set())
    if len(code) != 1 or not re.fullmatch(r"podium_scoring_[0-9a-f]{12}\.py", min(code)):
        _bad("code", "holds something else than one podium_scoring_<hash>.py")
    return folder / "code" / code.pop()


def _entries(folder: Path, prefix: str, folders: set[str]) -> set[str]:
    files = set()
    seen = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and entry.name in folders:
                seen.add(entry.name)
            elif entry.is_file(follow_symlinks=False):
                files.add(entry.name)
            else:
                _bad(repr(f"{prefix}{entry.name[:80]}"), "is a link or an unknown folder")
    for name in sorted(folders - seen):
        _bad(name, "is missing")
    return files


def _read(path: Path) -> str:
    name = path.name
    with path.open("rb") as file:
        content = file.read(_MAX_TEXT + 1)
    if len(content) > _MAX_TEXT:
        _bad(name, f"is larger than {_MAX_TEXT} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as err:
        _bad(name, "is not UTF-8 text", err)


def _read_yaml(path: Path) -> Any:
    import yaml

    text = _read(path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # A few lines of aliases to aliases are gigabytes to whoever walks them.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            _bad(path.name, "holds YAML aliases")
        return yaml.load(text, Loader=loader)  # a safe loader, in C
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        _bad(path.name, "is not plain YAML", err)


def _loader(scoring: bytes) -> str:
    return f"podium_scoring_{hashlib.sha256(scoring).hexdigest()[:12]}"


def _check_code(code: Path) -> None:
    content = _read(code).encode()
    if _loader(content) != code.stem:
        _bad(f"code/{code.name}", "is not named after its content: it was changed")
    # The whole hash, not the twelve digits of the name: those can be forged.
    history = [line.split("#", 1)[0].strip() for line in _HISTORY.read_text("utf-8").splitlines()]
    known = {hashlib.sha256(_SCORING.read_bytes()).hexdigest(), *filter(None, history)}
    if hashlib.sha256(content).hexdigest() not in known:
        _bad(
            f"code/{code.name}",
            "is not a scoring file this Podium knows; upgrade Podium or package the model again",
        )


def _mlmodel(
    spec: ModelSpec, loader: str, python: str, mlflow_version: str, model_uuid: str
) -> dict[str, Any]:
    """The one text of MLmodel: `build_model_folder` writes it, the check compares with it.

    Written without MLflow, which takes seconds to import and adds keys of its own from one version
    to the next.
    """
    return {
        "flavors": {
            "python_function": {
                "code": "code",
                "data": "data",
                "env": {"virtualenv": "python_env.yaml"},
                "loader_module": loader,
                "python_version": python,
            }
        },
        "is_signature_from_type_hint": False,
        "metadata": {"podium": spec.to_json()},
        "mlflow_version": mlflow_version,
        "model_uuid": model_uuid,
        "signature": _SIGNATURE,
        "type_hint_from_example": False,
    }


def _python_env(python: str) -> dict[str, Any]:
    return {"python": python, "dependencies": ["-r requirements.txt"]}


def _check_mlmodel(folder: Path, loader: str) -> ModelSpec:
    """MLmodel, python_env.yaml and requirements.txt are exactly what Podium would write."""
    lines = _read(folder / "requirements.txt").splitlines()
    pins = dict(zip(PACKAGES, lines, strict=False))
    if len(lines) != len(PACKAGES) or not all(
        re.fullmatch(f"{name}=={_VERSION}", line) for name, line in pins.items()
    ):
        _bad("requirements.txt", f"holds something else than exact pins of {', '.join(PACKAGES)}")
    found = _read_yaml(folder / "MLmodel")
    try:
        value = found["metadata"]["podium"]
        python = found["flavors"]["python_function"]["python_version"]
        model_uuid = found["model_uuid"]
    except (KeyError, TypeError) as err:
        _bad("MLmodel", "lacks its flavor python_function, its model_uuid or its metadata", err)
    if not isinstance(python, str) or not re.fullmatch(_VERSION, python):
        _bad("MLmodel", "names no version of Python")
    if not isinstance(model_uuid, str) or not re.fullmatch("[0-9a-f]{32}", model_uuid):
        _bad("MLmodel", "holds a model_uuid that is none")
    spec = ModelSpec.from_json(value)
    expected = _mlmodel(spec, loader, python, pins["mlflow"].split("==")[1], model_uuid)
    if found != expected:
        _bad(
            "MLmodel",
            f"has something in {_first_difference(found, expected)} that Podium never writes",
        )
    if _read_yaml(folder / "python_env.yaml") != _python_env(python):
        _bad("python_env.yaml", "differs from what Podium writes")
    return spec


def _first_difference(found: Any, expected: Any, path: str = "") -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted({*found, *expected}, key=str):
            if key not in found or key not in expected or found[key] != expected[key]:
                name = f"{path}.{str(key)[:40]}".lstrip(".")
                return _first_difference(found.get(key), expected.get(key), name)
    return path or "its top"


# The network: the archive.

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What flows between layers: the shape of one row, and whether a softmax made it."""

    shape: Shape
    dtype: str = "float32"
    is_softmax: bool = False


@dataclass(frozen=True, slots=True)
class _Network:
    inputs: list[_Tensor]
    outputs: list[_Tensor]


def _check_network(path: Path, file: str) -> _Network:
    """Checks a `.keras` file; returns what goes in and comes out."""
    with path.open("rb") as stream, _member_files(stream, file) as members:
        metadata = _read_json(members["metadata.json"], f"{file}: metadata.json")
        if not (
            isinstance(metadata, dict)
            and set(metadata) == {"keras_version", "date_saved"}
            and all(isinstance(value, str) and len(value) < 64 for value in metadata.values())
        ):
            _bad(file, "has a metadata.json that Keras does not write")
        config = _read_json(members["config.json"], f"{file}: config.json")
        walk = _Walk(file)
        network = walk.network(config)
        stored = _stored_shapes(members["model.weights.h5"], file)
    derived = Counter(walk.weights)
    if stored != derived:
        shape = min((stored - derived) + (derived - stored))
        _bad(file, f"stores weights that differ from its layers: shape {shape} is on one side only")
    return network


_MEMBERS: Final = {
    "metadata.json": 1 << 12,
    "config.json": _MAX_CONFIG,
    "model.weights.h5": _MAX_WEIGHTS + (64 << 20),
}


@contextmanager
def _member_files(stream: BinaryIO, file: str) -> Iterator[dict[str, BinaryIO]]:
    """The three members, unpacked into anonymous files of bounded size."""
    try:
        archive = zipfile.ZipFile(stream)
        infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as err:
        _bad(file, "is not a .keras archive", err)
    if sorted(info.filename for info in infos) != sorted(_MEMBERS):
        _bad(file, f"holds other members than {', '.join(_MEMBERS)}")
    with archive, ExitStack() as stack:
        members: dict[str, BinaryIO] = {}
        for info in infos:
            limit = _MEMBERS[info.filename]
            if info.flag_bits & 1:
                _bad(file, f"holds {info.filename} encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                _bad(file, f"holds {info.filename} compressed in a way Keras does not write")
            if info.file_size > limit:
                _bad(file, f"holds {info.filename} larger than {limit} bytes")
            target = stack.enter_context(tempfile.TemporaryFile())
            try:
                with archive.open(info) as source:
                    shutil.copyfileobj(source, target, 1 << 20)
            except Exception as err:  # zlib.error among them, which has no base of its own
                _bad(file, f"holds {info.filename} damaged", err)
            target.seek(0)
            members[info.filename] = target
        yield members


def _read_json(stream: BinaryIO, file: str) -> Any:
    def refuse_constant(word: str) -> NoReturn:
        raise ValueError(word)

    try:
        return json.loads(stream.read().decode("utf-8"), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as err:
        _bad(file, "is not plain JSON", err)


def _stored_shapes(stream: BinaryIO, file: str) -> Counter[Shape]:
    """Shapes of all stored weights; every one is plain numbers that lie in this very file."""
    import h5py

    shapes: Counter[Shape] = Counter()
    seen: set[int] = set()
    size_bytes = 0

    def walk(group: Any, depth: int) -> None:
        nonlocal size_bytes
        if depth > 32 or len(seen) > 100_000:
            _bad(file, "has weights nested too deep, or too many")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                _bad(file, "has weights behind a link to another place")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                _bad(file, "has weights stored under two names")
            seen.add(address)
            if isinstance(item, h5py.Group):
                walk(item, depth + 1)
                continue
            if not isinstance(item, h5py.Dataset):
                _bad(file, "has something else than numbers among its weights")
            plan = item.id.get_create_plist()
            plain = plan.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
            if not plain or plan.get_external_count() or item.dtype.kind not in "fiu":
                _bad(file, "has weights that are not plain numbers in one piece")
            if item.shape is None or item.id.get_storage_size() != item.nbytes:
                _bad(file, "has weights that are not all there")
            size_bytes += item.nbytes
            if size_bytes > _MAX_WEIGHTS:
                _bad(file, f"has more than {_MAX_WEIGHTS} bytes of weights")
            shapes[tuple(item.shape)] += 1

    try:
        with h5py.File(stream, "r") as weights:
            walk(weights, 0)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as err:
        _bad(file, "has damaged weights", err)
    return shapes


# The network: its configuration. A walk over every dict, which also derives every shape.

_ACTIVATIONS: Final = _words(
    "relu leaky_relu relu6 softmax celu elu selu softplus softsign squareplus soft_shrink "
    "sparse_plus silu swish gelu glu tanh tanh_shrink threshold sigmoid sparse_sigmoid "
    "exponential hard_sigmoid hard_silu hard_swish hard_tanh hard_shrink linear mish "
    "log_softmax log_sigmoid sparsemax"
)
# Under any other key but a name, a string is one of these.
_WORDS: Final = _words(
    "valid same causal channels_last nearest bilinear constant reflect wrap horizontal "
    "vertical horizontal_and_vertical concat sum mul ave dot float32 float16 bfloat16 "
    "mixed_float16 mixed_bfloat16 uint8 int32 int64 bool fan_in fan_out fan_avg normal "
    "uniform truncated_normal untruncated_normal"
)
# What every other key must be absent, null or false: each makes weights or work of its own.
_KEYS: Final = _words(
    "activation activity_regularizer attention_axes axis backward_layer batch_shape "
    "beta_constraint beta_initializer beta_regularizer bias_constraint bias_initializer "
    "bias_regularizer center cropping data_format depth_multiplier depthwise_constraint "
    "depthwise_initializer depthwise_regularizer dilation_rate dims dropout dtype "
    "embeddings_constraint embeddings_initializer embeddings_regularizer epsilon factor "
    "fill_mode fill_value filters gamma_constraint gamma_initializer gamma_regularizer "
    "go_backwards groups height_factor input_dim interpolation invert keepdims "
    "kernel_constraint kernel_initializer kernel_regularizer kernel_size key_dim layer "
    "mask_value mask_zero max_value mean merge_mode mode momentum moving_mean_initializer "
    "moving_variance_initializer name negative_slope num_heads offset output_dim padding "
    "pointwise_constraint pointwise_initializer pointwise_regularizer pool_size rate "
    "recurrent_activation recurrent_constraint recurrent_dropout recurrent_initializer "
    "recurrent_regularizer renorm_momentum reset_after return_sequences scale score_mode seed "
    "size strides synchronized target_shape threshold trainable unit_forget_bias units "
    "use_bias use_scale value_dim value_range variance width_factor zero_output_for_mask "
    "value mean stddev minval maxval distribution input_axes output_axes gain l1 l2 min_value"
)
_HELPERS: Final = {
    "initializer": (
        "keras.initializers",
        _words(
            "Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal VarianceScaling "
            "GlorotUniform GlorotNormal HeNormal HeUniform LecunNormal LecunUniform "
            "Orthogonal Identity"
        ),
    ),
    "regularizer": ("keras.regularizers", ["L1", "L2", "L1L2"]),
    "constraint": ("keras.constraints", ["MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm"]),
    "dtype": ("keras", ["DTypePolicy"]),
}
_OBJECT_KEYS: Final = _words(
    "module class_name config registered_name build_config compile_config name inbound_nodes "
    "shared_object_id"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,128}")


class _Walk:
    """One walk over a network's configuration; `weights` collects the shapes it will allocate."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.weights: list[Shape] = []
        self._n_weights = 0
        self._shared: dict[int, str] = {}

    def bad(self, where: str, wrong: str) -> NoReturn:
        _bad(self.file, f"{where} {wrong}".replace("\n", " "))

    def network(self, value: Any) -> _Network:
        """The whole configuration; raises StructureError for anything not known."""
        try:
            if not isinstance(value, dict) or value.get("class_name") != "Functional":
                self.bad("is", "not a Functional model; build it with keras.Model(inputs, outputs)")
            return self._functional(value, "its network", 0)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as err:
            _bad(self.file, f"has a configuration Keras does not write ({type(err).__name__})", err)

    # Objects, and the plain values in them.

    def _identity(self, value: dict[str, Any], where: str) -> tuple[str, str]:
        if not set(value) <= _OBJECT_KEYS:
            self.bad(where, "has keys that Keras does not write")
        module, name = value["module"], value["class_name"]
        if value.get("registered_name") is not None and value["registered_name"] != name:
            self.bad(where, "is a class registered by someone's code; use stock Keras layers")
        return module, name

    def _plain(self, config: Any, where: str) -> None:
        """Every value of a config is a number, a known word, or an allowed helper."""
        if not isinstance(config, dict):
            self.bad(where, "has no configuration")
        for key, value in config.items():
            if key not in _KEYS:
                if value is not None and value is not False:
                    self.bad(where, f"sets {str(key)[:40]!r}, which Podium does not know")
            elif isinstance(value, dict):
                self._helper(key, value, where)
            elif key in ("activation", "recurrent_activation"):
                if value is not None and value not in _ACTIVATIONS:
                    self.bad(where, "has an activation that is not one of Keras' own")
            elif key == "name":
                if not isinstance(value, str) or not _NAME.fullmatch(value):
                    self.bad("a layer", "has a name of other characters than letters and digits")
            else:
                self._value(value, f"{where}: {key}", 0)

    def _value(self, value: Any, where: str, depth: int) -> None:
        if isinstance(value, list):
            if depth > 3 or len(value) > 100_000:
                self.bad(where, "is nested too deep or too long")
            for item in value:
                self._value(item, where, depth + 1)
        elif isinstance(value, str):
            if value not in _WORDS:
                self.bad(where, "is a word that Podium does not know")
        elif not (value is None or isinstance(value, (bool, int, float))):
            self.bad(where, "is not a plain value")
        elif isinstance(value, float) and not math.isfinite(value):
            self.bad(where, "is not finite")

    def _helper(self, key: str, value: dict[str, Any], where: str) -> None:
        role = key.rsplit("_", 1)[-1]
        module, names = _HELPERS.get(role, ("", []))
        found, name = self._identity(value, f"{where}: {key}")
        if found != module or name not in names:
            self.bad(where, f"has as {key} something else than a stock Keras {role}")
        config = value["config"]
        if not isinstance(config, dict) or any(
            isinstance(v, (dict, list)) for v in config.values()
        ):
            self.bad(f"{where}: {key}", "has a configuration that is not plain")
        if role == "dtype":
            if set(config) != {"name"} or config["name"] not in _WORDS:
                self.bad(f"{where}: dtype", "is not a stock policy")
        else:
            self._plain(config, f"{where}: {key}")
        if value.get("build_config") or value.get("compile_config") or "inbound_nodes" in value:
            self.bad(f"{where}: {key}", "has keys of a layer")
        if (shared := value.get("shared_object_id")) is not None:
            # Keras returns the first object of an id, whatever the second one says.
            identity = json.dumps([module, name, config], sort_keys=True)
            if self._shared.setdefault(shared, identity) != identity:
                self.bad(f"{where}: {key}", "says to be an object that it is not")

    # The graph.

    def _functional(self, value: dict[str, Any], where: str, depth: int) -> _Network:
        if depth > 4:
            self.bad(where, "is nested too deep")
        if self._identity(value, where) != ("keras.src.models.functional", "Functional"):
            self.bad(where, "is not a stock Functional model")
        self._no_extras(value, where)
        if value.get("build_config") not in (None, {"input_shape": None}):
            self.bad(where, "has a build_config that Keras does not write")
        config = value["config"]
        if set(config) != {"name", "trainable", "layers", "input_layers", "output_layers"}:
            self.bad(where, "has a configuration that is not a stock Functional model's")
        self._plain({"name": config["name"], "trainable": config["trainable"]}, where)
        layers = {self._layer_name(layer): layer for layer in config["layers"]}
        if len(layers) != len(config["layers"]) or len(layers) > 2000:
            self.bad(where, "has layers of one name, or more than 2000")
        nodes = self._run(layers, where, depth)

        def tensors(refs: Any) -> list[_Tensor]:
            refs = [refs] if refs and isinstance(refs[0], str) else refs
            found = []
            for name, node, index in refs:
                # Keras counts a nested model's own making as its node 0.
                nested = layers[name]["class_name"] == "Functional"
                found.append(nodes[name, node - 1 if nested else node][index])
            return found

        return _Network(tensors(config["input_layers"]), tensors(config["output_layers"]))

    def _no_extras(self, value: dict[str, Any], where: str) -> None:
        if value.get("compile_config"):
            self.bad(
                where, "is compiled; expected a plain one: keras.Model(model.inputs, model.outputs)"
            )
        if value.get("shared_object_id") is not None:
            self.bad(where, "is shared between models; expected each layer in one model")

    def _layer_name(self, layer: Any) -> str:
        name = layer["name"]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.bad("a layer", "has a name of other characters than letters and digits")
        if not isinstance(layer["config"], dict) or layer["config"].get("name") != name:
            self.bad(f"layer {name!r}", "has two names")
        return name

    def _run(
        self, layers: dict[str, dict[str, Any]], where: str, depth: int
    ) -> dict[tuple[str, int], list[_Tensor]]:
        """Calls each layer on the shapes it gets, in whatever order they come to be there."""
        done: dict[tuple[str, int], list[_Tensor]] = {}
        waiting: list[tuple[str, int, Any]] = []
        for name, layer in layers.items():
            if layer["class_name"] == "InputLayer":
                done[name, 0] = [self._input(layer, f"layer {name!r}")]
            elif not isinstance(layer["inbound_nodes"], list) or not layer["inbound_nodes"]:
                self.bad(f"layer {name!r}", "is called on nothing")
            else:
                waiting += [(name, i, node) for i, node in enumerate(layer["inbound_nodes"])]
        if len(waiting) > 4000:
            self.bad(where, "has more than 4000 calls of layers")
        while waiting:
            left = []
            for name, index, node in waiting:
                inputs = self._arguments(node, done, f"layer {name!r}")
                # A layer's weights are made by its first call: that one goes first here too.
                if inputs is None or (index and (name, index - 1) not in done):
                    left.append((name, index, node))
                    continue
                done[name, index] = self._call(layers[name], inputs, index == 0, depth)
            if len(left) == len(waiting):
                self.bad(where, "has layers that nothing leads to")
            waiting = left
        return done

    def _input(self, layer: dict[str, Any], where: str) -> _Tensor:
        if self._identity(layer, where) != ("keras.layers", "InputLayer"):
            self.bad(where, "is not a stock InputLayer")
        config = layer["config"]
        self._plain(config, where)
        self._no_extras(layer, where)
        if layer["inbound_nodes"] or layer.get("build_config"):
            self.bad(where, "is an input that something leads to")
        batch, *shape = config["batch_shape"]
        if batch is not None:
            self.bad(where, "fixes the batch size; expected None")
        if not isinstance(config["dtype"], str):
            self.bad(where, "names no dtype")
        return _Tensor(self._sized(tuple(shape), where), config["dtype"])

    def _arguments(
        self, node: Any, done: dict[tuple[str, int], list[_Tensor]], where: str
    ) -> list[_Tensor] | None:
        """The tensors of one call, or None where one is not there yet."""
        if set(node) != {"args", "kwargs"} or not isinstance(node["kwargs"], dict):
            self.bad(where, "is called in a way Keras does not write")
        found: list[_Tensor] = []
        refs: list[Any] = []
        for arg in node["args"]:
            refs += arg if isinstance(arg, list) else [arg]
        for key, value in node["kwargs"].items():
            if isinstance(value, dict) and key in ("query", "value", "key"):
                refs.append(value)
            elif isinstance(value, dict) and key in ("mask", "attention_mask"):
                if self._tensor(value, done, where) is None:
                    return None
            elif not (value is None or isinstance(value, bool)):
                self.bad(where, "is called with an argument that Podium does not know")
        for ref in refs:
            if ref is None or isinstance(ref, (int, float)):
                continue  # what a mask is compared with
            tensor = self._tensor(ref, done, where)
            if tensor is None:
                return None
            found.append(tensor)
        return found

    def _tensor(
        self, ref: Any, done: dict[tuple[str, int], list[_Tensor]], where: str
    ) -> _Tensor | None:
        if (
            not isinstance(ref, dict)
            or set(ref) != {"class_name", "config"}
            or ref["class_name"] != "__keras_tensor__"
            or set(ref["config"]) != {"shape", "dtype", "keras_history"}
            or ref["config"]["dtype"] not in _WORDS
        ):
            self.bad(where, "is called on something else than another layer's output")
        name, node, index = ref["config"]["keras_history"]
        outputs: list[_Tensor] | None = done.get((name, node))
        if outputs is None:
            return None
        if index < 0 or ref["config"]["shape"] != [None, *outputs[index].shape]:
            self.bad(where, "is called on a shape that its input does not have")
        tensor: _Tensor = outputs[index]
        return tensor

    def _call(
        self, layer: dict[str, Any], inputs: list[_Tensor], first: bool, depth: int
    ) -> list[_Tensor]:
        name = layer["name"]
        where = f"layer {name!r}"
        if not inputs:
            self.bad(where, "is called on nothing")
        if layer["class_name"] == "Functional":
            before = len(self.weights), self._n_weights
            network = self._functional(layer, f"model {name!r}", depth + 1)
            if not first:  # walked again for its shapes; the weights are those of the first call
                del self.weights[before[0] :]
                self._n_weights = before[1]
            if [t.shape for t in network.inputs] != [t.shape for t in inputs]:
                self.bad(where, "is called on other shapes than its inputs'")
            return network.outputs
        shape, weights = self._layer(layer, [t.shape for t in inputs], where)
        if first:
            self._allocate(weights, where)
            self._check_build(layer.get("build_config"), [t.shape for t in inputs], where)
        config = layer["config"]
        softmax = layer["class_name"] == "Softmax" or config.get("activation") == "softmax"
        return [_Tensor(self._sized(shape, where), is_softmax=softmax)]

    def _layer(
        self, layer: dict[str, Any], inputs: list[Shape], where: str
    ) -> tuple[Shape, list[Shape]]:
        """Output shape and weight shapes of one stock layer."""
        module, name = self._identity(layer, where)
        rule = _LAYERS.get((module, name)) if isinstance(module, str) else None
        if rule is None:
            found = f"{str(module)[:60]}.{str(name)[:60]}"
            self.bad(where, f"is a {found}, which is not an allowed layer")
        config = layer["config"]
        self._no_extras(layer, where)
        if name == "Bidirectional":
            directions = ("layer", "backward_layer")  # walked as the layers they are
            self._plain({k: v for k, v in config.items() if k not in directions}, where)
            return self._bidirectional(config, inputs, where)
        self._plain(config, where)
        try:
            return rule(_Config(config), inputs)
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as err:
            _bad(self.file, f"{where} does not fit its input: {type(err).__name__}", err)

    def _bidirectional(
        self, config: dict[str, Any], inputs: list[Shape], where: str
    ) -> tuple[Shape, list[Shape]]:
        weights: list[Shape] = []
        shape: Shape = ()
        for key in ("layer", "backward_layer"):
            inner = config[key]
            if not isinstance(inner, dict) or inner.get("class_name") not in _RECURRENT:
                self.bad(f"{where}: {key}", "is not a GRU, LSTM or SimpleRNN")
            if "inbound_nodes" in inner:
                self.bad(f"{where}: {key}", "has calls of its own")
            shape, more = self._layer(inner, inputs, f"{where}: {key}")
            self._check_build(inner.get("build_config"), inputs, f"{where}: {key}")
            weights += more
        if config["merge_mode"] not in ("concat", "sum", "mul", "ave"):
            self.bad(where, "keeps its directions apart; expected a merge_mode")
        factor = 2 if config["merge_mode"] == "concat" else 1
        return (*shape[:-1], factor * shape[-1]), weights

    # Sizes.

    def _sized(self, shape: Shape, where: str) -> Shape:
        if not all(type(size) is int and size > 0 for size in shape) or len(shape) > 6:
            self.bad(where, "has a size that is not a positive whole number")
        if math.prod(shape) > _MAX_ROW:
            self.bad(where, f"makes more than {_MAX_ROW} numbers of one row")
        return shape

    def _allocate(self, weights: list[Shape], where: str) -> None:
        for shape in weights:
            if not all(type(size) is int and size > 0 for size in shape):
                self.bad(where, "has a size that is not a positive whole number")
            self._n_weights += math.prod(shape)
            if 4 * self._n_weights > _MAX_WEIGHTS:
                self.bad(where, f"takes the weights over {_MAX_WEIGHTS} bytes")
        self.weights += weights

    def _check_build(self, build: Any, inputs: list[Shape], where: str) -> None:
        """Keras makes weights of build_config's shapes, before any call: they must be the same."""
        if build is None:
            return
        if not isinstance(build, dict) or not set(build) <= {"input_shape", "shapes_dict"}:
            self.bad(where, "has a build_config that Keras does not write")
        for shape in _shapes_in(list(build.values())):
            if tuple(shape[1:]) not in inputs:
                self.bad(where, "is built for another shape than it is called on")


def _shapes_in(values: Iterable[Any]) -> Iterator[list[Any]]:
    for value in values:
        if isinstance(value, dict):
            yield from _shapes_in(value.values())
        elif isinstance(value, list) and any(isinstance(item, list) for item in value):
            yield from _shapes_in(value)
        elif isinstance(value, list):
            yield value
        elif value is not None:
            raise ValueError("not a shape")


# The network: output shape and weights of each layer that may be in one. Shapes are of one row.


class _Config:
    """A layer's config, read with the types that sizes have."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def size(self, key: str) -> int:
        value = self.values[key]
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ValueError(key)
        return value

    def sizes(self, key: str, n: int) -> list[int]:
        value = self.values[key]
        values = value if isinstance(value, list) else [value] * n
        if len(values) != n or not all(type(v) is int and 0 < v < 1 << 31 for v in values):
            raise ValueError(key)
        return values

    def pairs(self, key: str) -> list[list[int]]:
        value: list[list[int]] = self.values[key]
        flat = [v for pair in value for v in pair]
        if len(flat) != 4 or not all(type(v) is int and 0 <= v < 1 << 31 for v in flat):
            raise ValueError(key)
        return value

    def on(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise ValueError(key)
        return value

    def axis(self, rank: int, key: str = "axis") -> int:
        """Index into the shape of one row; Keras counts the batch axis too."""
        value = self.values[key]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if type(value) is not int or not (-rank <= value < 0 or 0 < value <= rank):
            raise ValueError(key)
        return value + rank if value < 0 else value - 1


_Rule: TypeAlias = Callable[[_Config, list[Shape]], tuple[Shape, list[Shape]]]


def _one(inputs: list[Shape], rank: int | None = None) -> Shape:
    if len(inputs) != 1 or (rank is not None and len(inputs[0]) != rank):
        raise ValueError("inputs")
    return inputs[0]


def _same(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    return _one(inputs), []


def _rescaling(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    shape = _one(inputs)
    for key in ("scale", "offset"):
        value = config.values[key]
        if isinstance(value, list) and len(value) not in (1, shape[-1]):
            raise ValueError(key)
    return shape, []


def _normalization(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    shape = _one(inputs)
    last = shape[config.axis(len(shape))]
    mean = config.values["mean"]
    if mean is None:
        return shape, [(last,), (last,), ()]
    if len(mean if isinstance(mean, list) else [mean]) not in (1, last):
        raise ValueError("mean")
    return shape, []


def _dense(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    *front, last = _one(inputs)
    units = config.size("units")
    return (*front, units), [(last, units), *_bias(config, units)]


def _bias(config: _Config, *shape: int) -> list[Shape]:
    return [shape] if config.on("use_bias") else []


def _windows(
    config: _Config, shape: Shape, key: str, padding: str, dilated: bool = True
) -> tuple[list[int], list[int]]:
    """Window sizes, and how many windows fit along each spatial axis."""
    rank = len(shape) - 1
    sizes = config.sizes(key, rank)
    strides = config.sizes("strides", rank)
    dilation = config.sizes("dilation_rate", rank) if dilated else [1] * rank
    if padding not in ("valid", "same", "causal"):
        raise ValueError("padding")
    counts = [
        (n - d * (k - 1) - 1) // s + 1 if padding == "valid" else -(-n // s)
        for n, k, s, d in zip(shape, sizes, strides, dilation, strict=False)
    ]
    return sizes, counts


def _conv(rank: int) -> _Rule:
    def rule(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
        shape = _one(inputs, rank + 1)
        filters, groups = config.size("filters"), config.size("groups")
        kernel, counts = _windows(config, shape, "kernel_size", config.values["padding"])
        if shape[-1] % groups or filters % groups:
            raise ValueError("groups")
        weights = [(*kernel, shape[-1] // groups, filters), *_bias(config, filters)]
        return (*counts, filters), weights

    return rule


def _conv_transpose(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    shape = _one(inputs, 3)
    filters = config.size("filters")
    kernel, strides = config.sizes("kernel_size", 2), config.sizes("strides", 2)
    dilation = config.sizes("dilation_rate", 2)
    valid = config.values["padding"] == "valid"
    counts = [
        (n - 1) * s + max(d * (k - 1) + 1, s) if valid else n * s
        for n, k, s, d in zip(shape, kernel, strides, dilation, strict=False)
    ]
    return (*counts, filters), [(*kernel, filters, shape[-1]), *_bias(config, filters)]


def _separable_conv(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    shape = _one(inputs, 3)
    filters, depth = config.size("filters"), config.size("depth_multiplier")
    kernel, counts = _windows(config, shape, "kernel_size", config.values["padding"])
    depthwise, pointwise = (*kernel, shape[-1], depth), (1, 1, shape[-1] * depth, filters)
    return (*counts, filters), [depthwise, pointwise, *_bias(config, filters)]


def _depthwise_conv(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    shape = _one(inputs, 3)
    depth = config.size("depth_multiplier")
    kernel, counts = _windows(config, shape, "kernel_size", config.values["padding"])
    channels = shape[-1] * depth
    return (*counts, channels), [(*kernel, shape[-1], depth), *_bias(config, channels)]


def _pooling(rank: int) -> _Rule:
    def rule(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
        shape = _one(inputs, rank + 1)
        padding = config.values["padding"]
        _, counts = _windows(config, shape, "pool_size", padding, dilated=False)
        return (*counts, shape[-1]), []

    return rule


def _global_pooling(rank: int) -> _Rule:
    def rule(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
        shape = _one(inputs, rank + 1)
        return ((1,) * rank if config.on("keepdims") else ()) + shape[-1:], []

    return rule


def _flatten(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    return (math.prod(_one(inputs)),), []


def _reshape(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    target: list[int] = config.values["target_shape"]
    n = math.prod(_one(inputs))
    known = math.prod(size for size in target if size != -1)
    shape = tuple(n // known if size == -1 else size for size in target)
    if target.count(-1) > 1 or math.prod(shape) != n:
        raise ValueError("target_shape")
    return shape, []


def _permute(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    shape = _one(inputs)
    dims = config.sizes("dims", len(shape))
    if sorted(dims) != list(range(1, len(shape) + 1)):
        raise ValueError("dims")
    return tuple(shape[dim - 1] for dim in dims), []


def _around(key: str, sign: int) -> _Rule:
    def rule(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
        height, width, channels = _one(inputs, 3)
        (top, bottom), (left, right) = config.pairs(key)
        return (height + sign * (top + bottom), width + sign * (left + right), channels), []

    return rule


def _up_sampling(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    height, width, channels = _one(inputs, 3)
    rows, columns = config.sizes("size", 2)
    return (height * rows, width * columns, channels), []


def _batch_norm(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    shape = _one(inputs)
    n = 2 + config.on("scale") + config.on("center")
    return shape, [(shape[config.axis(len(shape))],)] * n


def _layer_norm(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    shape = _one(inputs)
    n = config.on("scale") + config.on("center")
    return shape, [(shape[config.axis(len(shape))],)] * n


def _recurrent(gates: int) -> _Rule:
    def rule(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
        steps, features = _one(inputs, 2)
        units = config.size("units")
        weights: list[Shape] = [(features, gates * units), (units, gates * units)]
        if gates == 3 and config.on("reset_after"):
            weights += _bias(config, 2, gates * units)
        else:
            weights += _bias(config, gates * units)
        return ((steps, units) if config.on("return_sequences") else (units,)), weights

    return rule


def _embedding(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    n, size = config.size("input_dim"), config.size("output_dim")
    return (*_one(inputs), size), [(n, size)]


def _merge(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    if len({len(shape) for shape in inputs}) != 1:
        raise ValueError("ranks")
    return tuple(int(size) for size in np.broadcast_shapes(*inputs)), []


def _concatenate(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    axis = config.axis(len(inputs[0]))
    if len({(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}) != 1:
        raise ValueError("shapes")
    size = sum(shape[axis] for shape in inputs)
    return (*inputs[0][:axis], size, *inputs[0][axis + 1 :]), []


def _attention(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    query, value = inputs[0], inputs[1]
    scalars = config.on("use_scale") + (config.values["score_mode"] == "concat")
    return (*query[:-1], value[-1]), [()] * scalars


def _multi_head_attention(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    query, value, key = (*inputs, inputs[1])[:3]
    heads, key_dim, value_dim = (config.size(k) for k in ("num_heads", "key_dim", "value_dim"))
    weights: list[Shape] = []
    for shape, dim in ((query, key_dim), (key, key_dim), (value, value_dim)):
        weights += [(shape[-1], heads, dim), *_bias(config, heads, dim)]
    return query, [*weights, (heads, value_dim, query[-1]), *_bias(config, query[-1])]


def _any(config: _Config, inputs: list[Shape]) -> tuple[Shape, list[Shape]]:
    if config.values["axis"] != -1 or config.on("keepdims"):
        raise ValueError("axis")
    return _one(inputs)[:-1], []


_RECURRENT: Final[dict[str, _Rule]] = {
    "GRU": _recurrent(3),
    "LSTM": _recurrent(4),
    "SimpleRNN": _recurrent(1),
}
_STOCK: Final[dict[str, _Rule]] = {
    **dict.fromkeys(
        _words(
            "Activation Dropout SpatialDropout1D SpatialDropout2D ReLU LeakyReLU Softmax "
            "Masking RandomFlip RandomRotation RandomTranslation RandomZoom RandomContrast"
        ),
        _same,
    ),
    **_RECURRENT,
    "Bidirectional": _same,  # walked by itself, as it holds two layers
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Dense": _dense,
    "Embedding": _embedding,
    "Conv1D": _conv(1),
    "Conv2D": _conv(2),
    "Conv2DTranspose": _conv_transpose,
    "SeparableConv2D": _separable_conv,
    "DepthwiseConv2D": _depthwise_conv,
    "MaxPooling1D": _pooling(1),
    "MaxPooling2D": _pooling(2),
    "AveragePooling1D": _pooling(1),
    "AveragePooling2D": _pooling(2),
    "GlobalAveragePooling1D": _global_pooling(1),
    "GlobalAveragePooling2D": _global_pooling(2),
    "GlobalMaxPooling1D": _global_pooling(1),
    "GlobalMaxPooling2D": _global_pooling(2),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "ZeroPadding2D": _around("padding", 1),
    "Cropping2D": _around("cropping", -1),
    "UpSampling2D": _up_sampling,
    "Add": _merge,
    "Multiply": _merge,
    "Concatenate": _concatenate,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
}
_LAYERS: Final[dict[tuple[str, str], _Rule]] = {
    **{("keras.layers", name): rule for name, rule in _STOCK.items()},
    # What Masking and Embedding(mask_zero=True) leave in the graph.
    ("keras.src.ops.numpy", "NotEqual"): _same,
    ("keras.src.ops.numpy", "Any"): _any,
    ("keras.src.ops.numpy", "LogicalOr"): _merge,
    ("keras.src.ops.core", "ConvertToTensor"): _same,
}


def _check_fit(network: _Network, spec: ModelSpec) -> None:
    """The network takes what the spec says and gives what the task needs."""
    shape = spec.input.shape
    if len(network.inputs) != 1 or network.inputs[0].shape != shape:
        got = [tensor.shape for tensor in network.inputs]
        _bad(_NETWORK, f"takes {got}, but MLmodel says one input of {shape}")
    if network.inputs[0].dtype not in (spec.input.dtype, "float32"):
        _bad(_NETWORK, f"takes {network.inputs[0].dtype}, but MLmodel says {spec.input.dtype}")
    outputs = [tensor.shape for tensor in network.outputs]
    if spec.task == "classifier":
        if outputs != [(len(spec.class_names),)] or not network.outputs[0].is_softmax:
            n = len(spec.class_names)
            _bad(_NETWORK, f"gives {outputs}, but MLmodel says a softmax over {n} classes")
    elif len(outputs) != 4 or outputs[0] != outputs[1] or outputs[2] != outputs[3]:
        _bad(_NETWORK, f"gives {outputs}; a VAE gives x, its reconstruction, z_mean, z_log_var")
    elif len(outputs[2]) != 1:
        _bad(_NETWORK, f"gives a latent of shape {outputs[2]}; a VAE's is flat")
