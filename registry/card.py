"""The model card of a release: what MLflow shows as its version's description, in Markdown.

Made from what was measured (Mitchell et al. 2019), and as honest about what was not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from mlops.evaluation import (
    CLASSIFIER_METRICS,
    N_RESAMPLES,
    chance_metrics,
    expected_calibration_error,
    interval,
    named_classes,
    per_class_table,
)
from mlops.inputs import Column, InputSpec
from mlops.packaging import ModelSpec
from registry.evidence import Evidence
from registry.gates import Decision

MAX_CHARACTERS: Final = 5000
"""What MLflow's database holds of a description."""

_MAX_CLASSES: Final = 30
_MAX_BODY: Final = 600  # characters of a request that is written out
_FEW_ROWS: Final = 10


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says besides what was measured.

    Attributes:
        name: The model.
        version: The release's.
        candidate_version: The version of `<name>-candidates` whose bytes it holds.
        experiment_id: Of the run that trained it.
        run_id: Likewise.
        previous: The release that it follows; None for the first.
        n_rows: Rows of the dataset's parts: "train", "val", "test".
    """

    name: str
    version: int
    candidate_version: int
    experiment_id: str
    run_id: str
    previous: int | None
    n_rows: Mapping[str, int]


def model_card(evidence: Evidence, decision: Decision, facts: CardFacts) -> str:
    """Returns the card, at most `MAX_CHARACTERS`: the table of classes gets what room is left."""
    before = [_title(evidence.candidate.spec, facts), _metrics(evidence)]
    after = [
        _gates(decision),
        _section("Limits", *(f"- {one}" for one in _limits(evidence))),
        _how_to_call(evidence.candidate.spec),
        _lineage(evidence, facts),
    ]
    room = MAX_CHARACTERS - sum(len(one) + 2 for one in (*before, *after))
    classes = _classes(evidence, room)
    card = "\n\n".join([*before, *([classes] if classes else []), *after])
    return card if len(card) <= MAX_CHARACTERS else f"{card[: MAX_CHARACTERS - 4]}\n..."


def _section(title: str, *lines: str) -> str:
    return "\n".join([f"## {title}", "", *lines])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(header), "|" + " --- |" * len(header), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _text(value: str, most: int = 60) -> str:
    """A name or a sentence of anyone's as Markdown that shows it, and does nothing else."""
    plain = "".join(one if one.isprintable() else "?" for one in value)
    plain = plain if len(plain) <= most else f"{plain[: most - 3]}..."
    # A backslash in front keeps Markdown from reading it, an entity HTML.
    for sign in "\\`*_[]|#":
        plain = plain.replace(sign, f"\\{sign}")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _title(spec: ModelSpec, facts: CardFacts) -> str:
    rows = " x ".join(str(size) for size in spec.input.shape)
    counts = ", ".join(f"{n} {part}" for part, n in facts.n_rows.items())
    answers = "how unusual a row is (a VAE's anomaly score, nats)"
    if spec.task == "classifier":
        answers = f"probabilities of {len(spec.class_names)} classes"
    return "\n".join(
        [
            f"# {_text(facts.name)}, version {facts.version}",
            "",
            f"Input: {spec.input.kind}, {rows} of {spec.input.dtype}. Output: {answers}. "
            f"Architecture: {_text(spec.architecture)}.",
            "",
            f"Trained on {_text(spec.dataset_name)}, fingerprint "
            f"{_text(spec.dataset_fingerprint[:12])}; rows: {counts}.",
        ]
    )


def _metrics(evidence: Evidence) -> str:
    score = evidence.candidate.score
    chance = {score.metric: score.chance}
    names: Sequence[str] = (score.metric,)
    notes = [
        f"On {score.n_rows} test rows; 95 % intervals by the bootstrap, {N_RESAMPLES} resamples."
    ]
    if evidence.labels is not None:
        names, chance = CLASSIFIER_METRICS, chance_metrics(evidence.labels)
        error = expected_calibration_error(evidence.candidate.answers, evidence.labels)
        notes.append(
            f"Expected calibration error {error:.3f} (15 bins; 0 is best). Judged by "
            f"{_text(score.metric)}."
        )
    rows = []
    for name in names:
        low, high = interval(evidence.candidate.answers, evidence.labels, name)
        figures = (score.values[name], chance[name])
        rows.append((name, f"{figures[0]:.4f}", f"{low:.4f} to {high:.4f}", f"{figures[1]:.4f}"))
    return _section(
        "Metrics", *_table(("metric", "value", "95 % interval", "chance"), rows), "", *notes
    )


