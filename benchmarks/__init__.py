"""What hpcexp costs, each time against the raw thing or a peer, measured in one run: `python -m benchmarks`."""

METER_FILE = "cpu.json"
"""What `benchmarks.meter.Meter` leaves in its Trainer's root directory."""
