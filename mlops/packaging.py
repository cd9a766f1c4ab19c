"""A Keras model in an MLflow model folder, and the check of what may be inside one.

    MLmodel                             the flavor python_function, the signature, the spec
    python_env.yaml, requirements.txt   exact pins of what trained it
    data/model.keras                    one Functional network of stock Keras layers
    code/podium_scoring_<sha12>/        a copy of mlops/scoring/, named after its content

`check_model_folder` decides before anything is loaded: no Keras, no MLflow, no import of what is in
the folder. It allows what Podium writes and nothing else, because no list of bad things is ever
complete: Keras' safe mode has been passed about nine times, and MLflow imports whatever module a
folder names. mlops/network.py derives sizes from the network's configuration, layer by layer, and
compares them with the stored weights: what loads needs no more memory than the file shows.

This layout is format 1. Models of it are stored and signed: change it only beside a format 2.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops.errors import DataError, StructureError, refuse_model
from mlops.inputs import InputSpec
from mlops.network import Network, check_network
from mlops.scoring_code import FILE, LOADER, MOST_FILES, find_fault, hash_code, loader_of, read_own

if TYPE_CHECKING:
    import keras

    from mlops.data import Dataset

FORMAT: Final = 1
PACKAGES: Final = ("mlflow", "keras", "tensorflow", "numpy", "pandas", "pillow")
"""What a packaged model needs installed to answer."""
RELEASE_FILES: Final = ("golden.json", "reference.json", "release.json", "model.sig")
"""What a release's folder holds besides, in the order in which they are written; only a VAE's has
a reference.json."""

_NETWORK: Final = "data/model.keras"
_PARAM: Final = '{"name": "%s", "default": false, "shape": null, "type": "boolean"}'
_SIGNATURE: Final = {
    "inputs": None,
    "outputs": None,
    "params": f"[{_PARAM % 'labels'}, {_PARAM % 'explain'}]",
}
# What MLflow lets whoever loads the model set; the scoring runtime says what each means.
_MODEL_CONFIG: Final = {"max_rows": None, "max_batch": 64, "max_wait_ms": 0.0}
_VERSION: Final = r"\d{1,6}(\.\d{1,6}){0,4}((a|b|rc|\.dev|\.post)\d{1,6}){0,3}(\+[a-z0-9.]{1,32})?"

_MAX_TEXT: Final = 4 << 20  # bytes of a text file; the MLmodel of 10,000 columns takes 1.5 MB
_MAX_NAME: Final = 4096  # characters of the name of a column or of a category


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

    @classmethod
    def of(
        cls, dataset: Dataset, task: str, architecture: str, likelihood: str | None = None
    ) -> ModelSpec:
        """Returns that of a network that was trained on a dataset."""
        return cls(
            task=task,
            architecture=architecture,
            input=dataset.input,
            class_names=dataset.class_names,
            dataset_name=dataset.name,
            dataset_fingerprint=dataset.fingerprint,
            likelihood=likelihood,
        )

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
                and all(len(text) <= _MAX_NAME for text in _column_texts(spec.input))
                and (
                    (spec.task == "classifier" and len(names) > 1 and spec.likelihood is None)
                    or (spec.task == "vae" and spec.likelihood in ("bernoulli", "gaussian"))
                )
                and spec.to_json() == value
            )
        except (KeyError, TypeError, DataError) as err:
            refuse_model("MLmodel", f"holds no model specification ({type(err).__name__})", err)
        if not sound:
            refuse_model(
                "MLmodel", "holds a model specification whose values do not fit one another"
            )
        return spec


def _column_texts(spec: InputSpec) -> Iterator[str]:
    for column in spec.columns or ():
        yield column.name
        yield from column.categories or ()


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
        check_network(partial, path.name)
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
    scoring = read_own()
    loader = loader_of(hash_code(scoring))
    python = platform.python_version()
    mlmodel = _mlmodel(spec, loader, python, version("mlflow"), _model_uuid(network, spec))
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        (partial / "data").mkdir(parents=True)
        (partial / "code" / loader).mkdir(parents=True)
        shutil.copyfile(network, partial / _NETWORK)
        for name, content in scoring.items():
            (partial / "code" / loader / name).write_bytes(content)
        (partial / "MLmodel").write_text(yaml.safe_dump(mlmodel, allow_unicode=True), "utf-8")
        (partial / "python_env.yaml").write_text(yaml.safe_dump(_python_env(python)), "utf-8")
        pins = "".join(f"{name}=={version(name)}\n" for name in PACKAGES)
        (partial / "requirements.txt").write_text(pins, "utf-8")
        check_model_folder(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _model_uuid(network: Path, spec: ModelSpec) -> str:
    """Binds the network's bytes and the specification: one that was swapped is found."""
    with network.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(spec.to_json()).encode())
    return digest.hexdigest()[:32]


