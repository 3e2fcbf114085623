"""Every causal LM class of the installed transformers, tiny -> docs/reference/families.md: how each trains, and why.

    python -m tests.survey --found families.jsonl --ropes all --write docs/reference/families.md

Each configuration is tried in a process of its own, so that a crash is a row. What was found stands in the file of
`--found`, one line a configuration; those that stand there already are not tried again.
"""

import argparse
import json
import multiprocessing
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.survey.compare import Finding, survey
from tests.survey.configs import class_name, families, tiny_config, variants
from tests.survey.table import table

Case = tuple[str, str, dict[str, Any]]


def main() -> None:
    """Try what was not tried, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--found", type=Path, required=True, help="what was found, in lines of JSON")
    parser.add_argument("--write", type=Path, help="the table")
    parser.add_argument("--only", nargs="*", help="these model types alone, tried again")
    parser.add_argument("--ropes", nargs="*", default=[], help="model types, or all, to try with scaled positions too")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for a configuration")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = _read(arguments.found)
    wanted = arguments.only if arguments.only is not None else families()
    ropes = set(families() if arguments.ropes == ["all"] else arguments.ropes)
    cases = [(family, *rest) for family in wanted for rest in variants(family, family in ropes)]
    waiting = [case for case in cases if arguments.only is not None or case[:2] not in found]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for case, line in zip(waiting, pool.map(partial(_tried, timeout=arguments.timeout), waiting), strict=True):
            line = {"class": class_name(case[0])} | line
            found[case[:2]] = line
            with arguments.found.open("a") as file:
                file.write(json.dumps({"family": case[0], "variant": case[1]} | line) + "\n")
            print(case[0], case[1], line, flush=True)
    if arguments.write:
        arguments.write.write_text(table(found, arguments.ropes))


def _read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line.pop("family"), line.pop("variant")): line for line in lines}


def _tried(case: Case, timeout: float) -> dict[str, Any]:
    """Try a configuration in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(case, sending))
    process.start()
    sending.close()
    try:
        if not receiving.poll(timeout):
            return asdict(Finding(crashed=f"no answer in {timeout:.0f} s"))
        line: dict[str, Any] = receiving.recv()
        return line
    except EOFError:
        process.join()
        return asdict(Finding(crashed=f"the process ended with {process.exitcode}"))
    finally:
        process.kill()
        process.join()


def _try(case: Case, sending: Any) -> None:
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    family, _, changes = case
    start = time.monotonic()
    try:
        config = tiny_config(family, changes)
    except Exception as error:
        finding = Finding(not_built=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    else:
        finding = survey(config)
    sending.send(asdict(finding) | {"class": class_name(family), "seconds": round(time.monotonic() - start, 2)})


if __name__ == "__main__":
    main()
