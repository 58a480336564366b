"""Inverse problems: measurements, operators and posterior samplers that use a diffusion model as the prior."""
