"""Whether a Kubernetes resource is what a CustomResourceDefinition says, as its server would tell.

As a program it compares examples/clusters/kubernetes with the Dask operator's own, which is not
kept here (284 kB, and its wheel brings twenty packages that nothing else needs):

    pip download --no-deps dask-kubernetes
    unzip -o dask_kubernetes-*.whl '*/crds/daskcluster.yaml'
    python -m tests.custom_resource $(find . -name daskcluster.yaml)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[1] / "examples/clusters/kubernetes"
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def find_wrong(value: Any, schema: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yields what is wrong with a value; a field that the schema does not have is wrong too."""
    if schema.get("x-kubernetes-int-or-string"):
        if type(value) not in (int, str):
            yield f"{at}: expected a number or a string, got {value!r}"
        return
    if (kind := schema.get("type")) is not None:
        is_bool = isinstance(value, bool)
        if not isinstance(value, TYPES[kind]) or (is_bool and kind != "boolean"):
            yield f"{at}: expected {kind}, got {value!r}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: expected one of {schema['enum']}, got {value!r}"
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from find_wrong(item, schema.get("items", {}), f"{at}[{i}]")
    if isinstance(value, dict):
        yield from _find_wrong_fields(value, schema, at)


def _find_wrong_fields(value: Mapping[str, Any], schema: Mapping[str, Any], at: str) -> Any:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties")
    is_open = (not known and others is None) or schema.get("x-kubernetes-preserve-unknown-fields")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at}.{name} is missing"
    for name, item in value.items():
        if name in known:
            yield from find_wrong(item, known[name], f"{at}.{name}")
        elif isinstance(others, dict):
            yield from find_wrong(item, others, f"{at}.{name}")
        elif not is_open and not others:
            yield f"{at}.{name} is not known"


def read_examples() -> dict[str, dict[str, Any]]:
    """Returns each resource of the examples by its kind."""
    found = {}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            assert one["kind"] not in found
            found[one["kind"]] = one
    return found


def main() -> int:
    definition = yaml.safe_load(Path(sys.argv[1]).read_text())
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    spec = schema["properties"]["spec"]
    pod = spec["properties"]["worker"]["properties"]["spec"]
    found = read_examples()
    wrong = [
        *find_wrong(found["DaskCluster"]["spec"], spec, "DaskCluster.spec"),
        *find_wrong(found["Job"]["spec"]["template"]["spec"], pod, "Job.spec.template.spec"),
    ]
    for line in wrong:
        print(line)  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
