"""Side-by-side timings of this project and its peers; ``python -m benchmarks --list``."""
