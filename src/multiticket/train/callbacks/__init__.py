"""What happens beside the optimiser step: metrics, samples, the effect of rounding, and stopping on request."""
