"""Simulators that tests are built on: voices, rooms, links, clocks."""