def load_model(folder: Path, vouched_scoring: str | None = None) -> Any:
    """Checks the folder, then returns it as an `mlflow.pyfunc.PyFuncModel`, warm.

    Args:
        vouched_scoring: As for `check_model_folder`.

    Raises:
        StructureError: The check refuses it, or Keras cannot load what the check lets through.
    """
    check_model_folder(folder, vouched_scoring)
    import mlflow.pyfunc

    try:
        with _hushed():
            return mlflow.pyfunc.load_model(str(folder))
    except Exception as err:
        refuse_model(_NETWORK, f"could not be loaded ({type(err).__name__})", err)


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps what TensorFlow writes to the file descriptor of stderr at its import to itself."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        before = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


def check_model_folder(folder: Path, vouched_scoring: str | None = None) -> ModelSpec:
    """Returns what the model is, having found in `folder` only what Podium writes.

    Imports and loads nothing from the folder. Besides the files of format 1 there may be
    `registered_model_meta` (MLflow writes it when it downloads a version) and `RELEASE_FILES`,
    which only the check of a release judges.

    Args:
        vouched_scoring: SHA-256 of a scoring runtime that a verified signature vouches for, so that
            a release still loads where its runtime is not known; not if it is revoked.

    Raises:
        StructureError: One sentence: the file, and what is wrong with it.
    """
    code = check_files(folder)
    _check_code(code, vouched_scoring)
    spec, model_uuid = _check_mlmodel(folder, code.name)
    meta = folder / "registered_model_meta"
    if meta.exists():
        values = _read_yaml(meta)
        if not isinstance(values, dict) or set(values) != {"model_name", "model_version"}:
            refuse_model(meta.name, "holds something else than model_name and model_version")
        if not all(isinstance(value, (str, int)) for value in values.values()):
            refuse_model(meta.name, "holds something else than a name and a version")
    network = check_network(folder / _NETWORK, _NETWORK)
    _check_fit(network, spec)
    # Last, so that what could do harm is named for what it is.
    if model_uuid != _model_uuid(folder / _NETWORK, spec):
        refuse_model(_NETWORK, "is not the network that MLmodel was written for: it was changed")
    return spec


# The folder.


def check_files(folder: Path) -> Path:
    """Exactly our files, none of them a link; returns the folder of the scoring runtime.

    Raises:
        StructureError: another file, a link, or one that is missing.
    """
    expected = {"MLmodel", "python_env.yaml", "requirements.txt"}
    optional = {"registered_model_meta", *RELEASE_FILES}
    if not folder.is_dir():
        refuse_model(str(folder), "is not a folder")
    files = _entries(folder, "", {"data", "code"})
    for name in sorted(files - expected - optional):
        refuse_model(repr(name[:80]), "is not a file of a Podium model")
    for name in sorted(expected - files):
        refuse_model(name, "is missing")
    if _entries(folder / "data", "data/", set()) != {"model.keras"}:
        refuse_model("data", "holds something else than model.keras")
    return _find_code(folder / "code")


def _find_code(code: Path) -> Path:
    """Returns the one folder in `code`, which holds files with a runtime's names and no more."""
    loaders = {path.name for path in code.iterdir() if re.fullmatch(LOADER, path.name)}
    if _entries(code, "code/", loaders) or len(loaders) != 1:
        refuse_model("code", "holds something else than one folder podium_scoring_<hash>")
    place = code / loaders.pop()
    names = _entries(place, f"code/{place.name}/", set())
    for name in sorted(names):
        if not re.fullmatch(FILE, name):
            refuse_model(
                repr(f"code/{place.name}/{name[:80]}"), "is not a file of a scoring runtime"
            )
    if len(names) > MOST_FILES:
        refuse_model(f"code/{place.name}", f"holds more than {MOST_FILES} files")
    return place


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
                refuse_model(repr(f"{prefix}{entry.name[:80]}"), "is a link or an unknown folder")
    for name in sorted(folders - seen):
        refuse_model(name, "is missing")
    return files


