from agent.media.echo_wait import echo_hides, has_listened, pause_samples

MS = 16


def test_the_echo_hides_until_its_delay_and_the_rooms_ring_are_over() -> None:
    assert echo_hides(229 * MS, 100.0)
    assert not echo_hides(230 * MS, 100.0)
    assert echo_hides(249 * MS, 0.0)
    assert not echo_hides(250 * MS, 0.0)


def test_a_voice_that_was_heard_before_needs_less_listening_to() -> None:
    assert not has_listened(159 * MS, 100.0, unheard=False)
    assert has_listened(160 * MS, 100.0, unheard=False)
    assert not has_listened(259 * MS, 100.0, unheard=True)
    assert has_listened(260 * MS, 100.0, unheard=True)


def test_the_longer_the_way_the_shorter_the_wait() -> None:
    waits_ms = [pause_samples(128, delay_ms) / MS for delay_ms in (0.0, 50.0, 120.0, 400.0)]
    assert waits_ms == [128, 128, 95, 64]
