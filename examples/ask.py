"""Asks a served model for each line of a table, one request a line.

From a clone of Podium: `python examples/ask.py penguins.csv species`, the file and its column of
classes. It needs pandas alone, to read the file. A cell that is missing is sent as null.
"""

import json
import sys
import urllib.request

import pandas as pd

URL = "http://127.0.0.1:5001/invocations"


def ask(cells: dict) -> dict:
    """Returns the server's answer for one line: its label, probabilities and who answered."""
    body = {"dataframe_records": [cells], "params": {"labels": True}}
    request = urllib.request.Request(
        URL, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        answer = json.load(reply)
    return {**answer["predictions"][0], "version": answer["model_version"]}


def main(file: str, label: str) -> None:
    table = pd.read_csv(file)
    lines = json.loads(table.drop(columns=label).to_json(orient="records"))
    answers = [ask(cells) for cells in lines]
    right = sum(one["label"] == known for one, known in zip(answers, table[label], strict=True))
    versions = sorted({answer["version"] for answer in answers})
    print(f"{right} of {len(answers)} as the file has them, answered by version {versions}")


if __name__ == "__main__":
    main(*sys.argv[1:])
