"""`bench gpu`: decode and prefill of a 7B shape with the KV cache in DRAM, beside what the machine allows."""
