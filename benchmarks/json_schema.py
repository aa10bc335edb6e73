"""Check JSON schema constraints with the JSON Schema Test Suite.

    pip download jsonschema==4.26.0 --no-deps --no-binary :all:
    tar xzf jsonschema-4.26.0.tar.gz
    python benchmarks/json_schema.py jsonschema-4.26.0/json/tests --page docs/json_schema_tests.md

Each schema is compiled to a constraint, and each instance is written as JSON and read by the
constraint byte by byte. An instance should be accepted exactly if the suite says it is valid.
Members are read in the order of the instance; a constraint may require another order.
"""

import argparse
import collections
import importlib.metadata
import json
import pathlib

import numpy as np

from keras_llm.errors import InputError
from keras_llm.generation import Constraint, Spelling

DRAFTS = ("draft2020-12", "draft7")
BYTES = Spelling(*[[bytes([byte]) for byte in range(256)]] * 2)
COLUMNS = ("tests", "refused", "correct", "valid but rejected", "invalid but accepted")


def accepts(constraint, text):
    """Return whether a text matches the constraint."""
    stop = 256
    ids = np.frombuffer(text.encode(), "uint8").astype("int32")[None]
    return bool(constraint.allowed(ids, np.array([ids.shape[1]]), [stop])[0, stop])


def run(folder):
    """Run the tests of a folder.

    Returns:
        A dict of keyword to the counts of `COLUMNS`; a list of the tests whose invalid instance is
        accepted; and the counts of the reasons why schemas are refused.
    """
    rows, wrong, reasons = {}, [], collections.Counter()
    for path in sorted(folder.rglob("*.json")):
        name = str(path.relative_to(folder).with_suffix(""))
        counts = rows[name] = collections.Counter()
        for case in json.loads(path.read_text("utf-8")):
            counts["tests"] += len(case["tests"])
            try:
                constraint = Constraint(BYTES, 257, json_schema=case["schema"])
            except InputError as error:
                counts["refused"] += len(case["tests"])
                reasons[str(error)] += 1
                continue
            for test in case["tests"]:
                accepted = accepts(constraint, json.dumps(test["data"], ensure_ascii=False))
                if accepted == test["valid"]:
                    counts["correct"] += 1
                elif accepted:
                    counts["invalid but accepted"] += 1
                    wrong.append((name, case["description"], test["description"]))
                else:
                    counts["valid but rejected"] += 1
    return rows, wrong, reasons


def page(results):
    """Return the Markdown page of the results, a dict of draft to the result of `run`."""
    lines = [
        "# JSON schema constraints and the JSON Schema Test Suite",
        "",
        "Written by `python benchmarks/json_schema.py SUITE --page docs/json_schema_tests.md` with "
        f"llguidance {importlib.metadata.version('llguidance')}.",
        "Each instance is written as JSON, with members in the order of the test, and read by the",
        "constraint byte by byte. *Refused* counts tests whose schema raises an `InputError`.",
        "Invalid instances that are accepted are listed below each table.",
    ]
    for draft, (rows, wrong, _) in results.items():
        total = sum(rows.values(), collections.Counter())
        lines += ["", f"## {draft}", "", f"| keyword | {' | '.join(COLUMNS)} |"]
        lines.append("|---|" + "---:|" * len(COLUMNS))
        for name, counts in [("all", total), *rows.items()]:
            lines.append(f"| {name} | {' | '.join(str(counts[c]) for c in COLUMNS)} |")
        lines += ["", "Invalid but accepted:", ""]
        lines += [f"- {name}: `{case}`: `{test}`" for name, case, test in wrong]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("suite", type=pathlib.Path, help="the suite's folder `tests`")
    parser.add_argument("--page", type=pathlib.Path, help="Markdown file to write")
    options = parser.parse_args()
    results = {draft: run(options.suite / draft) for draft in DRAFTS}
    print(page(results))
    for draft, (_, _, reasons) in results.items():
        for reason, count in reasons.most_common():
            print(f"{draft}: {count} schemas: {reason}")
    if options.page:
        options.page.write_text(page(results), "utf-8")


if __name__ == "__main__":
    main()
