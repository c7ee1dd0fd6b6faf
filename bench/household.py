"""How fast the household makes episodes on one core: the room drawn, and played to its end by the expert.

python bench/household.py [--rooms 6000]     bench/results/household.json and a table; seconds
"""

import argparse
import platform
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.core import files  # noqa: E402
from tools.worlds.household import episodes  # noqa: E402
from tools.worlds.household.facts import facts  # noqa: E402
from tools.worlds.household.rooms import make_room_for  # noqa: E402

NOTES = """Processor time of one process, the room drawn and played in the full style, one game in five with a slip;
nothing is written. Won: within 30 actions. The tables are read, in 200 rooms, before the clock starts."""


def measure(task: str, place: str, rooms: int) -> dict[str, Any]:
    """Episodes a second, and how many are won, of one task in one kind of room."""
    start = time.process_time()
    games = [episodes.episode(make_room_for(seed, task, place), slip=0.2) for seed in range(rooms)]
    seconds = time.process_time() - start
    won = [game for game in games if game]
    turns = sum(message["role"] == "assistant" for game in won for message in game["messages"])
    return {"task": task, "room": place, "rooms": rooms, "won": len(won), "actions": turns, "seconds": seconds}


def main() -> None:
    """Measure all tasks in all their rooms, write the results and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rooms", type=int, default=6000)
    rooms = parser.parse_args().rooms
    pairs = [(task, place) for task, known in facts().tasks.items() for place in known.rooms]
    for task, place in islice(pairs, 4):
        measure(task, place, 50)
    cases = [measure(task, place, max(1, rooms // len(pairs))) for task, place in pairs]
    table = ["| task | room | episodes a second | won | actions |", "|---|---|---|---|---|"]
    for case in cases:
        mean = case["actions"] / max(1, case["won"])
        rate = f"{case['rooms'] / case['seconds']:,.0f} | {case['won']} of {case['rooms']} | {mean:.1f}"
        table.append(f"| {case['task']} | {case['room']} | {rate} |")
    total = {key: sum(case[key] for case in cases) for key in ("rooms", "won", "actions", "seconds")}
    rate = f"{total['rooms'] / total['seconds']:,.0f} | {total['won']} of {total['rooms']}"
    table.append(f"| all | all | {rate} | {total['actions'] / max(1, total['won']):.1f} |")
    found = {
        "title": "Household episodes",
        "command": "python bench/household.py",
        "versions": {"Python": platform.python_version()},
        "table": table,
        "notes": NOTES,
        "cases": cases,
    }
    files.write_json(ROOT / "bench" / "results" / "household.json", found)
    print("\n".join(table))


if __name__ == "__main__":
    main()
