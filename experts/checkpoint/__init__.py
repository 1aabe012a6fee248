"""Reading Hugging Face checkpoints: one tensor or one expert at a time, memory-mapped, safetensors only."""
