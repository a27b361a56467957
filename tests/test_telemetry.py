"""What the server counts, as a scraper reads it."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.telemetry import Telemetry
from agent.types import LinkQuality, UnitReport


def rendered(telemetry: Telemetry) -> dict[str, float]:
    """Every sample, without the prefix, by name and labels as the text has them."""
    values = {}
    for family in text_string_to_metric_families(telemetry.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            name = sample.name.removeprefix("voice_agent_")
            values[f"{name}{{{labels}}}" if labels else name] = sample.value
    return values


def test_a_link_counts_once_its_peer_has_reported() -> None:
    telemetry = Telemetry()
    telemetry.link(LinkQuality())
    values = rendered(telemetry)
    assert (values["link_rtt_seconds_count"], values["link_loss_ratio_count"]) == (0, 0)
    telemetry.link(LinkQuality(rtt_ms=40, loss=0.0))
    telemetry.link(LinkQuality(rtt_ms=60, loss=0.1))
    values = rendered(telemetry)
    assert (values["link_rtt_seconds_count"], values["link_loss_ratio_count"]) == (2, 2)
    assert values["link_rtt_seconds_sum"] == pytest.approx(0.1)
    assert values["link_loss_ratio_sum"] == pytest.approx(0.1)
    assert values["link_loss_ratio_bucket{le=0.0}"] == 1


def test_echo_counts_once_it_is_known() -> None:
    telemetry = Telemetry()
    telemetry.echo(0.0, 0.0)
    telemetry.echo(12.0, 0.0)
    values = rendered(telemetry)
    assert (values["echo_erle_db_count"], values["echo_delay_ms_count"]) == (0, 0)
    telemetry.echo(0.0, 120.0)
    telemetry.echo(25.0, 130.0)
    values = rendered(telemetry)
    assert (values["echo_erle_db_count"], values["echo_delay_ms_count"]) == (2, 2)
    assert (values["echo_erle_db_sum"], values["echo_delay_ms_sum"]) == (25, 250)


def test_stages_are_told_apart_and_their_text_says_what_a_run_is() -> None:
    telemetry = Telemetry()
    for _ in range(3):
        telemetry.stage("front_end", 0.002)
    telemetry.unit(UnitReport(0, (("llm", 50.0), ("front_end", 4.0))))
    values = rendered(telemetry)
    assert values["stage_seconds_count{stage=front_end}"] == 4
    assert values["stage_seconds_sum{stage=front_end}"] == pytest.approx(0.01)
    assert values["stage_seconds_count{stage=llm}"] == 1
    assert values["stage_seconds_sum{stage=llm}"] == pytest.approx(0.05)
    (told,) = [
        line
        for line in telemetry.render().decode().splitlines()
        if line.startswith("# HELP voice_agent_stage_seconds ")
    ]
    assert "10 ms" in told
    assert "unit" in told


def test_two_servers_keep_their_stages_apart() -> None:
    one, other = Telemetry(), Telemetry()
    one.stage("front_end", 0.002)
    assert "stage_seconds_count{stage=front_end}" not in rendered(other)
    other.stage("front_end", 0.002)
    assert rendered(one)["stage_seconds_count{stage=front_end}"] == 1


def test_seconds_that_a_microphone_lacked_add_up() -> None:
    telemetry = Telemetry()
    telemetry.concealed(0.02, 0.0)
    telemetry.concealed(0.04, 1.5)
    telemetry.concealed(0.0, 0.0)
    values = rendered(telemetry)
    name = "microphone_concealed_seconds_total"
    assert values[f"{name}{{kind=concealed}}"] == pytest.approx(0.06)
    assert values[f"{name}{{kind=silent}}"] == pytest.approx(1.5)


def test_a_count_that_begins_again_takes_nothing_back() -> None:
    telemetry = Telemetry()
    telemetry.concealed(0.5, 0.5)
    telemetry.concealed(-0.2, -0.2)
    telemetry.microphone({"received": 5})
    telemetry.microphone({"received": -5, "lost": 0})
    values = rendered(telemetry)
    assert values["microphone_concealed_seconds_total{kind=concealed}"] == 0.5
    assert values["microphone_packets_total{fate=received}"] == 5
    assert "microphone_packets_total{fate=lost}" not in values


def test_a_run_counts_in_each_bucket_that_it_fits() -> None:
    telemetry = Telemetry()
    for spent_s in (0.0005, 0.001, 0.0011, 9.0):
        telemetry.stage("front_end", spent_s)
    values = rendered(telemetry)
    bounds = ("0.001", "0.0025", "2.5", "+Inf")
    counts = [values[f"stage_seconds_bucket{{le={bound},stage=front_end}}"] for bound in bounds]
    assert counts == [2, 3, 3, 4]
