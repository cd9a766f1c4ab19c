from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops.errors import StructureError
from mlops.inputs import Column
from mlops.packaging import (
    ModelSpec,
    build_model_folder,
    check_model_folder,
    load_model,
    save_network,
)
from mlops.scoring_code import read_own
from tests.packaged_models import KINDS, Packaged, build, name_code, network_of, spec_of


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Packaged]:
    root = tmp_path_factory.mktemp("packaged")
    return {kind: build(root, kind) for kind in KINDS}


@pytest.fixture
def folder(packaged: dict[str, Packaged], tmp_path: Path) -> Path:
    """A good folder of the image model, to tamper with."""
    shutil.copytree(packaged["image_uint8"].folder, tmp_path / "model")
    return tmp_path / "model"


def members_of(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(folder / "data" / "model.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(folder: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / "data" / "model.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    members = members_of(folder)
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    write_members(folder, members)


def change_weights(folder: Path, change: Callable[[h5py.File], Any]) -> None:
    members = members_of(folder)
    content = io.BytesIO(members["model.weights.h5"])
    with h5py.File(content, "r+") as weights:
        change(weights)
    members["model.weights.h5"] = content.getvalue()
    write_members(folder, members)


def change_mlmodel(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    mlmodel = folder / "MLmodel"
    values = yaml.safe_load(mlmodel.read_text())
    change(values)
    mlmodel.write_text(yaml.safe_dump(values))


def layer(config: dict[str, Any], class_name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        item for item in config["config"]["layers"] if item["class_name"] == class_name
    )
    return found


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def resized(name: str, shape: tuple[int, ...]) -> Callable[[h5py.File], None]:
    def change(weights: h5py.File) -> None:
        del weights[name]
        weights[name] = np.zeros(shape, np.float32)

    return change


def replaced_dataset(make: Callable[[h5py.Group], None]) -> Callable[[h5py.File], None]:
    def change(weights: h5py.File) -> None:
        del weights["layers/dense/vars/0"]
        make(weights["layers/dense/vars"])

    return change


KERNEL = "layers/dense/vars/0"  # (16, 3)
FLAVOR = ("flavors", "python_function")


def set_in(*path: Any) -> Callable[[dict[str, Any]], None]:
    """A change that sets the value at a path: keys..., value."""
    *keys, last, value = path

    def change(values: dict[str, Any]) -> None:
        for key in keys:
            values = values[key]
        values[last] = value

    return change


def set_layer(class_name: str, *path: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(
        folder, lambda config: set_in(*path)(layer(config, class_name))
    )


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(change(path.read_text()))

    return apply


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def flip(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def code_of(folder: Path) -> Path:
    """The folder of the scoring runtime."""
    (code,) = (folder / "code").iterdir()
    return code


def in_code(name: str, content: str | bytes = "x = 1\n") -> Callable[[Path], None]:
    """A change that writes a file beside those of the scoring runtime."""
    return lambda folder: write(f"code/{code_of(folder).name}/{name}", content)(folder)


def change_code_byte(folder: Path) -> None:
    code = code_of(folder) / "model.py"
    code.write_text(code.read_text() + "\n")


def renamed_after(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Changes the code, and calls it after its content again."""

    def apply(folder: Path) -> None:
        change(folder)
        name_code(folder)

    return apply


def remove_code(name: str) -> Callable[[Path], None]:
    return lambda folder: (code_of(folder) / name).unlink()


def rename_code(folder: Path) -> None:
    (code_of(folder) / "scores.py").rename(code_of(folder) / "marks.py")


def exchange_code(folder: Path) -> None:
    """The same contents and the same names, but not together."""
    one, other = code_of(folder) / "scores.py", code_of(folder) / "ragged.py"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def link_code_file(folder: Path) -> None:
    file = code_of(folder) / "model.py"
    file.rename(folder.parent / "model.py")
    file.symlink_to(folder.parent / "model.py")


def link_code(folder: Path) -> None:
    code = code_of(folder)
    code.rename(folder.parent / code.name)
    code.symlink_to(folder.parent / code.name, target_is_directory=True)


def replace_code_by_file(folder: Path) -> None:
    code = code_of(folder)
    content = (code / "__init__.py").read_bytes()
    shutil.rmtree(code)
    code.with_name(f"{code.name}.py").write_bytes(content)


def crowd_code(folder: Path) -> None:
    for number in range(64):
        in_code(f"m{'a' * number}.py")(folder)


def link_network(folder: Path) -> None:
    network = folder / "data" / "model.keras"
    network.rename(folder.parent / "elsewhere.keras")
    network.symlink_to(folder.parent / "elsewhere.keras")


def rename_member(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_members(folder, {new if n == old else n: c for n, c in members_of(folder).items()})

    return change


def add_member(name: str) -> Callable[[Path], None]:
    return lambda folder: write_members(folder, {**members_of(folder), name: b"x"})


def weights(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, change)


def mlmodel(*path: Any) -> Callable[[Path], None]:
    return lambda folder: change_mlmodel(folder, set_in(*path))


def become(class_name: str, new: dict[str, Any]) -> Callable[[Path], None]:
    return lambda folder: change_config(
        folder, lambda config: layer(config, class_name).update(new)
    )


OS_SYSTEM = {"module": "os", "class_name": "system", "config": "true", "registered_name": None}
LAMBDA = {
    "class_name": "__lambda__",
    "config": {"value": "4wEAAAA=", "defaults": None, "closure": None},
}
TFSM = {
    "module": "keras.layers",
    "class_name": "TFSMLayer",
    "config": {"filepath": "/somewhere", "name": "x"},
    "registered_name": None,
}
SPEC = ("metadata", "podium")

TAMPERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    # The folder.
    "extra file": (write("notes.txt", "x"), "'notes.txt' is not a file"),
    "pickle": (write("python_model.pkl", b"\x80\x04."), "'python_model.pkl' is not a file"),
    "conda.yaml": (write("conda.yaml", "name: x"), "'conda.yaml' is not a file"),
    "extra code": (write("code/keras.py", "x = 1"), "code holds something else"),
    "bytecode": (write("code/__pycache__/x.pyc", b"x"), "'code/__pycache__' is a link or an"),
    "extra folder": (write("more/x", "x"), "'more' is a link or an unknown folder"),
    "extra data": (write("data/x", "x"), "data holds something else"),
    "missing file": (lambda f: (f / "requirements.txt").unlink(), "requirements.txt is missing"),
    "symlink": (link_network, "'data/model.keras' is a link"),
    "changed code": (change_code_byte, "is not named after its content"),
    "unknown code": (renamed_after(change_code_byte), "is not a scoring runtime this Podium knows"),
    "extra module": (in_code("evil.py"), "is not named after its content"),
    "extra module, renamed": (
        renamed_after(in_code("evil.py")),
        "is not a scoring runtime this Podium knows",
    ),
    "module gone": (remove_code("scores.py"), "is not named after its content"),
    "module gone, renamed": (
        renamed_after(remove_code("scores.py")),
        "is not a scoring runtime this Podium knows",
    ),
    "no package": (remove_code("__init__.py"), "is not named after its content"),
    "module renamed": (rename_code, "is not named after its content"),
    "modules exchanged": (exchange_code, "is not named after its content"),
    "runtime's bytecode": (
        in_code("__pycache__/model.cpython-311.pyc", b"x"),
        "__pycache__' is a link or an unknown folder",
    ),
    "bytecode beside": (in_code("__init__.pyc", b"x"), "is not a file of a scoring runtime"),
    "extension module": (
        in_code("model.cpython-311-x86_64-linux-gnu.so", b"x"),
        "is not a file of a scoring runtime",
    ),
    "stable extension": (in_code("model.abi3.so", b"x"), "is not a file of a scoring runtime"),
    "subpackage": (in_code("model/__init__.py"), "/model' is a link or an unknown folder"),
    "hidden module": (in_code(".model.py"), "is not a file of a scoring runtime"),
    "module of other letters": (in_code("modél.py"), "is not a file of a scoring runtime"),
    "module in capitals": (in_code("Evil.py"), "is not a file of a scoring runtime"),
    "module with a line end": (in_code("model.py\n"), "is not a file of a scoring runtime"),
    "too many modules": (crowd_code, "holds more than 64 files"),
    "large module": (in_code("model.py", b" " * (5 << 20)), "model.py is larger than"),
    "module that is no text": (in_code("model.py", b"\xff\xfe"), "model.py is not UTF-8"),
    "linked module": (link_code_file, "/model.py' is a link"),
    "linked code": (link_code, "is a link or an unknown folder"),
    "second runtime": (
        write("code/podium_scoring_000000000000/__init__.py", "x = 1"),
        "code holds something else",
    ),
    "module beside the runtime": (
        lambda f: write(f"code/{code_of(f).name}.py", "x = 1")(f),
        "code holds something else",
    ),
    "code in one file": (replace_code_by_file, "code holds something else"),
    "file for a folder": (
        lambda f: (shutil.rmtree(code_of(f)), write("code/podium_scoring_000000000000", "x")(f)),
        "podium_scoring_000000000000 is missing",
    ),
    "no code": (lambda f: shutil.rmtree(code_of(f)), "code holds something else"),
    "bad meta": (
        write("registered_model_meta", "model_name: x\nrun: y\n"),
        "registered_model_meta",
    ),
    # MLmodel and the environment.
    "loader": (mlmodel(*FLAVOR, "loader_module", "os"), "loader_module"),
    "code path": (mlmodel(*FLAVOR, "code", "."), "flavors.python_function.code"),
    "data path": (mlmodel(*FLAVOR, "data", "../x"), "flavors.python_function.data"),
    "config": (mlmodel(*FLAVOR, "config", {"a": 1}), "flavors.python_function.config"),
    "model_config": (mlmodel(*FLAVOR, "model_config", {}), "python_function.model_config"),
    "flavor": (mlmodel("flavors", "keras", {"data": "data"}), "flavors.keras"),
    "env": (mlmodel(*FLAVOR, "env", {"conda": "c"}), "python_function.env"),
    "signature": (mlmodel("signature", "inputs", "[]"), "signature.inputs"),
    "type hints": (mlmodel("is_signature_from_type_hint", True), "is_signature_from_type_hint"),
    "resources": (mlmodel("resources", {}), "resources"),
    "metadata": (mlmodel("metadata", "mlflow.externalModel", True), "metadata.mlflow.external"),
    "uuid": (mlmodel("model_uuid", "../x"), "model_uuid"),
    "python": (mlmodel(*FLAVOR, "python_version", "3; x"), "version of Python"),
    "format": (mlmodel(*SPEC, "format", 2), "expected 1"),
    "task": (mlmodel(*SPEC, "task", "other"), "do not fit"),
    "one class fewer": (mlmodel(*SPEC, "class_names", ["a", "b"]), "softmax over 2 classes"),
    "another shape": (mlmodel(*SPEC, "input", "shape", [8, 8, 3]), "says one input of (8, 8, 3)"),
    "another dtype": (mlmodel(*SPEC, "input", "dtype", "float32"), "takes uint8"),
    "spec key": (mlmodel(*SPEC, "more", 1), "do not fit"),
    "spec missing": (lambda f: change_mlmodel(f, lambda v: v["metadata"].clear()), "lacks"),
    "yaml tag": (
        edit("MLmodel", lambda text: text + "x: !!python/object/apply:os.system ['true']\n"),
        "MLmodel is not plain YAML",
    ),
    "yaml aliases": (edit("MLmodel", lambda text: text + "x: &a [1]\ny: *a\n"), "aliases"),
    "oversized": (edit("MLmodel", lambda t: t + "# " + "x" * (4 << 20)), "MLmodel is larger than"),
    "deep": (write("MLmodel", "[" * 5000), "MLmodel is not plain YAML"),
    "binary": (write("MLmodel", b"\xff\xfe"), "MLmodel is not UTF-8"),
    "requirement URL": (
        edit("requirements.txt", lambda t: t.replace("keras==", "keras @ http://x/", 1)),
        "requirements.txt",
    ),
    "requirement option": (edit("requirements.txt", lambda t: "--pre\n" + t), "requirements.txt"),
    "requirement more": (edit("requirements.txt", lambda t: t + "x==1\n"), "requirements.txt"),
    "requirement open": (edit("requirements.txt", lambda t: t.replace("==", ">=")), "exact pins"),
    "python_env": (
        edit("python_env.yaml", lambda t: t + "build_dependencies: [x]\n"),
        "python_env",
    ),
    # The archive.
    "not a zip": (write("data/model.keras", "x"), "is not a .keras archive"),
    "zip traversal": (rename_member("metadata.json", "../metadata.json"), "holds other members"),
    "zip absolute": (rename_member("config.json", "/config.json"), "holds other members"),
    "zip extra": (add_member("assets/x"), "holds other members"),
    "metadata.json": (
        lambda f: write_members(f, {**members_of(f), "metadata.json": b'{"a": 1}'}),
        "metadata.json",
    ),
    "config not JSON": (
        lambda f: write_members(f, {**members_of(f), "config.json": b"[" * 100_000}),
        "config.json is not plain JSON",
    ),
    "huge config": (
        lambda f: write_members(f, {**members_of(f), "config.json": b" " * (17 << 20)}),
        "config.json larger than",
    ),
    "truncated": (
        lambda f: cut(f / "data" / "model.keras", 0.7),
        "is not a .keras archive",
    ),
    "bit flipped": (lambda f: flip(f / "data" / "model.keras"), "model.keras"),
    "swapped weights": (
        weights(lambda w: set_in(..., 0.25)(w[KERNEL])),
        "is not the network that MLmodel was written for",
    ),
    # The weights.
    "weights of another shape": (weights(resized(KERNEL, (16, 4))), "shape (16, 3)"),
    "weights missing": (weights(lambda w: w.__delitem__(KERNEL)), "on one side only"),
    "weights more": (weights(lambda w: w.create_dataset("more", data=[1.0])), "on one side only"),
    "external link": (
        weights(replaced_dataset(lambda g: set_in("0", h5py.ExternalLink("x.h5", "/a"))(g))),
        "behind a link",
    ),
    "soft link": (
        weights(replaced_dataset(lambda g: set_in("0", h5py.SoftLink("/layers"))(g))),
        "behind a link",
    ),
    "cycle": (weights(lambda w: set_in("x", w["layers"])(w["layers/dense"])), "under two names"),
    "objects": (
        weights(replaced_dataset(lambda g: g.create_dataset("0", data=["a"]))),
        "not plain numbers",
    ),
    "external storage": (
        weights(
            replaced_dataset(
                lambda g: g.create_dataset("0", (16, 3), "f4", external=[("x.raw", 0, 192)])
            )
        ),
        "not plain numbers",
    ),
    "claimed only": (
        weights(replaced_dataset(lambda g: g.create_dataset("0", (1 << 20, 1 << 20), "f4"))),
        "not all there",
    ),
    "compressed": (
        weights(
            replaced_dataset(lambda g: g.create_dataset("0", (16, 3), "f4", compression="gzip"))
        ),
        "not plain numbers",
    ),
    "weights damaged": (
        lambda f: write_members(f, {**members_of(f), "model.weights.h5": b"x"}),
        "damaged weights",
    ),
    # The configuration.
    "Lambda": (become("Dense", {"class_name": "Lambda"}), "keras.layers.Lambda"),
    "TFSMLayer": (
        become("Flatten", {"class_name": "TFSMLayer"}),
        "TFSM",
    ),
    "foreign module": (become("Dense", {"module": "os", "class_name": "system"}), "os.system"),
    "custom layer": (become("Dense", {"registered_name": "custom>Dense"}), "registered by someone"),
    "custom root": (
        lambda f: change_config(f, set_in("registered_name", "custom>M")),
        "registered by someone",
    ),
    "other root": (lambda f: change_config(f, set_in("class_name", "Model")), "not a Functional"),
    "units": (set_layer("Dense", "config", "units", 10**9), "over 2147483648 bytes"),
    "small units": (set_layer("Dense", "config", "units", 4), "softmax"),
    "padding": (
        set_layer("Rescaling", "class_name", "UpSampling2D"),
        "does not fit its input",
    ),
    "negative": (set_layer("Dense", "config", "units", -1), "does not fit its input"),
    "text units": (set_layer("Dense", "config", "units", "3"), "is a word"),
    "filters": (set_layer("Conv2D", "config", "filters", 10**9), "over 2147483648 bytes"),
    "build_config": (
        set_layer("Dense", "build_config", "input_shape", [None, 10**9]),
        "is built for another shape",
    ),
    "layer in a layer": (set_layer("Dense", "config", "layer", TFSM), "stock Keras layer"),
    "lora": (set_layer("Dense", "config", "lora_rank", 10**6), "lora_rank"),
    "activation": (set_layer("Dense", "config", "activation", "evil"), "activation"),
    "activation object": (set_layer("Dense", "config", "activation", OS_SYSTEM), "activation"),
    "lambda activation": (set_layer("Dense", "config", "activation", LAMBDA), "does not write"),
    "initializer": (set_layer("Dense", "config", "kernel_initializer", TFSM), "stock Keras init"),
    "regularizer": (set_layer("Conv2D", "config", "kernel_regularizer", OS_SYSTEM), "stock Keras"),
    "dtype": (
        set_layer("Dense", "config", "dtype", "class_name", "QuantizedDTypePolicy"),
        "stock Keras dtype",
    ),
    "shared layer": (set_layer("Dense", "shared_object_id", 7), "shared between models"),
    "shared identity": (
        set_layer("MaxPooling2D", "config", "dtype", "config", "name", "float16"),
        "says to be an object that it is not",
    ),
    "compiled loss": (
        lambda f: change_config(f, set_in("compile_config", {"loss": OS_SYSTEM})),
        "is compiled",
    ),
    "call argument": (
        set_layer("Dense", "inbound_nodes", 0, "kwargs", {"x": OS_SYSTEM}),
        "argument that Podium does not know",
    ),
    "call on an object": (
        set_layer("Dense", "inbound_nodes", 0, "args", [OS_SYSTEM]),
        "something else than another layer",
    ),
    "call shape": (
        set_layer("Dense", "inbound_nodes", 0, "args", 0, "config", "shape", [None, 99]),
        "shape that its input does not have",
    ),
    "layer name": (set_layer("Dense", "name", "../x"), "name of other characters"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_folder_is_refused_with_its_reason(folder: Path, name: str) -> None:
    tamper, reason = TAMPERED[name]
    check_model_folder(folder)
    tamper(folder)
    with pytest.raises(StructureError, match=re.escape(reason)):
        check_model_folder(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_folder_gives_its_spec(packaged: dict[str, Packaged], kind: str) -> None:
    assert check_model_folder(packaged[kind].folder) == spec_of(kind)


INPUT = (*SPEC, "input")
COLOUR = (*INPUT, "columns", 2)  # a column of categories
TAMPERED_TABLE: dict[str, Callable[[Path], Any]] = {
    "no name": mlmodel(*COLOUR, "name", ""),
    "a long name": mlmodel(*COLOUR, "name", "x" * 4097),
    "a name twice": mlmodel(*COLOUR, "name", "age"),
    "a long category": mlmodel(*COLOUR, "categories", 2, "x" * 4097),
    "a category more": mlmodel(*COLOUR, "categories", ["blue", "green", "red", "white"]),
    "unsorted categories": mlmodel(*COLOUR, "categories", ["green", "blue", "red"]),
    "categories that are no text": mlmodel(*COLOUR, "categories", [1, 2, 3]),
    "another word": mlmodel(*COLOUR, "missing", "ignored"),
    "a fill that is none": mlmodel(*COLOUR, "fill", 1.0),
    "no fill": mlmodel(*INPUT, "columns", 1, "fill", None),
    "a key more": mlmodel(*COLOUR, "module", "os"),
    "columns that are none": mlmodel(*INPUT, "columns", "weight"),
    "a ragged table": mlmodel(*INPUT, "ragged", True),
    "a flipped table": mlmodel(*INPUT, "flips", ["horizontal"]),
}


@pytest.mark.parametrize("name", TAMPERED_TABLE)
def test_columns_that_do_not_fit_are_refused(
    packaged: dict[str, Packaged], tmp_path: Path, name: str
) -> None:
    shutil.copytree(packaged["mixed"].folder, tmp_path / "model")
    TAMPERED_TABLE[name](tmp_path / "model")
    with pytest.raises(StructureError, match=r"MLmodel holds (a|no) model spec"):
        check_model_folder(tmp_path / "model")


def test_many_columns_and_odd_names_are_let_through(tmp_path: Path) -> None:
    import keras

    odd = (" a: b", "#", "1.0", "yes", "NULL", "*a", "a\nb", "\x07", "\u2028\U0001f600", "x" * 4096)
    columns = (
        Column("odd", tuple(sorted(odd)), "flagged"),
        *(Column(name) for name in odd),
        *(Column(f"feature {i}") for i in range(9_979)),
    )
    many = (0.1,) * 10_000
    table = replace(
        spec_of("table").input, columns=columns, shape=(10_000,), mean=many, variance=many
    )
    spec = replace(spec_of("table"), input=table)
    x = keras.Input((10_000,))
    network = keras.Model(x, keras.layers.Dense(3, activation="softmax")(x))
    save_network(network, tmp_path / "x.keras")
    build_model_folder(tmp_path / "x.keras", spec, tmp_path / "model")
    assert check_model_folder(tmp_path / "model") == spec


def test_what_mlflow_and_a_release_add_is_let_stand(folder: Path) -> None:
    (folder / "registered_model_meta").write_text("model_name: digits\nmodel_version: '3'\n")
    (folder / "release.json").write_text("{}")
    (folder / "model.sig").write_text("{}")
    assert check_model_folder(folder) == spec_of("image_uint8")


def test_the_check_and_the_build_import_no_keras_and_no_mlflow(
    packaged: dict[str, Packaged], tmp_path: Path
) -> None:
    source = packaged["table"].folder
    code = (
        "import sys; from pathlib import Path\n"
        "from mlops.packaging import *\n"
        f"spec = check_model_folder(Path({str(source)!r}))\n"
        f"out = Path({str(tmp_path / 'again')!r})\n"
        f"build_model_folder(Path({str(source / 'data' / 'model.keras')!r}), spec, out)\n"
        "print(sorted({'keras', 'tensorflow', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    names = [path for path in source.rglob("*") if path.is_file()]
    assert len(names) == 4 + len(read_own())
    for path in names:  # the same network and spec give the same bytes
        assert (tmp_path / "again" / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_mlflow_reads_the_folder_as_its_own(packaged: dict[str, Packaged]) -> None:
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    model = Model.load(str(packaged["table"].folder))
    params = [ParamSpec(name, DataType.boolean, False) for name in ("labels", "explain")]
    assert model.signature == ModelSignature(params=ParamSchema(params))
    assert list(model.flavors) == ["python_function"]
    assert model.metadata == {"podium": spec_of("table").to_json()}


def test_a_model_of_before_explanations_still_loads(
    packaged: dict[str, Packaged], tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(packaged["table"].folder, folder)
    mlmodel = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
    assert mlmodel["flavors"]["python_function"].pop("config")["max_batch"] == 64
    params = '[{"name": "labels", "default": false, "shape": null, "type": "boolean"}]'
    mlmodel["signature"]["params"] = params
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel), "utf-8")
    model = load_model(folder)
    rows = packaged["table"].rows
    assert len(model.predict(rows, params={"labels": True})) == len(rows)
    mlmodel["signature"]["params"] = params.replace("labels", "label")
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel), "utf-8")
    with pytest.raises(StructureError, match="has something in"):
        check_model_folder(folder)


def test_a_spec_survives_its_json() -> None:
    for kind in KINDS:
        spec = spec_of(kind)
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(StructureError, match="holds no model specification"):
        ModelSpec.from_json([])


def test_save_network_refuses_what_could_not_be_loaded_and_names_the_layer(tmp_path: Path) -> None:
    import keras

    x = keras.Input((3,))
    y = keras.layers.Lambda(lambda t: t, name="mine")(x)
    with pytest.raises(StructureError, match=r"layer 'mine' is a keras\.layers\.Lambda"):
        save_network(keras.Model(x, y), tmp_path / "a.keras")
    compiled = network_of("table")
    compiled.compile("adam", "mse")
    with pytest.raises(StructureError, match="is compiled"):
        save_network(compiled, tmp_path / "a.keras")
    assert list(tmp_path.iterdir()) == []


def test_build_refuses_a_name_that_is_taken_and_leaves_nothing_behind(
    packaged: dict[str, Packaged], tmp_path: Path
) -> None:
    network = packaged["table"].folder / "data" / "model.keras"
    with pytest.raises(StructureError, match="exists"):
        build_model_folder(network, spec_of("table"), packaged["table"].folder)
    with pytest.raises(StructureError, match="says one input of"):
        build_model_folder(network, spec_of("sequence"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_every_allowed_layer_saves_and_passes(tmp_path: Path) -> None:
    """The shapes that the check derives are those that Keras stores, for each layer."""
    import keras

    L = keras.layers

    def image(x: Any) -> Any:
        y = L.Rescaling([0.1, 0.2, 0.3])(x)
        for make in (
            L.RandomFlip(), L.RandomRotation(0.1), L.RandomTranslation(0.1, 0.1),
            L.RandomZoom(0.1), L.RandomContrast(0.1),
            L.Conv2D(6, 3, padding="same", groups=3, kernel_regularizer="l2"),
            L.BatchNormalization(scale=False), L.MaxPooling2D(2, padding="same"),
            L.Conv2D(4, 3, strides=2), L.Conv2DTranspose(3, 4, strides=2, padding="same"),
            L.Conv2DTranspose(3, 2, strides=3), L.SeparableConv2D(5, 3, depth_multiplier=2),
            L.DepthwiseConv2D(2, use_bias=False), L.ZeroPadding2D(((1, 2), (3, 4))),
            L.Cropping2D(1), L.UpSampling2D(2), L.SpatialDropout2D(0.1), L.AveragePooling2D(2),
            L.Conv2D(4, 3, dilation_rate=2, kernel_initializer="he_normal"),
        ):  # fmt: skip
            y = make(y)
        y = L.Multiply()([y, L.GlobalMaxPooling2D(keepdims=True)(y)])
        y = L.Concatenate()([L.GlobalAveragePooling2D()(y), L.Dense(3)(L.Flatten()(y))])
        return L.LeakyReLU()(L.ReLU()(L.LayerNormalization(center=False)(y)))

    def sequence(x: Any) -> Any:
        y = L.Masking()(x)
        y = L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="sum")(y)
        y = L.GRU(3, reset_after=False, return_sequences=True, dropout=0.1)(y)
        y = L.Bidirectional(L.LSTM(3, return_sequences=True, use_bias=False))(y)
        y = L.Add()([y, L.MultiHeadAttention(2, 3, value_dim=4)(y, y)])
        y = L.Attention(use_scale=True, score_mode="concat")([y, y])
        return L.SimpleRNN(4)(y)

    def windows(x: Any) -> Any:
        y = L.Conv1D(4, 3, padding="causal", dilation_rate=2)(x)
        y = L.AveragePooling1D(2)(L.MaxPooling1D(2)(L.SpatialDropout1D(0.1)(y)))
        y = L.Reshape((-1, 2))(L.Permute((2, 1))(y))
        return L.GlobalMaxPooling1D()(L.Activation("gelu")(y))

    def nested(x: Any) -> Any:
        inner = keras.Input((4,))
        twice = keras.Model(inner, L.Dense(4)(L.Normalization()(inner)))
        return twice(twice(L.Dense(4)(x)))

    for make, shape in (
        (image, (19, 17, 3)),
        (sequence, (6, 4)),
        (windows, (12, 4)),
        (nested, (3,)),
    ):
        x = keras.Input(shape)
        model = keras.Model(x, L.Dense(3, activation="softmax")(make(x)))
        save_network(model, tmp_path / f"{make.__name__}.keras")
    x = keras.Input((5,), dtype="int32")
    model = keras.Model(x, L.GRU(3)(L.Embedding(9, 4, mask_zero=True)(x)))
    save_network(model, tmp_path / "embedding.keras")


def objects_in(value: Any) -> list[dict[str, Any]]:
    found = []
    if isinstance(value, dict):
        found += [value] if "class_name" in value else []
        found += [item for inner in value.values() for item in objects_in(inner)]
    elif isinstance(value, list):
        found += [item for inner in value for item in objects_in(inner)]
    return found


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_object_of_an_unknown_class_passes_anywhere(
    packaged: dict[str, Packaged], tmp_path: Path, data: st.DataObject
) -> None:
    original = packaged["sequence"].folder
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)

    def change(config: dict[str, Any]) -> None:
        victim = data.draw(st.sampled_from(objects_in(config)))
        key = data.draw(st.sampled_from(["class_name", "module", "registered_name"]))
        value = data.draw(
            st.sampled_from(["os", "system", "Lambda", "__lambda__", "x>y"]) | st.text()
        )
        if value != victim.get(key):
            victim[key] = value
        else:
            victim["config"] = LAMBDA

    change_config(folder, change)
    with pytest.raises(StructureError):
        check_model_folder(folder)
