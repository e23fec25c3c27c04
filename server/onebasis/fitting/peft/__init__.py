"""LoRA adapters as PEFT writes them: read exactly or refused by name, and written."""
