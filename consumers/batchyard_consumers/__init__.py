"""The consumers: form micro-batches, run models, persist results. The only package that imports torch."""
