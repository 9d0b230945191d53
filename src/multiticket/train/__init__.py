"""Train one arm by GRPO on TRL, and measure it. Import :mod:`multiticket.train.run` to do so; it imports torch."""