def _classes(evidence: Evidence, room: int) -> str:
    """The table of classes: all, or as many as there is room for, the worst first."""
    if evidence.labels is None:
        return ""
    names = evidence.candidate.spec.class_names
    named = named_classes(evidence.candidate.answers)
    scores = per_class_table(named, evidence.labels, len(names))
    header = ("class", "precision", "recall", "F1", "rows")
    rows = [
        (name[:40], f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", str(one.n_rows))
        for name, one in zip(names, scores, strict=True)
    ]
    whole = _section("Classes", *_table(header, rows))
    if len(rows) <= _MAX_CLASSES and len(whole) + 2 <= room:
        return whole
    worst = sorted(range(len(rows)), key=lambda index: scores[index].f1)
    for n in range(min(_MAX_CLASSES, len(rows)), 0, -1):
        title = f"Classes (the {n} of {len(rows)} with the lowest F1)"
        part = _section(title, *_table(header, [rows[index] for index in worst[:n]]))
        if len(part) + 2 <= room:
            return part
    return ""


def _gates(decision: Decision) -> str:
    rows = ((one.name, one.measured, one.expected, one.verdict) for one in decision.gates)
    return _section("Gates", *_table(("gate", "measured", "limit", "verdict"), rows))


def _limits(evidence: Evidence) -> Iterator[str]:
    """What the figures above do not say, a sentence each."""
    model = evidence.candidate
    score = model.score
    yield (
        "The test rows come from the dataset it was trained on. It was not tested on data from "
        "elsewhere or of a later time, nor for groups of people, nor against attacks."
    )
    if evidence.labels is not None and score.values["accuracy"] == 1.0:
        # The bootstrap knows no error to draw (rule of three, Hanley & Lippman-Hand 1983).
        share = 100 * min(1.0, 3 / score.n_rows)
        yield f"It erred on no test row: it may still err on up to {share:.2g} % of such rows."
    if evidence.labels is not None:
        rows = np.bincount(evidence.labels, minlength=len(model.spec.class_names))
        few = [
            _text(name, 40) for name, n in zip(model.spec.class_names, rows, strict=True)
            if n < _FEW_ROWS
        ]  # fmt: skip
        if few:
            more = f" and {len(few) - 5} more" if len(few) > 5 else ""
            yield f"Fewer than {_FEW_ROWS} test rows of {', '.join(few[:5])}{more}."
    if model.perturbed:
        yield f"Changed rows were tried in these ways only: {_text(', '.join(model.perturbed))}."
    else:
        yield "It was not tried on rows that are changed a little."
    if model.n_seen is None:
        yield "Whether test rows stand in its training rows is not known."
    elif model.n_seen:
        yield f"{model.n_seen} test rows stand in its training rows: the figures are too good."
    if evidence.n_decisions:
        yield (
            f"{evidence.n_decisions} decisions were made on these test rows before: figures that "
            "were chosen by are a little too good."
        )
    if evidence.serving is None:
        yield "Latency and memory of serving were not measured."
    if evidence.reproduced != "identical":
        yield "Its training was not reproduced."


def _how_to_call(spec: ModelSpec) -> str:
    body, note = example_request(spec.input)
    command = (
        "curl -s http://127.0.0.1:5001/invocations -H 'content-type: application/json' -d "
        f"{body if note else shlex.quote(body)}"
    )
    return _section("How to call it", *([note, ""] if note else []), f"    {command}")


def example_request(data: InputSpec) -> tuple[str, str]:
    """Returns a request of one row, made of the training rows' means, never of a row.

    Returns:
        The body as JSON, and "". Where that would be long: curl's `-d` argument, and what the
        files that it names hold.
    """
    if data.kind == "image":
        content = "a picture" if data.dtype == "uint8" else "a row's float32 values, little-endian"
        file = "row.png" if data.dtype == "uint8" else "row.bin"
        # In double quotes the shell puts the file in; not every base64 can leave out its newlines.
        text = f"$(base64 < {file} | tr -d '\\n')"
        body = f'"{{\\"inputs\\": [\\"{text}\\"]}}"'
        return body, f"`{file}` holds {content}."
    body = json.dumps(_example_rows(data))
    if len(body) <= _MAX_BODY:
        return body, ""
    if data.columns is not None:
        form = '{"dataframe_records": [{"column": value, ...}]}'
        return "@rows.json", f"`rows.json` holds `{form}`, with all {len(data.columns)} columns."
    sizes = " x ".join(str(size) for size in data.shape)
    return "@rows.json", f'`rows.json` holds `{{"inputs": [row, ...]}}`, a row as lists {sizes}.'


def _example_rows(data: InputSpec) -> dict[str, Any]:
    if data.columns is not None:
        return {"dataframe_records": [_example_cells(data.columns, data.mean)]}
    mean = [float(f"{value:.4g}") for value in data.mean]
    if data.ragged:  # MLflow refuses "inputs" of unequal length
        return {"dataframe_records": [{"steps": [mean[:-1]] * min(2, data.shape[0])}]}
    return {"inputs": [mean if data.kind == "table" else [mean] * data.shape[0]]}


def _example_cells(columns: Sequence[Column], mean: Sequence[float]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    start = 0
    for column in columns:
        categories = column.categories
        value = float(f"{mean[start]:.4g}") if categories is None else (categories or (None,))[0]
        cells[column.name] = value
        start += len(column.features)
    return cells


def _lineage(evidence: Evidence, facts: CardFacts) -> str:
    """Links into MLflow's own pages, from its root."""
    candidates = f"{facts.name}-candidates"
    run = f"#/experiments/{quote(facts.experiment_id)}/runs/{quote(facts.run_id)}"
    follows = "The first release."
    if facts.previous is not None:
        follows = f"Follows {_link(facts.name, facts.previous)}."
    commit = evidence.commit
    code = "not known" if commit.sha is None else f"commit {_text(commit.sha[:12])}"
    if commit.is_dirty:
        code += ", with files that differed from it"
    return _section(
        "Where it comes from",
        f"- Trained by [run {_text(facts.run_id[:8])}]({run}); code: {code}.",
        f"- Candidate {_link(candidates, facts.candidate_version)}.",
        f"- {follows}",
    )


def _link(name: str, version: int) -> str:
    return f"[{_text(name)} version {version}](#/models/{quote(name, safe='')}/versions/{version})"
