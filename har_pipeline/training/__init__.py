"""Training: options, data, batches, jobs, sweeps; heads on features and networks on raw frames."""
