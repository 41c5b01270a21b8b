"""Parts of bench/calibrate_simulator.py: reading recorded loads, fitting, comparing, writing."""
