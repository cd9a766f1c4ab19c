"""Loads a verified release into this process: check, import, warm, golden answers."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mlops.errors import MlopsError, refuse_model
from mlops.packaging import check_files, check_model_folder
from registry.serving.state import Wanted
from registry.serving.worker import Model


def load_release(
    wanted: Wanted,
    config: Mapping[str, Any] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Model:
    """Returns the model of a verified release, warm, having answered its golden requests.

    The scoring runtime is asked itself, as MLflow's loader does: between them MLflow would judge
    `params` by the signature, in words of its own, on each request.

    Args:
        wanted: A folder that was verified; its structure is checked again.
        config: For the scoring runtime; one of an old release that takes none gets none.
        on_batch: Called with the rows of each forward pass.

    Raises:
        MlopsError: it cannot be loaded, or answers otherwise than it did; in one sentence.
    """
    from registry.golden import compare, read_golden

    folder = Path(wanted.folder)
    check_model_folder(folder, wanted.scoring_sha256)
    runtime = _import(check_files(folder))
    golden = read_golden(folder)
    try:
        model: Any = _call(runtime, str(folder / "data"), config or {})
    except Exception as err:
        refuse_model("data/model.keras", f"could not be loaded ({type(err).__name__})", err)
    difference = compare(golden, _answers(model, golden.requests, (config or {}).get("max_rows")))
    if difference is not None:
        raise MlopsError(f"the model answers otherwise than it did: {difference}")
    if on_batch is not None and hasattr(model, "on_batch"):
        model.on_batch = on_batch
    loaded: Model = model
    return loaded


def _call(runtime: Any, data: str, config: Mapping[str, Any]) -> Any:
    takes = inspect.signature(runtime._load_pyfunc).parameters
    if "model_config" in takes and config:
        return runtime._load_pyfunc(data, model_config=dict(config))
    return runtime._load_pyfunc(data)


def _import(code: Path) -> ModuleType:
    """Imports a scoring runtime under its own name, which tells its content, but once."""
    name = code.name
    known = sys.modules.get(name)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(
        name, code / "__init__.py", submodule_search_locations=[str(code)]
    )
    if spec is None or spec.loader is None:
        refuse_model(f"code/{name}", "cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for one in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[one]
        raise
    return module


def _answers(model: Model, requests: list[Any], most: int | None) -> Any:
    """Asks for no more rows at once than a caller may."""
    import numpy as np

    from registry.serving.shadow import as_scores

    step = most or len(requests)
    parts = (requests[start : start + step] for start in range(0, len(requests), step))
    return np.concatenate([as_scores(model.predict(part)) for part in parts])
