"""The files of episodes that a person names: files, folders, globs, stdin, data sets of the hub."""

import glob
import os
from pathlib import Path

from tools import BadInput

SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt", ".log", ".parquet", ".arrow")
PACKED = (".gz", ".zst")
# What stands beside rows in a folder that `datasets` saved, or LLaMA-Factory reads.
NO_DATA = ("dataset_info.json", "dataset_dict.json", "state.json")


def input_files(inputs: list[str]) -> list[Path | None]:
    """The files that inputs name, in order; None for stdin. Raises BadInput for one that names none."""
    paths: list[Path | None] = []
    for each in inputs:
        path = Path(each)
        if each == "-":
            paths.append(None)
        elif os.path.isdir(path):  # False, too, for what may not be looked at: to read it will say so
            inside = [item for item in sorted(path.rglob("*")) if item.is_file() and is_data(item.name)]
            if not inside:
                raise BadInput(
                    f"{each}: a folder without a file of episodes ({', '.join(SUFFIXES)}, also .gz and .zst)"
                )
            paths += inside
        elif not os.path.lexists(path) and glob.has_magic(each):
            matching = [Path(name) for name in sorted(glob.glob(each, recursive=True)) if not os.path.isdir(name)]
            if not matching:
                raise BadInput(f"{each}: no file has such a name")
            paths += matching
        else:
            paths.append(path)
    return paths


def read_once(paths: list[Path | None]) -> tuple[list[Path | None], list[str]]:
    """The files without those that hold the same episodes as another one, and the names of these.

    They are the Alpaca files of a set that `file_set` wrote, where the ShareGPT files beside them are read too.
    """
    copies = {
        path.with_name(f"react_{split}_alpaca.json")
        for split in ("train", "test")
        for path in paths
        if path and path.name == f"react_{split}_sharegpt.json"
    }
    return [path for path in paths if path not in copies], [str(path) for path in paths if path in copies]


def is_data(name: str) -> bool:
    """Whether a file in a folder is taken for episodes, by its name."""
    stem, suffix = os.path.splitext(name)
    return (stem if suffix in PACKED else name).endswith(SUFFIXES) and name not in NO_DATA
