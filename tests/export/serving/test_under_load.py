"""Test a server process under load, version changes, kills and hostile requests."""

import os
import shutil
import signal
import time

import numpy as np
import pytest

CLIENTS = 8


def percentiles(latencies):
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"


@pytest.mark.parametrize("batching", [True, False], ids=["batches", "one by one"])
@pytest.mark.parametrize("protocol", ["gRPC", "REST"])
def test_concurrent_clients(process, load, record, seconds, protocol, batching):
    server = process(*(["--enable_batching"] if batching else []))
    clients = [server.client(protocol, retries=0) for _ in range(CLIENTS)]
    with load(clients) as loaded:
        time.sleep(seconds)
    assert not loaded.failed and not loaded.wrong, (loaded.failed[:3], loaded.wrong[:3])
    count = len(loaded.latencies)
    assert count > CLIENTS
    record(
        f"{CLIENTS} clients for {seconds:.0f} s, {protocol}, "
        f"{'in batches' if batching else 'one by one'}",
        f"{count:,} answers, none wrong, none lost; {percentiles(loaded.latencies)}",
    )


def test_version_changes_under_load(process, load, record, seconds, text_base, tmp_path):
    base = tmp_path / "stories"
    shutil.copytree(text_base, base)
    options = ["--enable_batching", "--file_system_poll_wait_seconds", "0.2"]
    server = process(*options, base_path=base)
    clients = [server.client(p, retries=0) for p in ["gRPC", "REST"] * (CLIENTS // 2)]

    def loaded_versions():
        return [row["version"] for row in clients[0].status() if row["state"] == "AVAILABLE"]

    changes = 0
    with load(clients) as loaded:
        end = time.monotonic() + seconds
        while changes < 2 or time.monotonic() < end:
            changes += 1
            shutil.copytree(text_base / "1", base / "new")
            os.rename(base / "new", base / str(changes + 1))
            limit = time.monotonic() + 60
            while loaded_versions() != [changes + 1]:
                assert time.monotonic() < limit, clients[0].status()
                time.sleep(0.05)
            shutil.rmtree(base / str(changes))
            time.sleep(0.5)
    assert not loaded.failed and not loaded.wrong, (loaded.failed[:3], loaded.wrong[:3])
    record(
        f"{CLIENTS} clients while {changes} new versions are loaded and the old ones removed",
        f"{len(loaded.latencies):,} answers, none wrong, none failed",
    )


def test_kill_and_restart(process, load, record):
    server = process("--enable_batching")
    clients = [server.client(p) for p in ["gRPC", "REST"] * (CLIENTS // 2)]
    kills = 3
    with load(clients) as loaded:
        for _ in range(kills):
            count = len(loaded.latencies)
            while len(loaded.latencies) < count + 50:
                time.sleep(0.05)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            time.sleep(1)
            server.start()
        count = len(loaded.latencies)
        end = time.monotonic() + 120
        while len(loaded.latencies) < count + 50:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert not loaded.failed and not loaded.wrong, (loaded.failed[:3], loaded.wrong[:3])
    record(
        f"kill -9 and a new start under {CLIENTS} clients that retry, {kills} times",
        f"{len(loaded.latencies):,} answers, none wrong, none failed; the longest took "
        f"{max(loaded.latencies):.1f} s",
    )


def test_hostile_requests(process, record, task, hostile):
    server = process("--enable_batching")
    expected = task("The", 4, temperature=0.0)
    attacker = hostile(server.port, server.rest_api_port)
    # The first requests fill allocators and caches; growth after them would be a leak.
    wrong = attacker.attack(300)
    before = server.memory()
    for _ in range(10):
        wrong += attacker.attack(100)
        assert attacker.good() == (expected, expected)
    grown = server.memory() - before
    attacker.close()
    assert not wrong, wrong[:10]
    assert grown < 50e6, grown
    record(
        "1,000 hostile requests after 300 to warm up",
        f"each refused or answered properly, the next good one answered; memory "
        f"{before / 1e6:.0f} MB before, {grown / 1e6:+.1f} MB after",
    )


def test_sigterm_under_load(process, load, record):
    server = process("--enable_batching", "--shutdown_grace_seconds", "30")
    clients = [server.client(p, retries=0) for p in ["gRPC", "REST"] * (CLIENTS // 2)]
    with load(clients) as loaded:
        while len(loaded.latencies) < 50:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
        time.sleep(0.5)
    codes = {error.code for error in loaded.failed}
    assert codes <= {"UNAVAILABLE"} and not loaded.wrong, codes
    record("SIGTERM under load", "exit code 0; requests after it get only UNAVAILABLE")
