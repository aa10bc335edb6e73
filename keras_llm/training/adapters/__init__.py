"""Train low-rank adapters: LoRA, QLoRA and DoRA."""
