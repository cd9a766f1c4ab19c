"""What the `.keras` file of a packaged model may hold: a Functional network of stock Keras layers.

`check_network` decides without Keras and runs nothing of the file. It reads the archive, walks
every dict of the configuration, derives each layer's shapes on the way, and compares the weights
that the layers make with those that are stored. Only what is known passes.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, TypeAlias

from mlops.errors import refuse_model
from mlops.layer_config import WORDS, ConfigCheck
from mlops.layers import RECURRENT, Built, Shape, find_rule

_MAX_WEIGHTS: Final = 2 << 30  # bytes of all weights together
_MAX_ROW: Final = 1 << 26  # elements of one layer's output for one row
_MEMBERS: Final = {  # of the archive; the most bytes of each
    "metadata.json": 1 << 12,
    "config.json": 16 << 20,
    "model.weights.h5": _MAX_WEIGHTS + (64 << 20),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """What flows between layers: the shape of one row, and whether a softmax made it."""

    shape: Shape
    dtype: str = "float32"
    is_softmax: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """What goes into a network and comes out of it."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def check_network(path: Path, file: str) -> Network:
    """Returns what goes into the network and comes out of it, having found only what is known.

    Args:
        path: A `.keras` file, from whomever.
        file: What a message calls it.

    Raises:
        StructureError: The first thing that Podium does not write or know, and where it is.
    """
    with path.open("rb") as stream, _member_files(stream, file) as members:
        metadata = _read_json(members["metadata.json"], f"{file}: metadata.json")
        if not (
            isinstance(metadata, dict)
            and set(metadata) == {"keras_version", "date_saved"}
            and all(isinstance(value, str) and len(value) < 64 for value in metadata.values())
        ):
            refuse_model(file, "has a metadata.json that Keras does not write")
        config = _read_json(members["config.json"], f"{file}: config.json")
        walk = _Walk(file)
        network = walk.network(config)
        stored = _stored_shapes(members["model.weights.h5"], file)
    derived = Counter(walk.weights)
    if stored != derived:
        shape = min((stored - derived) + (derived - stored))
        refuse_model(
            file, f"stores weights that differ from its layers: shape {shape} is on one side only"
        )
    return network


@contextmanager
def _member_files(stream: BinaryIO, file: str) -> Iterator[dict[str, BinaryIO]]:
    """The three members, unpacked into anonymous files of bounded size."""
    try:
        archive = zipfile.ZipFile(stream)
        infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as err:
        refuse_model(file, "is not a .keras archive", err)
    if sorted(info.filename for info in infos) != sorted(_MEMBERS):
        refuse_model(file, f"holds other members than {', '.join(_MEMBERS)}")
    with archive, ExitStack() as stack:
        members: dict[str, BinaryIO] = {}
        for info in infos:
            limit = _MEMBERS[info.filename]
            if info.flag_bits & 1:
                refuse_model(file, f"holds {info.filename} encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                refuse_model(
                    file, f"holds {info.filename} compressed in a way Keras does not write"
                )
            if info.file_size > limit:
                refuse_model(file, f"holds {info.filename} larger than {limit} bytes")
            target = stack.enter_context(tempfile.TemporaryFile())
            try:
                with archive.open(info) as source:
                    shutil.copyfileobj(source, target, 1 << 20)
            except Exception as err:  # zlib.error among them, which has no base of its own
                refuse_model(file, f"holds {info.filename} damaged", err)
            target.seek(0)
            members[info.filename] = target
        yield members


