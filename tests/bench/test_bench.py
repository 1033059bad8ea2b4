"""The benchmarks run, and print what other tools read: their figures are for `skerry bench`, not for tests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli import bench
from services.cli.benchmarks import creating, neighbour, outage, starting, waiting
from services.cli.main import app

runner = CliRunner()


def printed(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, ["bench", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(bench, "SECONDS", 0.3)
    monkeypatch.setattr(creating, "WARM_UP", {"rounds": 1, "each": 20})
    monkeypatch.setattr(creating, "SERIAL", {"concurrency": 1, "rounds": 5, "each": 5})
    monkeypatch.setattr(creating, "CONCURRENT", {"concurrency": 32, "rounds": 1, "each": 100})
    monkeypatch.setattr(starting, "CONCURRENT", {"concurrency": 4, "rounds": 1, "each": 12})
    monkeypatch.setattr(starting, "SERIAL", {"concurrency": 1, "rounds": 1, "each": 5})
    monkeypatch.setattr(outage, "CREATES", 20)
    monkeypatch.setattr(outage, "WARM_UP", 20)
    monkeypatch.setattr(neighbour, "CALLS", 80)


def test_bench_create_reports_every_combination_beside_its_floor() -> None:
    report = printed("create")
    assert set(report["floor"]) == {"echo_ms", "commit_ms"}
    assert min(report["floor"].values()) > 0
    combinations = {(run["wiring"], run["via"], run["concurrency"]) for run in report["runs"]}
    assert combinations == {(w, v, c) for w in ("set", "apart") for v in ("grpc", "rest") for c in (1, 32)}
    for run in report["runs"]:
        assert run["creates"] > 0
        assert 0 < run["p50_ms"] <= run["p99_ms"]
        echoes = creating.ECHOES[run["wiring"]]
        if run["concurrency"] == 1:
            floor = echoes * report["floor"]["echo_ms"] + report["floor"]["commit_ms"]
            assert run["ratio"] == pytest.approx(run["p50_ms"] / floor, rel=0.01)


def test_bench_start_reports_machines_a_second() -> None:
    report = printed("start")
    assert set(report) == {"per_second", "p50_ms", "p99_ms"}
    assert min(report.values()) > 0


def test_bench_place_reports_beside_a_yardstick() -> None:
    report = printed("place", "--workers", "500")
    assert report["workers"] == 500
    assert set(report) == {"workers", "per_second", "p50_ms", "p99_ms", "yardstick_per_second"}
    assert min(report.values()) > 0


def test_bench_convert_reports_conversions_a_second() -> None:
    report = printed("convert")
    assert set(report) == {"per_second", "p50_ms", "p99_ms"}
    assert min(report.values()) > 0


def test_bench_neighbour_refuses_the_noisy_tenant_and_never_the_quiet_one() -> None:
    report = printed("neighbour", "--pairs", "1")  # It fails when the quiet one is refused.
    assert report["noisy_answers"]["429"] > report["noisy_answers"]["200"] > 0
    assert set(report["noisy_answers"]) == {"200", "429"}
    figures = {name: figure for name, figure in report.items() if name.startswith(("p50", "p99"))}
    assert len(figures) == 10
    assert min(figures.values()) > 0
    print(figures)


def test_bench_outage_fails_no_create_and_reports_pairs_of_each_state_of_the_centre() -> None:
    report = printed("outage", "--pairs", "1")
    assert [state["state"] for state in report["states"]] == ["dead", "slow", "flaky"]
    for state in report["states"]:
        print(state)
        assert state["pairs"] == 1
        for quantile in ("p50", "p99"):
            ratio = state[f"{quantile}_ms"] / state[f"{quantile}_ms_well"]
            assert state[f"{quantile}_ratio"] == pytest.approx(ratio, rel=0.01)


def test_bench_backtest_converts_every_stored_configuration_again() -> None:
    report = printed("backtest", "--machines", "700")
    assert (report["converted"], report["changed"]) == (700, 0)
    assert report["per_second"] == pytest.approx(report["converted"] / report["seconds"], rel=0.1)


def test_bench_waiters_reports_memory_and_waking_over_both_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SINGLES", 3)
    report = printed("waiters", "--waiters", "300")
    assert report["waiters"] == 300
    assert [run["via"] for run in report["runs"]] == ["grpc", "rest"]
    for run in report["runs"]:
        assert run["kb_per_waiter"] < 200
        assert 0 < run["wake_p50_ms"] <= run["wake_p99_ms"]
        assert 0 < run["herd_p50_ms"] <= run["herd_p99_ms"]
