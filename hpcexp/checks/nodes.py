"""Jobs on several machines: how many, and where they meet."""

from __future__ import annotations

import re
from typing import Any


def nodes_problems(config: dict[str, Any]) -> list[str]:
    """What is wrong with `hardware.num_nodes` and `launch.rdzv`."""
    num_nodes, launch = config["hardware"]["num_nodes"], config["launch"]
    if launch["name"] == "dry":
        return []
    if launch["name"] != "nodes":
        if num_nodes == 1:
            return []
        asked = "launch.nodes" if num_nodes == launch["nodes"] else "hardware.num_nodes"
        return [
            f"{asked}={num_nodes}: launch={launch['name']} starts ranks on this machine only.\n"
            f"Fix: launch=nodes launch.nodes={num_nodes} launch.rdzv=HOST:PORT on each of the machines."
        ]
    problems = []
    if launch["nodes"] < 2:
        problems.append(
            f"launch.nodes={launch['nodes']}: launch=nodes is for several machines.\n"
            "Fix: launch.nodes=2, or launch=local."
        )
    if num_nodes != launch["nodes"]:
        problems.append(
            f"hardware.num_nodes={num_nodes}, but launch.nodes={launch['nodes']}.\nFix: leave hardware.num_nodes out."
        )
    match = re.fullmatch(r"(?:[^:\s\[\]]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", str(launch["rdzv"]))
    if match is None or not 0 < int(match[1]) < 2**16:
        problems.append(
            f"launch.rdzv={launch['rdzv']}: not HOST:PORT.\n"
            "Fix: launch.rdzv=HOST:29400 with the name or address of one of the machines."
        )
    return problems
