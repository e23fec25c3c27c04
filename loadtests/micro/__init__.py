"""What the update itself costs, beside the ways of LoRA servers. Run with `python -m loadtests.micro`."""
