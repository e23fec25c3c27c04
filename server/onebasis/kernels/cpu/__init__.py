"""The whole decoder step as C++ for CPUs with AVX-512 BF16, built on the machine that runs it."""
