"""What hpcexp costs, each time against the raw thing or a peer, measured in one run: `python -m benchmarks`."""

METER_FILE = "cpu.json"
"""What `benchmarks.meter.Meter` leaves in its Trainer's root directory."""
MEMORY_FILE = "memory.json"
"""What `benchmarks.memory.Memory` leaves there."""
TIMES_FILE = "times.json"
"""What a job of `benchmarks.stock_sweep` leaves in its directory."""
