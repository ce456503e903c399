"""jaxprobe: linear probes on every layer of a language model."""