def _read_json(stream: BinaryIO, file: str) -> Any:
    def refuse_constant(word: str) -> NoReturn:
        raise ValueError(word)

    try:
        return json.loads(stream.read().decode("utf-8"), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as err:
        refuse_model(file, "is not plain JSON", err)


def _stored_shapes(stream: BinaryIO, file: str) -> Counter[Shape]:
    """Shapes of all stored weights; every one is plain numbers that lie in this very file."""
    import h5py

    shapes: Counter[Shape] = Counter()
    seen: set[int] = set()
    size_bytes = 0

    def walk(group: Any, depth: int) -> None:
        nonlocal size_bytes
        if depth > 32 or len(seen) > 100_000:
            refuse_model(file, "has weights nested too deep, or too many")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                refuse_model(file, "has weights behind a link to another place")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                refuse_model(file, "has weights stored under two names")
            seen.add(address)
            if isinstance(item, h5py.Group):
                walk(item, depth + 1)
                continue
            if not isinstance(item, h5py.Dataset):
                refuse_model(file, "has something else than numbers among its weights")
            plan = item.id.get_create_plist()
            plain = plan.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
            if not plain or plan.get_external_count() or item.dtype.kind not in "fiu":
                refuse_model(file, "has weights that are not plain numbers in one piece")
            if item.shape is None or item.id.get_storage_size() != item.nbytes:
                refuse_model(file, "has weights that are not all there")
            size_bytes += item.nbytes
            if size_bytes > _MAX_WEIGHTS:
                refuse_model(file, f"has more than {_MAX_WEIGHTS} bytes of weights")
            shapes[tuple(item.shape)] += 1

    try:
        with h5py.File(stream, "r") as weights:
            walk(weights, 0)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as err:
        refuse_model(file, "has damaged weights", err)
    return shapes


_Done: TypeAlias = dict[tuple[str, int], Sequence[Tensor]]
"""What each call of a layer gave, by the layer's name and the number of the call."""


class _Walk:
    """One walk over a network's configuration; `weights` collects the shapes it will allocate."""

    def __init__(self, file: str) -> None:
        self.weights: list[Shape] = []
        self._n_weights = 0
        self._file = file
        self._configs = ConfigCheck(file)

    def _bad(self, where: str, wrong: str, err: BaseException | None = None) -> NoReturn:
        refuse_model(self._file, f"{where} {wrong}", err)

    def network(self, value: Any) -> Network:
        """The whole configuration; raises StructureError for anything not known."""
        try:
            if not isinstance(value, dict) or value.get("class_name") != "Functional":
                self._bad(
                    "is", "not a Functional model; build it with keras.Model(inputs, outputs)"
                )
            return self._functional(value, "its network", 0)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as err:
            self._bad("has", f"a configuration Keras does not write ({type(err).__name__})", err)

    # The graph.

    def _functional(self, value: dict[str, Any], where: str, depth: int) -> Network:
        if depth > 4:
            self._bad(where, "is nested too deep")
        if self._configs.identify(value, where) != ("keras.src.models.functional", "Functional"):
            self._bad(where, "is not a stock Functional model")
        self._no_extras(value, where)
        if value.get("build_config") not in (None, {"input_shape": None}):
            self._bad(where, "has a build_config that Keras does not write")
        config = value["config"]
        if set(config) != {"name", "trainable", "layers", "input_layers", "output_layers"}:
            self._bad(where, "has a configuration that is not a stock Functional model's")
        self._configs.check({"name": config["name"], "trainable": config["trainable"]}, where)
        layers = {self._layer_name(layer): layer for layer in config["layers"]}
        if len(layers) != len(config["layers"]) or len(layers) > 2000:
            self._bad(where, "has layers of one name, or more than 2000")
        done = self._run(layers, where, depth)

        def tensors(refs: Any) -> tuple[Tensor, ...]:
            refs = [refs] if refs and isinstance(refs[0], str) else refs
            # Keras counts a nested model's own making as its node 0.
            return tuple(
                done[name, node - (layers[name]["class_name"] == "Functional")][index]
                for name, node, index in refs
            )

        return Network(tensors(config["input_layers"]), tensors(config["output_layers"]))

    def _no_extras(self, value: dict[str, Any], where: str) -> None:
        if value.get("compile_config"):
            self._bad(
                where, "is compiled; expected a plain one: keras.Model(model.inputs, model.outputs)"
            )
        if value.get("shared_object_id") is not None:
            self._bad(where, "is shared between models; expected each layer in one model")

    def _layer_name(self, layer: Any) -> str:
        name = layer["name"]
        self._configs.check_name(name)
        if not isinstance(layer["config"], dict) or layer["config"].get("name") != name:
            self._bad(f"layer {name!r}", "has two names")
        return str(name)

    def _run(self, layers: dict[str, dict[str, Any]], where: str, depth: int) -> _Done:
        """Calls each layer on the shapes it gets, in whatever order they come to be there."""
        done: _Done = {}
        waiting: list[tuple[str, int, Any]] = []
        for name, layer in layers.items():
            if layer["class_name"] == "InputLayer":
                done[name, 0] = [self._input(layer, f"layer {name!r}")]
            elif not isinstance(layer["inbound_nodes"], list) or not layer["inbound_nodes"]:
                self._bad(f"layer {name!r}", "is called on nothing")
            else:
                waiting += [(name, i, node) for i, node in enumerate(layer["inbound_nodes"])]
        if len(waiting) > 4000:
            self._bad(where, "has more than 4000 calls of layers")
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
                self._bad(where, "has layers that nothing leads to")
            waiting = left
        return done

    def _input(self, layer: dict[str, Any], where: str) -> Tensor:
        if self._configs.identify(layer, where) != ("keras.layers", "InputLayer"):
            self._bad(where, "is not a stock InputLayer")
        config = layer["config"]
        self._configs.check(config, where)
        self._no_extras(layer, where)
        if layer["inbound_nodes"] or layer.get("build_config"):
            self._bad(where, "is an input that something leads to")
        batch, *shape = config["batch_shape"]
        if batch is not None:
            self._bad(where, "fixes the batch size; expected None")
        if not isinstance(config["dtype"], str):
            self._bad(where, "names no dtype")
        return Tensor(self._sized(tuple(shape), where), config["dtype"])

    def _arguments(self, node: Any, done: _Done, where: str) -> list[Tensor] | None:
        """The tensors of one call, or None where one is not there yet."""
        if set(node) != {"args", "kwargs"} or not isinstance(node["kwargs"], dict):
            self._bad(where, "is called in a way Keras does not write")
        found: list[Tensor] = []
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
                self._bad(where, "is called with an argument that Podium does not know")
        for ref in refs:
            if ref is None or isinstance(ref, (int, float)):
                continue  # what a mask is compared with
            tensor = self._tensor(ref, done, where)
            if tensor is None:
                return None
            found.append(tensor)
        return found

    def _tensor(self, ref: Any, done: _Done, where: str) -> Tensor | None:
        if (
            not isinstance(ref, dict)
            or set(ref) != {"class_name", "config"}
            or ref["class_name"] != "__keras_tensor__"
            or set(ref["config"]) != {"shape", "dtype", "keras_history"}
            or ref["config"]["dtype"] not in WORDS
        ):
            self._bad(where, "is called on something else than another layer's output")
        name, node, index = ref["config"]["keras_history"]
        if (name, node) not in done:
            return None
        tensor: Tensor = done[name, node][index]
        if index < 0 or ref["config"]["shape"] != [None, *tensor.shape]:
            self._bad(where, "is called on a shape that its input does not have")
        return tensor

    def _call(
        self, layer: dict[str, Any], inputs: list[Tensor], first: bool, depth: int
    ) -> Sequence[Tensor]:
        name = layer["name"]
        where = f"layer {name!r}"
        shapes = [tensor.shape for tensor in inputs]
        if not inputs:
            self._bad(where, "is called on nothing")
        if layer["class_name"] == "Functional":
            before = len(self.weights), self._n_weights
            network = self._functional(layer, f"model {name!r}", depth + 1)
            if not first:  # walked again for its shapes; the weights are those of the first call
                del self.weights[before[0] :]
                self._n_weights = before[1]
            if [t.shape for t in network.inputs] != shapes:
                self._bad(where, "is called on other shapes than its inputs'")
            return network.outputs
        shape, weights = self._layer(layer, shapes, where)
        if first:
            self._allocate(weights, where)
            self._check_build(layer.get("build_config"), shapes, where)
        config = layer["config"]
        softmax = layer["class_name"] == "Softmax" or config.get("activation") == "softmax"
        return [Tensor(self._sized(shape, where), is_softmax=softmax)]

    def _layer(self, layer: dict[str, Any], inputs: list[Shape], where: str) -> Built:
        """Output shape and weight shapes of one stock layer."""
        module, name = self._configs.identify(layer, where)
        rule = find_rule(module, name) if isinstance(module, str) else None
        if rule is None:
            found = f"{str(module)[:60]}.{str(name)[:60]}"
            self._bad(where, f"is a {found}, which is not an allowed layer")
        config = layer["config"]
        self._no_extras(layer, where)
        if name == "Bidirectional":
            directions = ("layer", "backward_layer")  # walked as the layers they are
            self._configs.check({k: v for k, v in config.items() if k not in directions}, where)
            return self._bidirectional(config, inputs, where)
        self._configs.check(config, where)
        try:
            return rule(config, inputs)
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as err:
            self._bad(where, f"does not fit its input: {type(err).__name__}", err)

    def _bidirectional(self, config: dict[str, Any], inputs: list[Shape], where: str) -> Built:
        weights: list[Shape] = []
        shape: Shape = ()
        for key in ("layer", "backward_layer"):
            inner = config[key]
            if not isinstance(inner, dict) or inner.get("class_name") not in RECURRENT:
                self._bad(f"{where}: {key}", "is not a GRU, LSTM or SimpleRNN")
            if "inbound_nodes" in inner:
                self._bad(f"{where}: {key}", "has calls of its own")
            shape, more = self._layer(inner, inputs, f"{where}: {key}")
            self._check_build(inner.get("build_config"), inputs, f"{where}: {key}")
            weights += more
        if config["merge_mode"] not in ("concat", "sum", "mul", "ave"):
            self._bad(where, "keeps its directions apart; expected a merge_mode")
        factor = 2 if config["merge_mode"] == "concat" else 1
        return (*shape[:-1], factor * shape[-1]), weights

    # Sizes.

    def _sized(self, shape: Shape, where: str) -> Shape:
        if not all(type(size) is int and size > 0 for size in shape) or len(shape) > 6:
            self._bad(where, "has a size that is not a positive whole number")
        if math.prod(shape) > _MAX_ROW:
            self._bad(where, f"makes more than {_MAX_ROW} numbers of one row")
        return shape

    def _allocate(self, weights: list[Shape], where: str) -> None:
        for shape in weights:
            if not all(type(size) is int and size > 0 for size in shape):
                self._bad(where, "has a size that is not a positive whole number")
            self._n_weights += math.prod(shape)
            if 4 * self._n_weights > _MAX_WEIGHTS:
                self._bad(where, f"takes the weights over {_MAX_WEIGHTS} bytes")
        self.weights += weights

    def _check_build(self, build: Any, inputs: list[Shape], where: str) -> None:
        """Keras makes weights of build_config's shapes, before any call: they must be the same."""
        if build is None:
            return
        if not isinstance(build, dict) or not set(build) <= {"input_shape", "shapes_dict"}:
            self._bad(where, "has a build_config that Keras does not write")
        for shape in _shapes_in(list(build.values())):
            if tuple(shape[1:]) not in inputs:
                self._bad(where, "is built for another shape than it is called on")


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
