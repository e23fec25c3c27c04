"""What all benchmarks need: the machine, interleaved timing, the file of a run."""