def _read(path: Path) -> str:
    name = path.name
    with path.open("rb") as file:
        content = file.read(_MAX_TEXT + 1)
    if len(content) > _MAX_TEXT:
        refuse_model(name, f"is larger than {_MAX_TEXT} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as err:
        refuse_model(name, "is not UTF-8 text", err)


def _read_yaml(path: Path) -> Any:
    import yaml

    text = _read(path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # A few lines of aliases to aliases are gigabytes to whoever walks them.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            refuse_model(path.name, "holds YAML aliases")
        return yaml.load(text, Loader=loader)  # a safe loader, in C
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        refuse_model(path.name, "is not plain YAML", err)


def _check_code(code: Path, vouched: str | None) -> None:
    digest = hash_code({path.name: _read(path).encode() for path in code.iterdir()})
    if loader_of(digest) != code.name:
        refuse_model(f"code/{code.name}", "is not named after its content: it was changed")
    fault = find_fault(digest, vouched)
    if fault is not None:
        refuse_model(f"code/{code.name}", fault)


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
                "config": dict(_MODEL_CONFIG),
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


def _before_settings(mlmodel: dict[str, Any]) -> dict[str, Any]:
    """Returns the MLmodel of before there were `config` and `explain`; such releases are signed."""
    flavor = dict(mlmodel["flavors"]["python_function"])
    del flavor["config"]
    signature = {**_SIGNATURE, "params": f"[{_PARAM % 'labels'}]"}
    return {**mlmodel, "flavors": {"python_function": flavor}, "signature": signature}


def _python_env(python: str) -> dict[str, Any]:
    return {"python": python, "dependencies": ["-r requirements.txt"]}


def _check_mlmodel(folder: Path, loader: str) -> tuple[ModelSpec, str]:
    """MLmodel, python_env.yaml and requirements.txt are exactly what Podium would write.

    Returns the specification and the model_uuid.
    """
    lines = _read(folder / "requirements.txt").splitlines()
    pins = dict(zip(PACKAGES, lines, strict=False))
    if len(lines) != len(PACKAGES) or not all(
        re.fullmatch(f"{name}=={_VERSION}", line) for name, line in pins.items()
    ):
        refuse_model(
            "requirements.txt", f"holds something else than exact pins of {', '.join(PACKAGES)}"
        )
    found = _read_yaml(folder / "MLmodel")
    try:
        value = found["metadata"]["podium"]
        python = found["flavors"]["python_function"]["python_version"]
        model_uuid = found["model_uuid"]
    except (KeyError, TypeError) as err:
        refuse_model(
            "MLmodel", "lacks its flavor python_function, its model_uuid or its metadata", err
        )
    if not isinstance(python, str) or not re.fullmatch(_VERSION, python):
        refuse_model("MLmodel", "names no version of Python")
    if not isinstance(model_uuid, str) or not re.fullmatch("[0-9a-f]{32}", model_uuid):
        refuse_model("MLmodel", "holds a model_uuid that is none")
    spec = ModelSpec.from_json(value)
    expected = _mlmodel(spec, loader, python, pins["mlflow"].split("==")[1], model_uuid)
    if found not in (expected, _before_settings(expected)):
        refuse_model(
            "MLmodel",
            f"has something in {_first_difference(found, expected)} that Podium never writes",
        )
    if _read_yaml(folder / "python_env.yaml") != _python_env(python):
        refuse_model("python_env.yaml", "differs from what Podium writes")
    return spec, model_uuid


def _first_difference(found: Any, expected: Any, path: str = "") -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted({*found, *expected}, key=str):
            if key not in found or key not in expected or found[key] != expected[key]:
                name = f"{path}.{str(key)[:40]}".lstrip(".")
                return _first_difference(found.get(key), expected.get(key), name)
    return path or "its top"


def _check_fit(network: Network, spec: ModelSpec) -> None:
    """The network takes what the spec says and gives what the task needs."""
    shape = spec.input.shape
    if len(network.inputs) != 1 or network.inputs[0].shape != shape:
        got = [tensor.shape for tensor in network.inputs]
        refuse_model(_NETWORK, f"takes {got}, but MLmodel says one input of {shape}")
    if network.inputs[0].dtype not in (spec.input.dtype, "float32"):
        refuse_model(
            _NETWORK, f"takes {network.inputs[0].dtype}, but MLmodel says {spec.input.dtype}"
        )
    outputs = [tensor.shape for tensor in network.outputs]
    if spec.task == "classifier":
        if outputs != [(len(spec.class_names),)] or not network.outputs[0].is_softmax:
            n = len(spec.class_names)
            refuse_model(_NETWORK, f"gives {outputs}, but MLmodel says a softmax over {n} classes")
    elif len(outputs) != 4 or outputs[0] != outputs[1] or outputs[2] != outputs[3]:
        refuse_model(
            _NETWORK, f"gives {outputs}; a VAE gives x, its reconstruction, z_mean, z_log_var"
        )
    elif len(outputs[2]) != 1:
        refuse_model(_NETWORK, f"gives a latent of shape {outputs[2]}; a VAE's is flat")
