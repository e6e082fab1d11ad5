"""The guide to metrics, run as it stands: all three at once, from a config.env made of its blocks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.collector import collecting
from tests.commands import ROWS, Workshop
from tests.servers import RedisServer

TEXT = (Path(__file__).parents[1] / "docs" / "guides" / "metrics.md").read_text(encoding="utf-8")
VARIABLES = dict(re.findall(r"^([A-Z_]+)=(\S+)$", TEXT, re.MULTILINE))


def test_what_the_guide_says_makes_a_file_traces_and_lineage(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis_server)
    workshop.sync("users", freshness="26h")
    file = tmp_path / "retl.prom"
    with collecting() as collector, collecting() as marquez:
        here = {
            "/var/lib/node_exporter/textfile/retl.prom": str(file),
            "http://localhost:4318": collector.url,
            "http://localhost:5000": marquez.url,
        }
        settings = {name: here.get(value, value) for name, value in VARIABLES.items()}
        assert set(here.values()) <= set(settings.values())
        workshop.write("config.env", "".join(f"{name}={value}\n" for name, value in settings.items()))
        (told,) = workshop.json("sync")["syncs"]
    assert told["inserted"] == ROWS
    families = {one.name: one for one in text_string_to_metric_families(file.read_text())}
    named = set(re.findall(r"`(retl_[a-z_]+)`", TEXT))
    assert named == families.keys()
    rules = yaml.safe_load(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1])  # type: ignore[index]
    asked = {n for rule in rules["groups"][0]["rules"] for n in re.findall(r"retl_[a-z_]+", rule["expr"])}
    assert asked <= named
    (traces,) = {path for path, _, _ in collector.requests}
    assert traces == "/v1/traces"
    assert b"retl-shop" in collector.requests[0][2]
    lineage = [json.loads(body) for _, _, body in marquez.requests]
    assert [(one["eventType"], one["job"]["namespace"]) for one in lineage] == [
        ("START", "shop"),
        ("COMPLETE", "shop"),
    ]
